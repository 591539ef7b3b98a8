"""Means of low-rank uploads of unlike ranks, on matrices small enough to work out by hand."""

from collections.abc import Iterator

import pytest
import torch

from fedft.aggregation.factor_means import padded_mean, stacked_mean
from fedft.benchmarks.measure import Peak
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


def test_stacking_takes_the_memory_of_the_stacks_and_of_one_update():
    """30 clients of rank 4 in 3 modules of 64 x 64, each made when it is asked for: never all of them and a copy."""
    modules, rank, width, clients = 3, 4, 64, 30

    def coming() -> Iterator[Update]:
        return (update(k) for k in range(clients))

    def update(k: int) -> Update:
        pairs = {f"{m}.lora_A": torch.randn(rank, width) for m in range(modules)}
        pairs |= {f"{m}.lora_B": torch.randn(width, rank) for m in range(modules)}
        return Update(pairs, k + 1, cohort=clients)

    with Peak() as live:
        mean = stacked_mean(coming())
    stacks = sum(x.nbytes for x in mean.values())
    assert stacks == 4 * clients * modules * rank * 2 * width
    assert stacks < live.most <= stacks + 1.2 * stacks / clients


@pytest.mark.parametrize("mean", [stacked_mean, padded_mean])
def test_nobody_has_no_mean(mean):
    with pytest.raises(ValueError, match="none"):
        mean(iter([]))
