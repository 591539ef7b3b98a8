"""Stacks that grow as matrices come: the bits of putting all side by side, whether or not their number is known."""

import pytest
import torch

from fedft.arithmetic.lowrank import LowRank
from fedft.arithmetic.stacks import Stack, stack


def pairs(ranks: tuple[int, ...], o: int = 5, i: int = 7) -> list[tuple[LowRank, float]]:
    rng = torch.Generator().manual_seed(3)
    return [
        (LowRank(torch.randn(r, i, generator=rng), torch.randn(o, r, generator=rng)), k + 1)
        for k, r in enumerate(ranks)
    ]


@pytest.mark.parametrize("expected", [0, 1, 3, 40], ids=lambda n: f"{n} expected")
@pytest.mark.parametrize("ranks", [(2,), (0, 2), (3, 3, 3), (1, 8, 2), (2,) * 9], ids=str)
def test_it_has_the_bits_of_all_factors_side_by_side(ranks, expected):
    items = pairs(ranks)
    found = Stack(expected)
    for d, n in items:
        found.add(d, n)
    mean, total = found.mean(), sum(n for _, n in items)
    assert torch.equal(mean.A, torch.cat([d.A for d, _ in items]))
    assert torch.equal(mean.B, torch.cat([(d.B.double() * (n / total)).float() for d, n in items], dim=1))
    assert mean.A.is_contiguous()
    assert mean.B.is_contiguous()
    assert mean.A.untyped_storage().nbytes() == mean.A.nbytes  # room that was not needed is given back
    assert mean.B.untyped_storage().nbytes() == mean.B.nbytes


def test_what_is_added_is_not_changed_and_not_held():
    d, n = pairs((2,))[0]
    before = d.A.clone(), d.B.clone()
    mean = stack([(d, n), (d, 3.0)])
    mean.A.zero_()
    assert torch.equal(d.A, before[0])
    assert torch.equal(d.B, before[1])


def test_matrices_of_unlike_shapes_are_refused():
    with pytest.raises(ValueError, match=r"one shape, got \(5, 1\) behind \(5, 7\)"):
        stack([*pairs((2,)), *pairs((2,), i=1)])
