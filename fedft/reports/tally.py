"""What runs come to: learning curves from the lines of metrics.jsonl, one result per run, one row per method."""

from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from fedft.reports import columns, metric_log
from fedft.reports.terminal import size
from fedft.training.metrics.loss import ACCURACY, LOSS

BASELINES = ("local", "central")
"""Contenders that need no federation: every client alone, and all rows in one place."""
Line = Mapping[str, Any]


def result(lines: Sequence[Line], steps: int) -> dict[str, Any] | None:
    """What a run reached and what it took; None if nothing was measured at its start and its end.

    Args:
        lines: of its states, version 0 first.
        steps: local optimiser steps of a round, one after the other.
    Returns:
        Of the loss on held-out rows `before` and `after`; every other metric of the last state under its own name;
        `rounds`; training bytes `up` and `down` per client asked and round, and `bytes` in all; `steps`; `seconds` of
        training and aggregation; `error` of aggregation, mean over rounds, None where unknown; and the `curve`, a point
        per state.
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
        **{k: points[-1][k] for k in ("bytes", "steps", "seconds")},
        "error": fmean(errors) if errors else None,
        "curve": points,
    }


def curve(lines: Sequence[Line], steps: int) -> list[dict[str, Any]]:
    """A point per state: what was measured there (None if it was not), and what it has taken to get there."""
    points: list[dict[str, Any]] = []
    names = dict.fromkeys([LOSS.name, ACCURACY.name, *columns.occurring(lines), "aggregation_error"])
    spent, seconds = 0, 0.0
    for line in lines:
        if "round" in line:
            spent, seconds = spent + metric_log.traffic(line), seconds + metric_log.seconds(line)
        measured = {k: line.get(k) for k in names}
        taken = {"bytes": spent, "steps": line["version"] * steps, "seconds": seconds}
        points.append({"version": line["version"], **measured, **taken})
    return points


def mean(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The mean of every number, over those that have it; of the curves, at the states that all of them have."""
    keys = dict.fromkeys(k for r in results for k in r)
    found: dict[str, Any] = {k: _mean([r.get(k) for r in results]) for k in keys if k != "curve"}
    if "curve" in keys:
        points = [{p["version"]: p for p in r["curve"]} for r in results]
        shared = [v for v in points[0] if all(v in p for p in points)]
        found["curve"] = [mean([p[v] for p in points]) for v in shared]
    return found


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return fmean(known) if known else None


def row(method: str, results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A method's line of the table: means, and over seeds the spread (sample standard deviation) of what is learned."""
    full = [{k: v for k, v in r.items() if k != "curve"} | {"gain": r["before"] - r["after"]} for r in results]
    found = {"method": method, "seeds": len(full), **mean(full)}
    if len(full) > 1:
        learned = ["after", "gain", *columns.occurring(full)]
        found |= {f"{k}_sd": stdev([r[k] for r in full]) for k in learned if all(k in r for r in full)}
    return found


def shown_columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The columns of a table of these rows, from left to right."""
    metrics = columns.occurring(rows)
    return ["method", "before", "after", "gain", *metrics, "rounds", "up", "down", "bytes", "steps", "seconds", "error"]


def spare_columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Those that a narrow terminal can do without, the first first."""
    more = [name for name in columns.occurring(rows) if name != ACCURACY.name]
    return ["before", "steps", "gain", *more, "rounds", "seconds", ACCURACY.name, "error", "down", "up"]


def readable(rows: Sequence[Mapping[str, Any]], said: Mapping[str, Any] | None = None) -> list[dict[str, str]]:
    """The rows as a person reads them: mean ± spread, bytes with units.

    `said`: how metrics are shown, as a comparison has it under "columns"; None: as declared in this process.
    """
    shown = []
    for r in rows:
        cells = {"method": r["method"], "before": LOSS.short(r["before"])}
        looks = {"after": LOSS, "gain": LOSS, **{name: columns.of(name, said) for name in columns.measured(r)}}
        for k, look in looks.items():
            if r.get(k) is not None:
                cells[k] = look.short(r[k]) + (f" ± {look.short(r[k + '_sd'])}" if k + "_sd" in r else "")
        cells |= {k: f"{r[k]:.1f}".removesuffix(".0") for k in ("rounds", "steps")}
        cells |= {k: size(round(r[k])) if r[k] else "-" for k in ("up", "down", "bytes")}
        cells["seconds"] = f"{r['seconds']:.1f}"
        if any(other["error"] is not None for other in rows):
            cells["error"] = "-" if r["error"] is None else f"{r['error']:.1e}"
        shown.append(cells)
    return shown


def comparison(
    about: Mapping[str, Any],
    results: Mapping[str, Sequence[Mapping[str, Any]]],
    stopped: Mapping[str, str] | None = None,
    *,
    complete: bool = True,
    said: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """All of a race as one JSON object: race.json, and what the page shows.

    Args:
        about: what the runs have in common.
        results: of every method, one for each seed.
        stopped: why a method has no results.
        complete: whether no method is still to come.
        said: how metrics are shown, as files say it; others are shown as declared in this process.
    """
    measured = columns.occurring([r for of in results.values() for r in of])
    return {
        "version": 1,
        "complete": complete and not stopped,
        "stopped": dict(stopped or {}),
        "about": dict(about),
        "columns": columns.fields(measured, said),
        "rows": [row(label, of) for label, of in results.items()],
        "results": {label: [{k: v for k, v in r.items() if k != "curve"} for r in of] for label, of in results.items()},
        "curves": {label: [r["curve"] for r in of] for label, of in results.items()},
    }
