"""A learning curve as an SVG inside a page: lines over rounds, drawn by the page's own colours, light or dark."""

from collections.abc import Callable, Sequence
from html import escape

WIDTH, HEIGHT = 480, 200
LEFT, RIGHT, TOP, BOTTOM = 86, 8, 12, 28  # margins, in which the numbers stand

Line = tuple[str, Sequence[tuple[float, float]]]
"""Its name, and its points (x, y), x rising."""


def figure(title: str, lines: Sequence[Line], text: Callable[[float], str]) -> str:
    """A figure, HTML text, of at most two lines over the same axes; "" where there is no point.

    Args:
        title: what is drawn, any text.
        lines: the first is drawn solid, the second dashed; the caption says which is which.
        text: how a value of y is written.
    """
    drawn = [(name, points) for name, points in lines if points]
    if not drawn:
        return ""
    xs, ys = ([p[i] for _, points in drawn for p in points] for i in (0, 1))
    (x0, x1), (y0, y1) = _span(xs), _span(ys)

    def place(point: tuple[float, float]) -> str:
        x = LEFT + (point[0] - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT)
        y = HEIGHT - BOTTOM - (point[1] - y0) / (y1 - y0) * (HEIGHT - TOP - BOTTOM)
        return f"{x:.1f},{y:.1f}"

    grid = ""
    for y in (y0, (y0 + y1) / 2, y1):
        at = float(place((x0, y)).partition(",")[2])
        grid += f'<path class="grid" d="M{LEFT} {at}H{WIDTH - RIGHT}"/>'
        grid += f'<text x="{LEFT - 6}" y="{at + 4}" text-anchor="end">{escape(text(y))}</text>'
    for x, anchor in ((x0, "start"), (x1, "end")):
        at = float(place((x, y0)).partition(",")[0])
        grid += f'<text x="{at}" y="{HEIGHT - 6}" text-anchor="{anchor}">{x:g}</text>'
    shapes = "".join(_shape(i, [place(p) for p in points]) for i, (_, points) in enumerate(drawn))
    told = "; ".join(f"{name} from {text(p[0][1])} to {text(p[-1][1])}" for name, p in drawn)
    key = ", ".join(f"<span class=line{i}>{escape(name)}</span>" for i, (name, _) in enumerate(drawn))
    return (
        f'<figure><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(f"{title}: {told}")}">'
        f"{grid}{shapes}</svg><figcaption>{escape(title)}: {key}</figcaption></figure>"
    )


def _shape(number: int, places: Sequence[str]) -> str:
    """A line through these places, with a dot at its end."""
    x, _, y = places[-1].partition(",")
    line = f'<polyline class="line{number}" points="{" ".join(places)}"/>'
    return f'{line}<circle class="dot{number}" cx="{x}" cy="{y}" r="3"/>'


def _span(values: Sequence[float]) -> tuple[float, float]:
    """The least and the largest of the values, apart from each other also where they are one."""
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - abs(low) / 10 - 0.5, high + abs(high) / 10 + 0.5)
