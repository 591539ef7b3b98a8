"""What one run came to: its learning curve from the lines of metrics.jsonl, and its totals."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from fedft.reports import columns, metric_log
from fedft.reports.metric_log import Line
from fedft.training.metrics.loss import ACCURACY, LOSS

Result = Mapping[str, Any]
"""Numbers of one run by name, and its `curve`; see `result`."""
NO_NUMBERS = ("curve", "clients", "seed", "jobs")
"""What of a result is no number that the mean over runs is of."""


def result(lines: Sequence[Line], steps: int) -> dict[str, Any] | None:
    """The totals of a run as a `Result`; None if the loss was not measured at its start or at its end.

    Args:
        lines: the lines of metrics.jsonl, one per state, version 0 first.
        steps: local optimiser steps of a round, one after the other.
    Returns:
        before, after   loss on held-out rows at the start and at the end; every other metric of the last
                        state has its own name
        rounds, steps   how many there were; steps are those of one client
        up, down        training bytes per client asked and round
        bytes           training bytes of all clients, both ways
        seconds         of training and aggregation
        work            the same of this machine, for all clients together; what energy is estimated from
        error           relative error of aggregation, mean over rounds; None where it was not measured
        clients         loss of the last state by client, each on its own held-out rows; {} where lines do not say
        curve           a point per state, see `curve`
    """
    if not lines or LOSS.name not in lines[0] or LOSS.name not in lines[-1]:
        return None
    trained = [line for line in lines if "round" in line]
    turns = sum(len(line.get("bytes", {})) for line in trained)
    way = {w: sum(line.get("training_bytes", {}).get(w, 0) for line in trained) for w in ("up", "down")}
    errors = [line["aggregation_error"] for line in trained if line.get("aggregation_error") is not None]
    points = curve(lines, steps)
    return {
        "before": lines[0][LOSS.name],
        "after": lines[-1][LOSS.name],
        **{name: lines[-1][name] for name in columns.measured(lines[-1]) if name != LOSS.name},
        "rounds": lines[-1]["version"],
        **{w: n / turns if turns else 0.0 for w, n in way.items()},
        **{k: points[-1][k] for k in ("bytes", "steps", "seconds", "work")},
        "error": fmean(errors) if errors else None,
        "clients": {c: m[LOSS.name] for c, m in lines[-1].get("evaluation", {}).items() if LOSS.name in m},
        "curve": points,
    }


def curve(lines: Sequence[Line], steps: int) -> list[dict[str, Any]]:
    """The learning curve: a point per line, with all metrics (None if not measured) and the cost so far.

    A point has `version`, every metric that any line has, `aggregation_error`, and, from the start of the run on,
    training `bytes`, `steps` of one client, `seconds` of training and aggregation, and `work`, those of this machine.
    Arguments as in `result`.
    """
    points: list[dict[str, Any]] = []
    names = dict.fromkeys([LOSS.name, ACCURACY.name, *columns.occurring(lines), "aggregation_error"])
    spent, seconds, work = 0, 0.0, 0.0
    for line in lines:
        if "round" in line:
            spent, seconds = spent + metric_log.traffic(line), seconds + metric_log.seconds(line)
            work += metric_log.work_seconds(line)
        measured = {k: line.get(k) for k in names}
        taken = {"bytes": spent, "steps": line["version"] * steps, "seconds": seconds, "work": work}
        points.append({"version": line["version"], **measured, **taken})
    return points


def mean(results: Sequence[Result]) -> dict[str, Any]:
    """The mean of every number over the results that have it; of the curves, at the versions that all of them have.

    What is not a number of the whole run (`NO_NUMBERS`) is left out.

    >>> mean([{"after": 1.0, "error": None}, {"after": 2.0, "error": 0.5}])
    {'after': 1.5, 'error': 0.5}
    """
    keys = dict.fromkeys(k for r in results for k in r)
    found: dict[str, Any] = {k: _mean([r.get(k) for r in results]) for k in keys if k not in NO_NUMBERS}
    if "curve" in keys:
        points = [{p["version"]: p for p in r["curve"]} for r in results]
        shared = [v for v in points[0] if all(v in p for p in points)]
        found["curve"] = [mean([p[v] for p in points]) for v in shared]
    return found


def _mean(values: Sequence[float | None]) -> float | None:
    """The mean of the values that are known; None if none is."""
    known = [v for v in values if v is not None]
    return fmean(known) if known else None
