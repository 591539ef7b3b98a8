"""Methods side by side: a row per method from the results of its runs, and all of it as one JSON object.

compare(about, {"fedit": [result of seed 0, result of seed 1], "flora": [...]})          results: see `run_result`
"""

from collections.abc import Mapping, Sequence
from statistics import stdev
from typing import Any

from fedft.reports import columns, energy, paired, per_client
from fedft.reports.quantities import size
from fedft.reports.run_result import NO_NUMBERS, Result, mean
from fedft.training.metrics.loss import ACCURACY, LOSS

BASELINES = ("local", "central")
"""Methods without federation: every client trained alone, and one model on all rows in one place."""

COSTS = ("up", "down", "bytes", "steps", "seconds", "energy")
LEGEND = "before, after and gain: held-out loss, mean over clients; token loss: over all held-out tokens, rows or pairs"


def row(method: str, results: Sequence[Result]) -> dict[str, Any]:
    """A method's row of the table: the mean of every number over its runs, one run per seed.

    Returns:
        The numbers that a `result` has, and `method`, `seeds` (how many runs), `gain` (loss before - after); over
        several seeds `<name>_sd`, the sample standard deviation, of the loss after, the gain and every metric.
    """
    full = [{k: v for k, v in r.items() if k not in NO_NUMBERS} | {"gain": r["before"] - r["after"]} for r in results]
    found = {"method": method, "seeds": len(full), **mean(full)}
    if len(full) > 1:
        learned = ["after", "gain", *columns.occurring(full)]
        found |= {f"{k}_sd": stdev([r[k] for r in full]) for k in learned if all(k in r for r in full)}
    return found


def shown_columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of the columns of a table of these rows, from left to right."""
    metrics = columns.occurring(rows)
    return ["method", "before", "after", "gain", *metrics, "rounds", *COSTS, "error"]


def spare_columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of columns that a narrow terminal leaves out, the first one first."""
    more = [name for name in columns.occurring(rows) if name != ACCURACY.name]
    return ["before", "steps", "gain", *more, "rounds", "seconds", ACCURACY.name, "energy", "error", "down", "up"]


def readable(comparison: Mapping[str, Any]) -> list[dict[str, str]]:
    """The rows of a comparison as text: mean ± standard deviation, bytes with units, "-" for what is not known."""
    rows, said = comparison["rows"], comparison.get("columns")
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
        if "work" in r and comparison.get("watts"):
            cells["energy"] = f"{energy.watt_hours(r['work'], comparison['watts']):.2g} Wh"
        if any(other["error"] is not None for other in rows):
            cells["error"] = "-" if r["error"] is None else f"{r['error']:.1e}"
        shown.append(cells)
    return shown


def compare(
    about: Mapping[str, Any],
    results: Mapping[str, Sequence[Result]],
    stopped: Mapping[str, str] | None = None,
    *,
    complete: bool = True,
    said: Mapping[str, Any] | None = None,
    watts: float | None = None,
    against: str | None = None,
    tuning: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The methods side by side as one JSON object: race.json has it, the HTML page shows it.

    Args:
        about: settings that the runs have in common, by name.
        results: the results of each method, one per seed; their curves are kept apart.
        stopped: why a method has no results, by method.
        complete: whether no method is still to come.
        said: how metrics are shown, as files say it; others are shown as declared in this process.
        watts: that a machine at work is assumed to draw; None: no energy is estimated.
        against: the method that others are compared with in pairs; None, or one without results: the best.
        tuning: how settings were chosen, see `fedft.simulations.race`; None: they were not.
    Returns:
        version, complete, stopped, about, columns (how each metric is shown), watts, tuning, rows (see `row`), against,
        picked (whether it was chosen by its loss), paired (see `paired.rows`), clients (see `per_client.rows`), results
        and curves.
    """
    measured = columns.occurring([r for of in results.values() for r in of])
    rows = [row(label, of) for label, of in results.items()]
    picked = against not in results
    reference = paired.best(rows, BASELINES) if picked else against
    return {
        "version": 1,
        "complete": complete and not stopped,
        "stopped": dict(stopped or {}),
        "about": dict(about),
        "columns": columns.fields(measured, said),
        "watts": watts,
        "tuning": dict(tuning or {}),
        "rows": rows,
        "against": reference,
        "picked": picked,
        "paired": paired.rows(results, reference) if reference is not None else [],
        "clients": per_client.rows(results),
        "results": {label: [{k: v for k, v in r.items() if k != "curve"} for r in of] for label, of in results.items()},
        "curves": {label: [r["curve"] for r in of] for label, of in results.items()},
    }
