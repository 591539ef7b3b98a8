"""Means of low-rank uploads of unlike ranks, on matrices small enough to work out by hand."""

import pytest
import torch

from fedft.aggregation.factor_means import padded_mean, stacked_mean
from fedft.update import Update

A, B = "m.lora_A", "m.lora_B"
ONE = Update({A: torch.tensor([[2.0, 0.0]]), B: torch.tensor([[4.0]]), "head": torch.tensor([1.0])}, 3)
TWO = Update({A: torch.eye(2), B: torch.tensor([[8.0, 4.0]]), "head": torch.tensor([5.0])}, 1)


def test_the_stack_is_the_mean_of_the_products():
    """Products (8, 0) and (8, 4), weights 3/4 and 1/4: (8, 1), as three ranks."""
    mean = stacked_mean(iter([ONE, TWO]))
    assert mean[A].shape == (3, 2)
    assert (mean[B] @ mean[A]).tolist() == [[8.0, 1.0]]
    assert mean["head"].tolist() == [2.0]


def test_the_padded_mean_is_factor_by_factor():
    """A: 3/4 (2, 0) + 1/4 (1, 0) and 1/4 (0, 1); B: 3/4 * 4 + 1/4 * 8 and 1/4 * 4."""
    mean = padded_mean(iter([ONE, TWO]))
    assert mean[A].tolist() == [[1.75, 0.0], [0.0, 0.25]]
    assert mean[B].tolist() == [[5.0, 1.0]]
    assert mean["head"].tolist() == [2.0]


@pytest.mark.parametrize("mean", [stacked_mean, padded_mean])
def test_nobody_has_no_mean(mean):
    with pytest.raises(ValueError, match="none"):
        mean(iter([]))
