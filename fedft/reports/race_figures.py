"""The figures of a comparison: learning curves by round and by cost, where they end, and who gains.

Lines are means over seeds, bands one standard deviation to either side. What an axis leaves out is said under it.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, median, stdev
from typing import Any, NamedTuple

from fedft.reports import columns, energy, plots
from fedft.reports.plots import Style
from fedft.training.metrics.loss import LOSS

FLOOR = 1e-9  # where an error of zero is drawn on a logarithmic scale
ROOM = 0.25  # above the first losses, as a share of what was learned; what is higher is left out
Point = Mapping[str, Any]
"""A point of a learning curve; see `run_result.curve`."""
Curves = Mapping[str, Sequence[Sequence[Point]]]
"""Learning curves by method and seed."""


class Figure(NamedTuple):
    """One figure."""

    caption: str
    svg: str
    note: str = ""
    """What its axes leave out, or draw elsewhere than it is."""


class Axis(NamedTuple):
    """What is on one axis: a number of the points, how it is called, and what it is multiplied by."""

    name: str
    label: str
    scale: float = 1.0


def of_loss(comparison: Mapping[str, Any]) -> dict[str, Figure]:
    """The curves of the held-out loss by what they are drawn over: round, bytes, time, and energy where it is known."""
    axes = {
        "round": Axis("version", "round"),
        "bytes": Axis("bytes", "bytes, all clients, up and down"),
        "time": Axis("seconds", "seconds of training and aggregation"),
    }
    if comparison.get("watts") and any("work" in p for p in _points(comparison["curves"])):
        per_second = energy.watt_hours(1.0, comparison["watts"])
        axes["energy"] = Axis("work", "energy, Wh, estimated", per_second)
    said = {"bytes": "training traffic", "energy": "energy (an estimate)"}
    loss = Axis(LOSS.name, "held-out loss")
    return {
        name: _curves(f"Held-out loss by {said.get(name, name)}", comparison["curves"], x, loss)
        for name, x in axes.items()
    }


def others(comparison: Mapping[str, Any]) -> list[Figure]:
    """The other figures of a comparison: a metric each by round, the ends of all methods, errors of aggregation."""
    curves = comparison["curves"]
    by_round = Axis("version", "round")
    found = []
    for name in columns.occurring(_points(curves)):
        if name != LOSS.name:
            c = columns.of(name, comparison.get("columns"))
            caption = f"{c.heading[:1].upper()}{c.heading[1:]} by round"
            found.append(_curves(caption, curves, by_round, Axis(name, c.label)))
    found.append(_ends(comparison["rows"], plots.styles(list(curves))))
    if any(p["aggregation_error"] is not None for p in _points(curves)):
        error = Axis("aggregation_error", "|applied - exact| / |exact|")
        found.append(_curves("Relative error of aggregation by round", curves, by_round, error))
    return found


def _points(curves: Curves) -> list[Point]:
    return [p for of in curves.values() for c in of for p in c]


def series(seeds: Sequence[Sequence[Point]], x: str, y: str) -> list[tuple[float, float, float]]:
    """(mean x, mean y, standard deviation of y) over seeds, for each version at which every seed has both.

    >>> one, two = ([{"version": 0, "loss": x}] for x in (1.0, 3.0))
    >>> [(x, y, round(spread, 3)) for x, y, spread in series([one, two], "version", "loss")]
    [(0.0, 2.0, 1.414)]
    """
    points = [{p["version"]: p for p in curve if p.get(y) is not None and p.get(x) is not None} for curve in seeds]
    found = []
    for version in points[0] if points else ():
        if all(version in of for of in points):
            ys = [of[version][y] for of in points]
            found.append((fmean(of[version][x] for of in points), fmean(ys), stdev(ys) if len(ys) > 1 else 0.0))
    return found


def _curves(caption: str, curves: Curves, x: Axis, y: Axis) -> Figure:
    """`y` against `x`: a line and a band for each method, a level line for one that sends nothing."""
    look = plots.styles(list(curves))
    of = {label: series(seeds, x.name, y.name) for label, seeds in curves.items()}
    of = {label: line for label, line in of.items() if line}
    notes = []
    level = [label for label, line in of.items() if x.name == "bytes" and not line[-1][0]]
    if x.name == "bytes":
        notes.append("The axis is logarithmic and begins behind the first round, before which nothing was sent.")
    if level:
        notes.append(f"Level lines, where they ended: {', '.join(level)} sent nothing.")
    logarithmic = y.name == "aggregation_error"
    if logarithmic and any(mean < FLOOR for line in of.values() for _, mean, _ in line):
        notes.append("Errors below 1e-9 are drawn there.")
    top, above = _top(of) if y.name == LOSS.name else (None, 0)
    if top is not None:
        notes.append(f"The axis ends at {LOSS.short(top)}; points of curves above it: {above}.")

    def draw(axes: Any) -> None:
        axes.set_xlabel(x.label)
        axes.set_ylabel(y.label.replace("$", r"\$"))  # a heading is text, not mathematics
        if x.name == "bytes":
            plots.in_bytes(axes, [p["bytes"] for p in _points(curves)])
        if x.name == "version":
            plots.in_rounds(axes)
        if logarithmic:
            axes.set_yscale("log")
        for label, line in of.items():
            colour, dashes, _ = look[label]
            if label in level:
                axes.axhline(line[-1][1], color=colour, linestyle=dashes)
                continue
            shown = [(at * x.scale, mean, spread) for at, mean, spread in line if x.name != "bytes" or at]
            _line(axes, shown, look[label], logarithmic)
        if top is not None:
            axes.set_ylim(top=top)

    return Figure(caption, plots.svg(draw), " ".join(notes))


def _line(axes: Any, line: Sequence[tuple[float, float, float]], style: Style, logarithmic: bool) -> None:
    """Draw one method's means with a marker at some of them, and its band."""
    colour, dashes, marker = style
    if logarithmic:
        line = [(at, max(mean, FLOOR), spread) for at, mean, spread in line]
    if not line:
        return
    xs, ys, spread = zip(*line, strict=True)
    few = max(1, math.ceil(len(xs) / 8))
    face = {"mfc": colour if dashes == "-" else "white", "mew": 0.9}
    axes.plot(xs, ys, color=colour, linestyle=dashes, marker=marker, markevery=few, **face)
    if any(spread):
        low = [max(m - s, m / 10 if logarithmic else m - s) for m, s in zip(ys, spread, strict=True)]
        high = [m + s for m, s in zip(ys, spread, strict=True)]
        axes.fill_between(xs, low, high, color=colour, alpha=0.14 if marker else 0.08, linewidth=0)


