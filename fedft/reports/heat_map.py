"""A table of small numbers as colours: one SVG, of plain rectangles and words, without a library.

The darker the larger. What has no number is left white; a cell with a frame alone has one that does not learn.
"""

from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

LIGHT, DARK = (
    (198, 219, 239),
    (8, 48, 107),
)  # one hue, so that lightness alone tells: also to the colour-blind, in print
NONE = "#e8e2da"  # of zero: no adapter there
LARGE, SMALL, MANY = 16, 7, 40  # sides of cells, and from how many on they are small
LETTER, LINE = 5.6, 11  # of the words, at 10 px
MOST = 48  # letters of a name


class Cell(NamedTuple):
    """One number."""

    value: float
    learns: bool = True


def colours(values: Sequence[float]) -> dict[float, str]:
    """A colour for each of these numbers, in equal steps from the least to the largest; zero has its own.

    >>> colours([0, 4, 8])
    {0: '#e8e2da', 4: '#c6dbef', 8: '#08306b'}
    """
    found = sorted({*values} - {0})
    steps = {v: n / (len(found) - 1) if len(found) > 1 else 0.6 for n, v in enumerate(found)}
    mixed = {v: [round(a + (b - a) * at) for a, b in zip(LIGHT, DARK, strict=True)] for v, at in steps.items()}
    zero: dict[float, str] = {0: NONE} if 0 in values else {}
    return {**zero, **{v: "#{:02x}{:02x}{:02x}".format(*rgb) for v, rgb in mixed.items()}}


def heat_map(
    rows: Sequence[str], columns: Sequence[str], cells: Mapping[tuple[str, str], Cell], across: str = ""
) -> str:
    """The SVG of the numbers in `cells` by (row, column), from top to bottom and left to right, with a key of colours.

    `across` says what the columns are, where there are too many to name each. Names of rows and columns are text, and
    may be anything.
    """
    side = SMALL if max(len(rows), len(columns)) > MANY else LARGE
    named = [_short(name) for name in columns] if side == LARGE else []
    left = 8 + LETTER * max((len(_short(name)) for name in rows), default=0)
    top = 8 + max((LETTER * len(name) for name in named), default=LINE)
    look = colours([c.value for c in cells.values()])
    width, height = left + side * len(columns) + 60, top + side * len(rows) + 3.2 * LINE
    parts = []
    for y, row in enumerate(rows):
        if side == LARGE or y % 2 == 0:
            parts.append(_text(_short(row), left - 4, top + side * (y + 0.5) + 3, end=True))
        parts += _cells(row, columns, cells, look, (left, top + side * y), side)
    parts += [_text(name, left + side * (x + 0.5) + 3, top - 4, turned=True) for x, name in enumerate(named)]
    if not named:
        parts.append(_text(across, left, top - 4))
    at = left
    for value, colour in look.items():
        parts.append(f'<rect x="{at:g}" y="{height - 16:g}" width="12" height="12" fill="{colour}"/>')
        parts.append(_text(f"{value:g}", at + 16, height - 6))
        at += 26 + LETTER * len(f"{value:g}")
    width = max(width, at)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:g}" '
        f'viewBox="0 0 {width:g} {height:g}" font-family="sans-serif" font-size="10" fill="#333">{"".join(parts)}</svg>'
    )


def _cells(
    row: str,
    columns: Sequence[str],
    cells: Mapping[tuple[str, str], Cell],
    look: Mapping[float, str],
    corner: tuple[float, float],
    side: int,
) -> list[str]:
    """The rectangles of one row, whose first cell has its upper left corner there."""
    found = []
    for x, column in enumerate(columns):
        if (cell := cells.get((row, column))) is None:
            continue
        colour, at = look[cell.value], corner[0] + side * x
        if cell.learns:
            shape = f'x="{at:g}" y="{corner[1]:g}" width="{side - 1}" height="{side - 1}" fill="{colour}"'
        else:
            frame = f'width="{side - 3}" height="{side - 3}" fill="none" stroke="{colour}"'
            shape = f'x="{at + 1:g}" y="{corner[1] + 1:g}" {frame}'
        found.append(f"<rect {shape}/>")
    return found


def _text(words: str, x: float, y: float, *, end: bool = False, turned: bool = False) -> str:
    place = f'transform="translate({x:g} {y:g}) rotate(-90)"' if turned else f'x="{x:g}" y="{y:g}"'
    return f"<text {place}{' text-anchor=' + chr(34) + 'end' + chr(34) if end else ''}>{escape(words)}</text>"


def _short(name: str) -> str:
    """A name, of a long one the end: what tells modules apart stands there."""
    return name if len(name) <= MOST else f"…{name[-MOST + 1 :]}"
