"""The import path of `fedft.arithmetic.lowrank`, `.named_pairs` and `.stacks` for strategies outside this package."""

from fedft.arithmetic.lowrank import (
    LowRank,
    inner,
    mean_factors,
    pad,
    pad_to_largest,
    padded_to,
    zero,
)
from fedft.arithmetic.named_pairs import cut, pairs_and_mean, replace_pairs, split, to_names
from fedft.arithmetic.stacks import mean_residual, stack

__all__ = [
    "LowRank", "cut", "inner", "mean_factors", "mean_residual", "pad", "pad_to_largest", "padded_to", "pairs_and_mean",
    "replace_pairs", "split", "stack", "to_names", "zero",
]  # fmt: skip
