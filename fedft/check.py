"""Checks of our own arguments: one line that says what was found and what was wanted.

>>> at_least(0, mu=float("nan"))
Traceback (most recent call last):
    ...
ValueError: expected mu >= 0, got nan
"""

import math
import re
import types
import typing
from collections.abc import Collection, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

QUOTED = 80  # characters of a value in an error message: some values are whole tables
LONGEST = 1000  # characters of a text of numbers: a job may come from somebody else
FROM_TOML = (str, int, float, bool, list, dict, typing.Literal)


def at_least(low: float, **values: float) -> None:
    """Raise ValueError unless every value is a finite number >= `low`."""
    for name, value in values.items():
        if not (math.isfinite(value) and value >= low):
            raise ValueError(f"expected {name} >= {low}, got {value}")


def above(low: float, **values: float) -> None:
    """Raise ValueError unless every value is a finite number > `low`."""
    for name, value in values.items():
        if not (math.isfinite(value) and value > low):
            raise ValueError(f"expected {name} > {low}, got {value}")


def between(low: float, high: float, **values: float) -> None:
    """Raise ValueError unless every value lies in [low, high]; NaN lies nowhere."""
    for name, value in values.items():
        if not low <= value <= high:
            raise ValueError(f"expected {low} <= {name} <= {high}, got {value}")


def expression(name: str, text: str) -> None:
    """Raise ValueError where a text is no regular expression."""
    try:
        re.compile(text)
    except (re.error, OverflowError, RecursionError) as e:
        raise ValueError(f"{name}: {text!r:.80} is no regular expression: {e}") from e


def number_ranges(name: str, text: str) -> list[range]:
    """The numbers in a text of numbers and ranges, both ends included; ValueError where it is none.

    >>> number_ranges("layers", "0-3, 8")
    [range(0, 4), range(8, 9)]
    """
    if len(text) > LONGEST:
        raise ValueError(f"{name} is {quoted(text)}, wanted at most {LONGEST} characters")
    found = [re.fullmatch(r"\s*(\d{1,6})\s*(?:-\s*(\d{1,6})\s*)?", part) for part in text.split(",")]
    ranges = [range(int(m[1]), int(m[2] or m[1]) + 1) for m in found if m]
    if len(ranges) < len(found) or not all(ranges):
        raise ValueError(f"{name} is {quoted(text)}, wanted numbers and ranges from low to high, as in '0-3, 8'")
    return ranges


def named_number(text: str, names: Collection[str]) -> tuple[str, float]:
    """(name, number) of a text "name=number"; the number is NaN where it is none, or the name none of these.

    >>> named_number("steps=400", ["steps"]), named_number("step=400", ["steps"])
    (('steps', 400.0), ('step', nan))
    """
    name, equals, number = text.partition("=")
    try:
        return name, float(number) if equals and name in names else math.nan
    except ValueError:
        return name, math.nan


def one_of(choices: Collection[str], **values: str) -> None:
    """Raise ValueError unless every value is one of `choices`; the message suggests the nearest choice.

    >>> one_of(("natural", "iid"), how="idd")
    Traceback (most recent call last):
        ...
    ValueError: how is 'idd', wanted one of iid, natural; did you mean 'iid'?
    """
    for name, value in values.items():
        if value not in choices:
            raise ValueError(
                f"{name} is {quoted(value)}, wanted one of {', '.join(sorted(choices))}{nearest(value, choices)}"
            )


def typed(hint: Any, value: Any, name: str) -> Any:
    """`value` if it has the type `hint`, else ValueError, which calls it `name`.

    An integer may stand for a float, and is returned as one; a boolean stands for no number. Lists and dictionaries are
    checked entry by entry. A hint that no run file can hold, such as a class of ours, takes None only.

    >>> typed(float | None, 3, "alpha")
    3.0
    >>> typed(list[int], [1, "2"], "ranks")
    Traceback (most recent call last):
        ...
    ValueError: ranks is '2', wanted int
    """
    options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    for option in options:
        origin, args = typing.get_origin(option), typing.get_args(option)
        if option in (Any, object) or (value is None and option in (None, type(None))):
            return value
        if origin is typing.Literal and any(value == a and type(value) is type(a) for a in args):
            return value
        if option is float and type(value) is int and abs(value) < 2**1023:
            return float(value)
        if origin is list and isinstance(value, list):
            return [typed(args[0], v, name) for v in value]
        if origin is dict and isinstance(value, dict):
            return {k: typed(args[1], v, name) for k, v in value.items()}
        if option in FROM_TOML and isinstance(value, option) and (option is bool) == isinstance(value, bool):
            return value
    wanted = " or ".join(_said(o) for o in options if o not in (None, type(None)))
    if not any((typing.get_origin(o) or o) in FROM_TOML for o in options):
        raise ValueError(f"{name} is {quoted(value)}, but {wanted} cannot be written in a run file; leave it out")
    raise ValueError(f"{name} is {quoted(value)}, wanted {wanted}")


def _said(hint: Any) -> str:
    """A type in words for an error message."""
    if typing.get_origin(hint) is typing.Literal:
        return " or ".join(map(repr, typing.get_args(hint)))
    return getattr(hint, "__name__", str(hint))


def quoted(value: Any) -> str:
    """A value as an error message shows it: its `repr`, cut after 80 characters.

    >>> quoted("x" * 1000)[-24:]
    'xxx... (1002 characters)'
    """
    text = repr(value)
    return text if len(text) <= QUOTED else f"{text[:QUOTED]}... ({len(text)} characters)"


def few(names: Sequence[str], most: int = 3) -> str:
    """Names with commas between, the first so many of them.

    >>> few(["a", "b", "c"]), few(["a", "b", "c"], 2)
    ('a, b, c', 'a, b, ...')
    """
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def nearest(word: str, known: Collection[str]) -> str:
    """The end of an error message that suggests the known word closest to `word`; "" where none is close.

    >>> nearest("learning_rte", ["learning_rate", "steps"])
    "; did you mean 'learning_rate'?"
    """
    close = get_close_matches(str(word), list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def texts(value: Any) -> Iterator[str]:
    """Every text in a value, however deep in lists and tables; keys of tables are none.

    >>> list(texts(["a", 1, {"k": ("b", None)}]))
    ['a', 'b']
    """
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from texts(inner)
