"""Means of updates, one update in memory at a time."""

from collections.abc import Iterable

from torch import Tensor

from fedft.arithmetic import tensors
from fedft.update import Update


def mean(updates: Iterable[Update]) -> dict[str, Tensor]:
    """sum_k p_k delta_k with p_k = n_k / sum n_j over those who answered; one update in memory at a time."""
    return tensors.weighted_mean((u.delta, u.num_examples) for u in updates)


def uniform_mean(updates: Iterable[Update]) -> dict[str, Tensor]:
    """The plain mean over those who answered; one update in memory at a time."""
    return tensors.weighted_mean((u.delta, 1.0) for u in updates)
