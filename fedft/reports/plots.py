"""The figures of a comparison, each as the text of one SVG; needs matplotlib, which `fedft[report]` brings.

Lines are means over seeds, bands one standard deviation to either side. The seven colours are those of Okabe and Ito,
which colour-blind people can tell apart; from the eighth method on, dashes and markers tell as well.
"""

import importlib.util
import io
import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from fedft.reports import columns
from fedft.reports.quantities import size
from fedft.training.metrics.loss import LOSS

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", "-.", ":")
MARKERS = "os^DvPX*"
NEUTRAL = {"local": ("#767676", ":", ""), "central": ("#767676", "--", "")}  # baselines, without a marker
FLOOR = 1e-9  # where an error of zero is drawn on a logarithmic scale
SETTINGS: dict[Any, Any] = {
    "svg.hashsalt": "fedft",  # the same figure is the same bytes
    "font.size": 9,
    "axes.edgecolor": "#9a9a9a",
    "axes.labelcolor": "#333333",
    "axes.titlecolor": "#333333",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#ececec",
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "lines.linewidth": 1.4,
    "lines.markersize": 4,
}
Point = Mapping[str, Any]
"""A point of a learning curve; see `run_result.curve`."""
Style = tuple[str, str, str]
"""(colour, dashes, marker), as matplotlib calls them."""


def available() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def over_rounds(values: Mapping[int, float], name: str) -> Any:
    """A figure (`matplotlib.figure.Figure`) of one quantity over the rounds of one run; a notebook shows it."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(SETTINGS):
        figure = Figure(figsize=(5, 3), layout="constrained")
        axes = figure.subplots()
        axes.plot([*values], [*values.values()], color=PALETTE[0], marker=MARKERS[0])
        axes.set(xlabel="round", ylabel=name)
    return figure


def styles(labels: Sequence[str]) -> dict[str, Style]:
    """The style of each method by its label; `local` and `central` are grey."""
    found, i = {}, 0
    for label in labels:
        if label in NEUTRAL:
            found[label] = NEUTRAL[label]
        else:
            found[label] = PALETTE[i % 7], DASHES[i // 7 % 4], MARKERS[i % 8]
            i += 1
    return found


def figures(comparison: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(caption, SVG) of each figure for which a comparison (`comparison.compare`) has numbers."""
    curves, look = comparison["curves"], styles(list(comparison["curves"]))

    def draw(x: str, y: str, at: str, beside: str = "held-out loss") -> str:
        return _draw(curves, look, x, y, (at, beside))

    found = [
        ("Held-out loss by round", draw("version", LOSS.name, "round")),
        ("Held-out loss by training traffic", draw("bytes", LOSS.name, "bytes, all clients, up and down")),
        ("Held-out loss by time", draw("seconds", LOSS.name, "seconds of training and aggregation")),
    ]
    for name in columns.occurring(p for of in curves.values() for c in of for p in c):
        if name != LOSS.name:
            c = columns.of(name, comparison.get("columns"))
            caption = f"{c.heading[:1].upper()}{c.heading[1:]} by round"
            found.append((caption, draw("version", name, "round", c.label)))
    found.append(("Final loss and what it took", _ends(comparison["rows"], look)))
    if any(p["aggregation_error"] is not None for of in curves.values() for c in of for p in c):
        caption = "Relative error of aggregation by round"
        found.append((caption, draw("version", "aggregation_error", "round", "|applied - exact| / |exact|")))
    return found


def series(seeds: Sequence[Sequence[Point]], x: str, y: str) -> list[tuple[float, float, float]]:
    """(mean x, mean y, standard deviation of y) over seeds, for each version at which every seed has a `y`.

    >>> one, two = ([{"version": 0, "loss": x}] for x in (1.0, 3.0))
    >>> [(x, y, round(spread, 3)) for x, y, spread in series([one, two], "version", "loss")]
    [(0.0, 2.0, 1.414)]
    """
    points = [{p["version"]: p for p in curve if p.get(y) is not None} for curve in seeds]
    found = []
    for version in points[0] if points else ():
        if all(version in of for of in points):
            ys = [of[version][y] for of in points]
            found.append((fmean(of[version][x] for of in points), fmean(ys), stdev(ys) if len(ys) > 1 else 0.0))
    return found


