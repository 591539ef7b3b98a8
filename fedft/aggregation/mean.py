"""Means of updates, one update in memory at a time."""

from collections.abc import Iterable

from torch import Tensor

from fedft.arithmetic import tensors
from fedft.arithmetic.tensors import Tensors
from fedft.update import Update


def mean(updates: Iterable[Update]) -> dict[str, Tensor]:
    """sum_k p_k delta_k with p_k = n_k / sum n_j, by name over those who sent it; one update in memory at a time."""
    return tensors.weighted_mean(map(_by_examples, updates), by_name=True)  # holds no update while the next is made


def uniform_mean(updates: Iterable[Update]) -> dict[str, Tensor]:
    """The plain mean, by name over those who sent it; one update in memory at a time."""
    return tensors.weighted_mean(map(_uniform, updates), by_name=True)


def _by_examples(u: Update) -> tuple[Tensors, float]:
    return u.delta, u.num_examples


def _uniform(u: Update) -> tuple[Tensors, float]:
    return u.delta, 1.0
