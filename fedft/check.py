"""Checks of our own arguments: one line that says what was found and what was wanted.

check.at_least(0, mu=mu)          ValueError: expected mu >= 0, got nan
"""

import math
from collections.abc import Collection
from difflib import get_close_matches


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
    """Raise ValueError unless every value lies in [low, high]."""
    for name, value in values.items():
        if not low <= value <= high:
            raise ValueError(f"expected {low} <= {name} <= {high}, got {value}")


def one_of(choices: Collection[str], **values: str) -> None:
    """Raise ValueError unless every value is one of `choices`; the nearest one is suggested."""
    for name, value in values.items():
        if value not in choices:
            raise ValueError(
                f"{name} is {value!r}, wanted one of {', '.join(sorted(choices))}{nearest(value, choices)}"
            )


def nearest(word: str, known: Collection[str]) -> str:
    """'; did you mean 'x'?' for the known word closest to `word`, or nothing."""
    close = get_close_matches(str(word), list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""
