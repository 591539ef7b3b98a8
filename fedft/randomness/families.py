"""The families of random directions by name."""

from __future__ import annotations

from collections.abc import Callable

from fedft import check
from fedft.randomness.directions import Directions

FAMILIES = ("gaussian", "hadamard", "rademacher")


def make(family: str, seed: int, count: int) -> Directions:
    """`count` directions of one of FAMILIES; `seed` in 0 .. 2^64 - 1. Raises ValueError for another family or seed."""
    check.one_of(FAMILIES, family=family)
    from fedft.randomness.hadamard import Hadamard
    from fedft.randomness.independent import Gaussian, Rademacher

    families: dict[str, Callable[[int, int], Directions]]
    families = {"gaussian": Gaussian, "hadamard": Hadamard, "rademacher": Rademacher}
    return families[family](seed, count)
