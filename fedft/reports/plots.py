"""How figures look, and the text of one SVG for what is drawn; needs matplotlib, which `fedft[report]` brings.

The seven colours are those of Okabe and Ito, which colour-blind people can tell apart; dashes and markers tell methods
apart as well, in print without colours too. The figures of a comparison are in `race_figures.py`.
"""

import importlib.util
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fedft.reports.quantities import size

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", "-.", ":")
MARKERS = "os^DvPX*"
NEUTRAL = {"local": ("#767676", ":", ""), "central": ("#767676", "--", "")}  # baselines, without a marker
SETTINGS: dict[Any, Any] = {
    "svg.hashsalt": "fedft",  # the same figure is the same bytes
    "font.size": 9,
    "axes.edgecolor": "#8a8a8a",
    "axes.labelcolor": "#333333",
    "axes.titlecolor": "#333333",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dedede",
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "lines.linewidth": 1.6,
    "lines.markersize": 4,
}
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
            found[label] = PALETTE[i % 7], DASHES[i % 4], MARKERS[i % 8]
            i += 1
    return found


def in_bytes(axes: Any, values: Sequence[float]) -> None:
    """Make the x axis logarithmic, in bytes with units, with room for these values."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0), numticks=7))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda n, _: size(round(n)).replace(".0 ", " ")))
    axes.xaxis.set_minor_formatter(NullFormatter())
    if (some := [n for n in values if n > 0]) and min(some) == max(some):  # a logarithm has no room around one point
        axes.set_xlim(some[0] / 3, some[0] * 3)


def in_rounds(axes: Any) -> None:
    """Make the ticks of the x axis whole numbers."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


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

    return svg(draw, inches=(3.6, 3.4))


def swatch(style: Style) -> str:
    """The SVG of a piece of a method's line, for the key."""
    return svg(lambda axes: _piece(axes, style), inches=(0.42, 0.14), bare=True)


def _piece(axes: Any, style: Style) -> None:
    """Draw a short line with one marker."""
    colour, dashes, marker = style
    axes.plot([0, 1, 2], [0, 0, 0], color=colour, linestyle=dashes)
    axes.plot([1], [0], color=colour, marker=marker, mfc=colour if dashes == "-" else "white", linestyle="")
    axes.set_axis_off()


def svg(draw: Callable[[Any], None], inches: tuple[float, float] = (5.0, 3.4), bare: bool = False) -> str:
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