def _top(of: Mapping[str, Sequence[tuple[float, float, float]]]) -> tuple[float | None, int]:
    """(where a loss axis ends so that a curve which diverged hides no other, how many points are above).

    (None, 0) where no point is so high.
    """
    if not of:
        return None, 0
    first, least = max(line[0][1] for line in of.values()), min(mean for line in of.values() for _, mean, _ in line)
    top = first + ROOM * (first - least)
    above = sum(mean > top for line in of.values() for _, mean, _ in line)
    return (top, above) if above and first > least else (None, 0)


def _ends(rows: Sequence[Mapping[str, Any]], look: Mapping[str, Style]) -> Figure:
    """Final loss against total bytes; a level line for a method that sends nothing."""

    def draw(axes: Any) -> None:
        plots.in_bytes(axes, [row["bytes"] for row in rows])
        axes.set_xlabel("bytes, all clients, up and down")
        axes.set_ylabel("held-out loss at the end")
        for row in rows:
            colour, dashes, marker = look[row["method"]]
            spread = row.get("after_sd", 0.0)
            if row["bytes"]:
                bar = {"elinewidth": 1, "capsize": 2, "linestyle": ""}
                face = colour if dashes == "-" else "white"  # as in the key: one colour is used twice
                axes.errorbar(
                    row["bytes"], row["after"], spread, color=colour, marker=marker, markersize=7, mfc=face, **bar
                )
            else:
                axes.axhline(row["after"], color=colour, linestyle=dashes)

    silent = [row["method"] for row in rows if not row["bytes"]]
    note = f"Level lines: {', '.join(silent)} sent nothing." if silent else ""
    return Figure("Final loss and what it took", plots.svg(draw), note)


def gains(differences: Mapping[str, Mapping[str, float]], labels: Sequence[str]) -> Figure:
    """A dot per client and method: its loss on its own held-out rows less that of training alone.

    Args:
        differences: by method and client, see `per_client.against_alone`.
        labels: all methods, in the order in which the key has them.
    """
    look = plots.styles(labels)

    def draw(axes: Any) -> None:
        axes.axvline(0, color="#8a8a8a", linewidth=1)
        for place, (method, of) in enumerate(differences.items()):
            colour, dashes, marker = look[method]
            values = sorted(of.values())
            # side by side where they would hide each other; a row is one unit high
            at = [place + 0.28 * ((n % 5) - 2) / 2 for n in range(len(values))]
            face = colour if dashes == "-" else "none"
            axes.plot(values, at, linestyle="", marker=marker or "o", color=colour, mfc=face, alpha=0.75, markersize=5)
            axes.plot([median(values)] * 2, [place - 0.4, place + 0.4], color=colour, linewidth=2.2)
        names = [name if len(name) <= 24 else f"{name[:23]}…" for name in differences]
        axes.set_yticks(range(len(names)), [name.replace("$", r"\$") for name in names])
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("loss less that of training alone:  < 0 gains, > 0 loses")

    svg = plots.svg(draw, inches=(6.4, 1.0 + 0.5 * len(differences)))
    return Figure("Each client's own held-out loss beside training alone", svg, "A dot is a client, a bar the median.")
