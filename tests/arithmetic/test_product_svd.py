"""The two ways to the singular values of a product of tall factors, against each other and against the dense matrix."""

import pytest
import torch

from fedft.arithmetic import product_svd
from fedft.arithmetic.lowrank import LowRank
from fedft.arithmetic.stacks import stack


def pair(seed: int, rank: int, o: int = 7, i: int = 5) -> LowRank:
    rng = torch.Generator().manual_seed(seed)
    return LowRank(torch.randn(rank, i, generator=rng), torch.randn(o, rank, generator=rng))


def decaying(decay: float, rank: int = 12, o: int = 50, i: int = 60) -> LowRank:
    """Singular values over `decay` decades, about."""
    rng = torch.Generator().manual_seed(3)
    scale = torch.logspace(0, -decay, rank)
    return LowRank(torch.randn(rank, i, generator=rng), torch.randn(o, rank, generator=rng) * scale)


def agree(d: LowRank, rank: int, values: float = 1e-6, vectors: float = 2e-6) -> None:
    """Both ways to the SVD say the same to what `by_gram` promises of vectors, and float64 of what counts."""
    short, long = product_svd.by_gram(d.B, d.A, rank), product_svd.by_qr(d.B, d.A, rank)
    assert short is not None
    assert torch.allclose(short[1], long[1], rtol=values)
    for basis in (short[0].T, short[2]):
        assert torch.allclose(basis @ basis.T, torch.eye(rank, dtype=torch.float64), atol=vectors)
    product = [(u * s) @ v for u, s, v in (short, long)]
    assert (product[0] - product[1]).norm() <= 1e-10 * long[1].norm()


@pytest.mark.parametrize("decay", [0.0, 2.0, 4.0, 8.0, 12.0])
def test_gram_matrices_give_the_same_values_and_vectors_as_qr(decay: float) -> None:
    """What is not kept may be far below the root of float64's precision: at 12 decades the last is 1e-12."""
    agree(decaying(decay), 4, values=1e-8, vectors=1e-8)


@pytest.mark.parametrize("decay", [0.0, 2.0, 4.0])
def test_so_they_do_where_half_of_the_ranks_are_kept(decay: float) -> None:
    agree(decaying(decay), 6, values=1e-8, vectors=1e-8)


@pytest.mark.parametrize("near", [0.3, 1e-2, 1e-4, 0.0])
def test_gram_matrices_serve_clients_that_hardly_moved_from_a_common_start(near: float) -> None:
    """Four pairs of rank 3 near one: B^T B is as good as singular, or is, but the three that are kept are sound."""
    start = pair(1, 3, 50, 60)
    moved = [
        (LowRank(start.A + near * pair(k, 3, 50, 60).A, start.B + near * pair(k, 3, 50, 60).B), k) for k in (2, 3, 4, 5)
    ]
    agree(stack(moved), 3)


def test_where_gram_matrices_lose_the_digits_qr_is_used() -> None:
    """A value of 1e-7 of the largest; a sum whose terms cancel to 1e-6 of each; zero. All are as with dense float64."""
    d, small, zero = decaying(9.0), decaying(0.0), LowRank(torch.zeros(12, 60), decaying(0.0).B)
    cancels = d.double() + -LowRank(d.A.double(), d.B.double() + 1e-6 * small.B.double())
    for case, rank in ((d, 10), (cancels, 4), (zero, 4)):
        assert product_svd.by_gram(case.B, case.A, rank) is None
        dense = torch.linalg.svdvals(case.double().dense())[:rank]
        assert torch.allclose(case.svd(rank)[1], dense, rtol=1e-7, atol=1e-15)


def test_factors_that_are_not_tall_go_through_qr() -> None:
    wide, tall = pair(3, 8), pair(3, 4)
    assert product_svd.by_gram(wide.B, wide.A, 2) is None  # 8 columns of length 7
    assert product_svd.by_gram(tall.B, tall.A, 4) is None  # nothing is cut
    assert product_svd.by_gram(tall.B, tall.A, 2) is not None


def test_a_long_gram_matrix_in_strips_is_the_whole_one() -> None:
    x = pair(4, 200, 3, 211).A.double()
    assert float((product_svd.gram(x) - x @ x.T).norm() / (x @ x.T).norm()) < 1e-15
