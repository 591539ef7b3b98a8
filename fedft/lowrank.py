"""The import path of `fedft.arithmetic.lowrank` for strategies outside this package."""

from fedft.arithmetic.lowrank import (
    LowRank,
    cut,
    gathered,
    inner,
    mean_factors,
    named,
    onto,
    pad,
    padded,
    replaced,
    split,
    stack,
    zero,
)

__all__ = [
    "LowRank",
    "cut",
    "gathered",
    "inner",
    "mean_factors",
    "named",
    "onto",
    "pad",
    "padded",
    "replaced",
    "split",
    "stack",
    "zero",
]
