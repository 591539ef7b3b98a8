"""B fitted to a matrix while A stays: against dense least squares, and never worse than where it began."""

import pytest
import torch

from fedft.arithmetic import factor_fit
from fedft.arithmetic.lowrank import LowRank

OUT, IN, RANK = 7, 5, 3


def pair(seed: int, rank: int = RANK) -> LowRank:
    rng = torch.Generator().manual_seed(seed)
    return LowRank(torch.randn(rank, IN, generator=rng), torch.randn(OUT, rank, generator=rng))


def distance(c: torch.Tensor, a: torch.Tensor, target: LowRank) -> float:
    return float((target.double().dense() - c.double() @ a.double()).norm())


@pytest.mark.parametrize("rank", [1, 3, 5])
def test_least_squares_are_those_of_the_dense_matrices(rank):
    target, a = pair(1), pair(2, rank).A
    wanted = torch.linalg.lstsq(a.double().T, target.double().dense().T).solution.T
    assert torch.allclose(factor_fit.least_squares(target, a).double(), wanted, rtol=1e-5, atol=1e-6)


def test_least_squares_with_the_factor_that_was_there_give_the_other_back():
    target = pair(1)
    assert torch.allclose(factor_fit.least_squares(target, target.A), target.B, rtol=1e-5, atol=1e-6)


def test_ridge_without_a_weight_is_least_squares_and_with_a_great_one_stays():
    target, start = pair(1), pair(2)
    assert torch.allclose(
        factor_fit.ridge(target, start, 0.0), factor_fit.least_squares(target, start.A), rtol=1e-4, atol=1e-5
    )
    assert torch.allclose(factor_fit.ridge(target, start, 1e9), start.B, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("lam", [0.0, 0.01, 1.0])
def test_ridge_never_leads_away(lam):
    target, start = pair(1), pair(2)
    assert distance(factor_fit.ridge(target, start, lam), start.A, target) < distance(start.B, start.A, target)
    assert factor_fit.ridge(start, start, lam) is start.B  # nothing is missing


def test_the_cosine_grows_whatever_the_length():
    """C A points to D better than B A; with nothing to compare, B stays."""
    target, start = pair(1), pair(2)

    def cosine(c: torch.Tensor) -> float:
        d, product = target.double().dense(), c.double() @ start.A.double()
        return float((d * product).sum() / (d.norm() * product.norm()))

    found = [factor_fit.cosine(scale * target, start, 0.0) for scale in (1.0, 100.0)]
    assert all(cosine(c) > cosine(start.B) for c in found)
    assert torch.allclose(*found, rtol=1e-3, atol=1e-4)
    nothing = LowRank(start.A, torch.zeros_like(start.B))
    assert factor_fit.cosine(nothing, start, 0.0) is start.B
    assert factor_fit.cosine(target, nothing, 0.0) is nothing.B