def _draw(
    curves: Mapping[str, Sequence[Sequence[Point]]], look: Mapping[str, Style], x: str, y: str, names: tuple[str, str]
) -> str:
    """`y` against `x`: a line and a band for each method, a level line for one that sends nothing.

    `names`: the labels of the two axes.
    """
    from matplotlib.ticker import MaxNLocator

    def draw(axes: Any) -> None:
        axes.set_xlabel(names[0])
        axes.set_ylabel(names[1].replace("$", r"\$"))  # a heading is text, not mathematics
        if x == "bytes":
            _in_bytes(axes, [p[x] for seeds in curves.values() for of in seeds for p in of])
        if x == "version":
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if y == "aggregation_error":
            axes.set_yscale("log")
        for label, seeds in curves.items():
            colour, dashes, marker = look[label]
            of = series(seeds, x, y)
            if x == "bytes" and of and not of[-1][0]:
                axes.axhline(of[-1][1], color=colour, linestyle=dashes)
                continue
            of = [p for p in of if x != "bytes" or p[0]]
            if y == "aggregation_error":
                of = [(at, max(mean, FLOOR), spread) for at, mean, spread in of]
            if not of:
                continue
            xs, ys, spread = zip(*of, strict=True)
            few = max(1, math.ceil(len(xs) / 8))
            face = {"mfc": colour if dashes == "-" else "white", "mew": 0.8}
            axes.plot(xs, ys, color=colour, linestyle=dashes, marker=marker, markevery=few, **face)
            if any(spread):
                low = [
                    max(m - s, m / 10 if y == "aggregation_error" else m - s) for m, s in zip(ys, spread, strict=True)
                ]
                high = [m + s for m, s in zip(ys, spread, strict=True)]
                axes.fill_between(xs, low, high, color=colour, alpha=0.12 if marker else 0.07, linewidth=0)

    return _svg(draw)


def _in_bytes(axes: Any, values: Sequence[float]) -> None:
    """Make the x axis logarithmic, in bytes with units, with room for these values."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0), numticks=7))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda n, _: size(round(n)).replace(".0 ", " ")))
    axes.xaxis.set_minor_formatter(NullFormatter())
    if (some := [n for n in values if n > 0]) and min(some) == max(some):  # a logarithm has no room around one point
        axes.set_xlim(some[0] / 3, some[0] * 3)


def _ends(rows: Sequence[Mapping[str, Any]], look: Mapping[str, Style]) -> str:
    """Final loss against total bytes; a band for a method that sends nothing."""

    def draw(axes: Any) -> None:
        _in_bytes(axes, [row["bytes"] for row in rows])
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

    return _svg(draw)


def against(pairs: Sequence[tuple[float, float]]) -> str:
    """The SVG of (predicted, measured) seconds, all above 0, as dots, with the line on which they are equal."""

    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    def draw(axes: Any) -> None:
        ends = [min(min(p) for p in pairs) / 1.5, max(max(p) for p in pairs) * 1.5]
        axes.set(
            xscale="log", yscale="log", xlim=ends, ylim=ends, xlabel="predicted seconds", ylabel="measured seconds"
        )
        axes.plot(ends, ends, color="#9a9a9a", linewidth=0.8)
        axes.plot(*zip(*pairs, strict=True), color=PALETTE[0], marker="o", linestyle="", alpha=0.5)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(subs=(1.0, 3.0), numticks=7))
            axis.set_major_formatter(FuncFormatter(lambda seconds, _: f"{seconds:g}"))
            axis.set_minor_formatter(NullFormatter())

    return _svg(draw, inches=(3.6, 3.4))


def swatch(style: Style) -> str:
    """The SVG of a piece of a method's line, for the key."""
    return _svg(lambda axes: _piece(axes, style), inches=(0.42, 0.14), bare=True)


def _piece(axes: Any, style: Style) -> None:
    """Draw a short line with one marker."""
    colour, dashes, marker = style
    axes.plot([0, 1, 2], [0, 0, 0], color=colour, linestyle=dashes)
    axes.plot([1], [0], color=colour, marker=marker, mfc=colour if dashes == "-" else "white", linestyle="")
    axes.set_axis_off()


def _svg(draw: Callable[[Any], None], inches: tuple[float, float] = (5.0, 3.4), bare: bool = False) -> str:
    """The SVG of what `draw` draws into axes; `bare`: without margins. The same drawing gives the same bytes."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with rc_context(SETTINGS):
        figure = Figure(figsize=inches, layout=None if bare else "constrained")
        FigureCanvasSVG(figure)
        draw(figure.add_axes((0, 0, 1, 1)) if bare else figure.add_subplot())
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    return text.getvalue()
