"""The picture of loss against bytes, drawn from what a race has left:

    python docs/hooks/picture.py race/race.json > docs/loss-by-bytes.html

A figure to be put into a page as it is: its letters have the page's colour, light or dark, and each line carries its
name, so that no colour has to be told from another.
"""

import json
import math
import sys
from pathlib import Path
from typing import Any

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 480, 340, 40, 34, 14, 48
NAME = (54, 14)  # of the place that a name takes
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#B8860B", "#3FA0D8")
DASHES = ("", "7 3", "2 3", "9 3 2 3", "5 5", "1 4")


def main() -> None:
    """Write the figure of the race file named on the command line."""
    race = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    curves = {name: _mean(seeds) for name, seeds in race["curves"].items()}
    sys.stdout.write(figure({name: points for name, points in curves.items() if points}))


def figure(curves: dict[str, list[tuple[float, float]]]) -> str:
    """`<figure>` with an SVG of (bytes, loss) by method; bytes on a logarithmic scale.

    >>> "<svg" in figure({"fedit": [(1e3, 4.0), (1e6, 3.0)], "mezo": [(1e2, 5.0), (1e3, 4.5)]})
    True
    """
    every = [p for points in curves.values() for p in points]
    low, high = (math.log10(f(x for x, _ in every)) for f in (min, max))
    least, most = (math.floor(min(y for _, y in every) * 2) / 2, math.ceil(max(y for _, y in every) * 2) / 2)

    def at(x: float, y: float) -> tuple[float, float]:
        across = (math.log10(x) - low) / (high - low)
        return LEFT + across * (WIDTH - LEFT - RIGHT), TOP + (most - y) / (most - least) * (HEIGHT - TOP - BOTTOM)

    parts = []
    for n in range(round((most - least) * 2) + 1):
        y = at(10**low, least + n / 2)[1]
        parts.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="currentColor" stroke-opacity=".15"/>')
        parts.append(_text(LEFT - 8, y + 4, f"{least + n / 2:.1f}", "end"))
    for power in range(math.ceil(low), math.floor(high) + 1):
        x = at(10.0**power, least)[0]
        parts.append(f'<path d="M{x:.1f} {HEIGHT - BOTTOM}v5" stroke="currentColor"/>')
        parts.append(_text(x, HEIGHT - BOTTOM + 19, _size(power), "middle"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, "bytes so far, all clients, up and down", "middle"))
    names: list[tuple[float, float]] = []
    for (name, points), colour, dash in zip(curves.items(), COLOURS, DASHES, strict=False):
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*p) for p in points))
        dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in (at(*p) for p in points))
        shown = f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}"/>'
        x, y = at(*points[-1])
        names.append((x, _free(x, y + 18, names)))
        parts.append(f'{shown}<g fill="{colour}">{dots}</g>{_text(*names[-1], name, "middle")}')
    title = f"Held-out loss against bytes, {', '.join(curves)}"
    style = 'style="font: 13px sans-serif" fill="currentColor" stroke-width="1"'
    svg = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}" {style}>{"".join(parts)}</svg>'
    return f"<figure>{svg}<figcaption>Held-out loss against bytes. A dot is a round.</figcaption></figure>\n"


def _mean(seeds: list[list[dict[str, Any]]]) -> list[tuple[float, float]]:
    """(bytes, loss) of each round that sent something, mean over seeds."""
    rounds = [of for of in zip(*seeds, strict=True) if all(p["loss"] is not None and p["bytes"] for p in of)]
    return [tuple(sum(p[key] for p in of) / len(of) for key in ("bytes", "loss")) for of in rounds]  # type: ignore[misc]


def _free(x: float, y: float, taken: list[tuple[float, float]]) -> float:
    """The nearest height from y on down at which a name lies on none that is written already."""
    while any(abs(x - other) < NAME[0] and abs(y - height) < NAME[1] for other, height in taken):
        y += 1
    return y


def _size(power: int) -> str:
    """10^power bytes in words."""
    unit = ("B", "kB", "MB", "GB", "TB")[power // 3]
    return f"{10 ** (power % 3)} {unit}"


def _text(x: float, y: float, said: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{said}</text>'


if __name__ == "__main__":
    main()
