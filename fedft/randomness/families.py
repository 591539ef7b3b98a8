"""The families of random directions by name."""

from __future__ import annotations

from collections.abc import Callable

from fedft import check
from fedft.randomness.directions import Directions

FAMILIES = ("gaussian", "hadamard", "rademacher")
LARGEST_ENTRY = {"gaussian": 6.7, "hadamard": 1.0, "rademacher": 1.0}


def make(family: str, seed: int, count: int) -> Directions:
    """`count` shared directions of a family, for every tensor: the same ones wherever family, seed and count are equal.

    Args:
        family: one of FAMILIES.
        seed: 0 .. 2^64 - 1.
        count: K >= 1; at most 4096 for "hadamard".
    Raises:
        ValueError: an argument outside these bounds.

    >>> z = make("rademacher", seed=7, count=4)
    >>> z.direction("layers.0.q.weight", 2, (2, 3)).tolist()
    [[1.0, 1.0, -1.0], [-1.0, 1.0, 1.0]]
    """
    check.one_of(FAMILIES, family=family)
    from fedft.randomness.hadamard import Hadamard
    from fedft.randomness.independent import Gaussian, Rademacher

    families: dict[str, Callable[[int, int], Directions]]
    families = {"gaussian": Gaussian, "hadamard": Hadamard, "rademacher": Rademacher}
    return families[family](seed, count)
