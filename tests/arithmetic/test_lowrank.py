"""Low-rank changes as factors, against dense float64 matrices."""

import itertools

import pytest
import torch

from fedft.arithmetic import lowrank
from fedft.arithmetic.lowrank import LowRank
from fedft.arithmetic.stacks import mean_residual, stack

OUT, IN = 7, 5


def pair(seed: int, rank: int, o: int = OUT, i: int = IN, scale: float = 1.0) -> LowRank:
    rng = torch.Generator().manual_seed(seed)
    return LowRank(torch.randn(rank, i, generator=rng), scale * torch.randn(o, rank, generator=rng))


def clients(*ranks: int) -> list[tuple[LowRank, float]]:
    """Unlike ranks, scales alpha / r folded into B (alpha = 4) and unlike numbers of examples."""
    return [(pair(k, r, scale=4 / max(r, 1)), 3 * k + 1) for k, r in enumerate(ranks)]


def oracle(items) -> torch.Tensor:
    """sum_k p_k B_k A_k in float64."""
    total = sum(n for _, n in items)
    return sum((n / total) * (d.B.double() @ d.A.double()) for d, n in items)


def exact(d: LowRank) -> torch.Tensor:
    return d.B.double() @ d.A.double()


def relative(x: torch.Tensor, y: torch.Tensor) -> float:
    return float((x.double() - y).norm() / y.norm())


COHORTS = [(1,), (3, 3), (1, 2, 4), (5, 5, 5), (1, 7, 3), (9, 2), (0, 2), (2, 0, 1)]
"""Equal and unlike ranks, rank 1, rank = in = 5, rank = out = 7, rank beyond both, an absent client (rank 0)."""


@pytest.mark.parametrize("ranks", COHORTS)
def test_the_stack_is_the_weighted_sum_of_the_products(ranks):
    items = clients(*ranks)
    stacked = stack(items)
    assert stacked.rank == sum(ranks)
    assert relative(exact(stacked), oracle(items)) < 1e-6


def test_the_weight_goes_on_one_factor_once():
    """p = 1/4 and 3/4 on products 8 and 16: 2 + 12 = 14; p on both factors would give 8/16 + 9."""
    items = [(LowRank(torch.tensor([[2.0]]), torch.tensor([[4.0]])), 1), (LowRank(*[torch.tensor([[4.0]])] * 2), 3)]
    assert stack(items).dense().item() == 14.0


def test_the_order_of_the_stack_does_not_matter():
    items = clients(1, 2, 4)
    want = exact(stack(items))
    for other in itertools.permutations(items):
        assert relative(exact(stack(other)), want) < 1e-6


def test_a_stack_depends_on_ratios_of_weights_only_and_reads_once():
    items = clients(2, 3)
    stacked, scaled = stack(items), stack((d, n * 2.0**20) for d, n in items)
    assert torch.equal(stacked.A, scaled.A)
    assert torch.equal(stacked.B, scaled.B)


@pytest.mark.parametrize("items", [[], [(pair(0, 2), 0)]])
def test_a_stack_of_nothing_is_refused(items):
    with pytest.raises(ValueError, match="none"):
        stack(items)


@pytest.mark.parametrize("items", [[], [(pair(0, 2), 0)]])
def test_a_mean_of_nothing_is_refused(items):
    with pytest.raises(ValueError, match="none"):
        lowrank.mean_factors(items)


@pytest.mark.parametrize("ranks", [(2, 3), (1, 3), (3, 1)])
def test_factors_of_unlike_rank_have_no_mean(ranks):
    """Rank 1 against 3 is the trap: torch would repeat the one row three times."""
    with pytest.raises(ValueError, match="one rank"):
        lowrank.mean_factors(clients(*ranks))


def test_the_mean_of_the_factors_is_taken_factor_by_factor():
    items = clients(3, 3, 3)
    mean = lowrank.mean_factors(items)
    total = sum(n for _, n in items)
    assert relative(mean.A, sum(n / total * d.A.double() for d, n in items)) < 1e-7
    assert relative(mean.B, sum(n / total * d.B.double() for d, n in items)) < 1e-7


@pytest.mark.parametrize("rank", [1, 3, 5, 8])
def test_what_the_mean_lacks_of_the_stack_is_the_covariance_of_the_factors(rank):
    """sum_k p_k B_k A_k - B A = sum_k p_k (B_k - B)(A_k - A), with A and B the means (expand the right side)."""
    items = clients(rank, rank, rank)
    total = sum(n for _, n in items)
    a = sum(n / total * d.A.double() for d, n in items)
    b = sum(n / total * d.B.double() for d, n in items)
    covariance = sum(n / total * (d.B.double() - b) @ (d.A.double() - a) for d, n in items)
    assert relative(exact(stack(items) + -lowrank.mean_factors(items)), covariance) < 1e-5


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_the_residual_is_what_the_mean_lacks_in_one_block_less_than_there_are_clients(rank):
    items = clients(rank, rank, rank)
    residual = mean_residual(items)
    assert residual.rank == 2 * rank
    assert relative(exact(residual), exact(stack(items) + -lowrank.mean_factors(items))) < 1e-5
    assert mean_residual(items[:1]).rank == 0


@pytest.mark.parametrize("common", ["A", "B"])
def test_the_mean_lacks_nothing_when_one_factor_is_common(common):
    items = clients(3, 3, 3)
    shared = items[0][0]
    equal = [(LowRank(shared.A, d.B) if common == "A" else LowRank(d.A, shared.B), n) for d, n in items]
    assert relative(exact(lowrank.mean_factors(equal)), oracle(equal)) < 1e-6


def test_side_by_side_is_the_sum_and_minus_is_minus():
    x, y = pair(1, 2), pair(2, 4)
    assert relative(exact(x + y), exact(x) + exact(y)) < 1e-14
    assert (x + y).rank == 6
    assert torch.equal((-x).dense(), -x.dense())


@pytest.mark.parametrize("rank", [0, 1, 3, 5, 7, 12])
def test_the_norm_by_gram_matrices_is_the_dense_norm(rank):
    d = pair(3, rank)
    assert d.norm() == pytest.approx(float(exact(d).norm()), rel=1e-12, abs=1e-300)


def test_the_norm_keeps_its_digits_where_terms_cancel():
    """Gram matrices alone would know it to 1e-8 of d's, or find the root of something negative."""
    d = pair(3, 4)
    assert (d + -d).norm() <= 1e-14 * d.norm()
    near = LowRank(d.A, (1 + 1e-9) * d.B.double()) + -d.double()
    assert near.norm() == pytest.approx(float(exact(near).norm()), rel=1e-5)
    assert near.norm() == pytest.approx(1e-9 * d.norm(), rel=1e-5)


@pytest.mark.parametrize("keep", [1, 2, 3, 4])
@pytest.mark.parametrize("ranks", [(2, 3), (6, 5)])
def test_truncation_is_the_best_approximation(keep, ranks):
    """Eckart-Young: the squared error is the sum of the discarded squared singular values, and none is smaller."""
    d = stack(clients(*ranks))
    values = torch.linalg.svdvals(exact(d))
    error = float((exact(d) - exact(d.truncate(keep))).norm())
    assert d.truncate(keep).rank == keep
    assert error == pytest.approx(float(values[keep:].norm()), rel=1e-5)


def test_svd_equals_the_dense_svd():
    d = stack(clients(2, 2))
    u, s, v = d.svd()
    assert (u.shape, s.shape, v.shape) == ((OUT, 4), (4,), (4, IN))
    assert torch.allclose(s, torch.linalg.svdvals(exact(d))[:4], rtol=1e-10)
    assert relative((u * s) @ v, exact(d)) < 1e-12
    assert torch.allclose(u.T @ u, torch.eye(4, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(v @ v.T, torch.eye(4, dtype=torch.float64), atol=1e-12)


def test_truncations_are_nested():
    d = stack(clients(4, 4))
    wide, narrow = d.truncate(5), d.truncate(2)
    assert torch.equal(wide.A[:2], narrow.A)
    assert torch.equal(wide.B[:, :2], narrow.B)


def test_signs_are_fixed_and_runs_repeat():
    d = stack(clients(2, 3))
    u, _, v = d.svd()
    top = u.abs().argmax(0)
    assert (u[top, torch.arange(u.shape[1])] > 0).all()
    flipped = LowRank(-d.A, -d.B)  # the same matrix
    assert torch.allclose(flipped.svd()[0], u, atol=1e-10)
    assert torch.allclose(flipped.svd()[2], v, atol=1e-10)
    assert all(torch.equal(x, y) for x, y in zip(d.svd(), d.svd(), strict=True))


@pytest.mark.parametrize("rank", [1, 4, 5, 6, 7, 8, 20])
@pytest.mark.parametrize("shape", [(7, 5), (5, 7), (1, 6), (6, 1)])
def test_exact_truncation_changes_nothing_and_ends_at_the_smaller_dimension(rank, shape):
    d = pair(5, rank, *shape)
    short = d.truncate()
    assert short.rank == min(rank, *shape)
    assert short.shape == shape
    assert short.A.dtype == torch.float32
    assert relative(exact(short), exact(d)) < 1e-6


def test_exact_truncation_finds_the_rank_that_is_there():
    """Three copies of a pair stacked have its rank, not three times it."""
    d = pair(6, 2)
    assert stack([(d, 1), (d, 1), (d, 1)]).truncate().rank == 2


@pytest.mark.parametrize(("small", "rank"), [(2.0**-20, 2), (2.0**-23, 2), (2.0**-26, 1), (0.0, 1)])
def test_exact_truncation_drops_only_what_float32_cannot_hold(small, rank):
    """diag(1, small): two singular values, of which the second counts from 2^-24 of the first."""
    assert LowRank(torch.eye(2), torch.diag(torch.tensor([1.0, small]))).truncate().rank == rank


def test_truncation_spreads_each_singular_value_over_both_factors():
    d = pair(6, 3).truncate()
    assert torch.allclose(d.A.norm(dim=1), d.B.norm(dim=0), rtol=1e-5)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_singular_values_go_where_they_are_told(share):
    d = pair(6, 3)
    s = d.svd()[1]
    there = d.truncate(share_of_a=share)
    assert torch.allclose(there.A.double().norm(dim=1), s**share, rtol=1e-6)
    assert torch.allclose(there.B.double().norm(dim=0), s ** (1 - share), rtol=1e-6)
    assert relative(exact(there), exact(d)) < 1e-6


def test_some_ranks_and_the_others_are_the_whole():
    d = pair(6, 4)
    assert (d.ranks(stop=1).rank, d.ranks(1, 3).rank, d.ranks(3).rank, d.ranks(9).rank) == (1, 2, 1, 0)
    assert relative(exact(d.ranks(stop=1)) + exact(d.ranks(1)), exact(d)) < 1e-14


def test_the_zero_matrix_has_rank_zero_and_is_neutral():
    nothing, d = lowrank.zero(OUT, IN), pair(7, 2)
    assert (nothing.rank, nothing.shape, nothing.norm()) == (0, (OUT, IN), 0.0)
    assert nothing.dense().shape == (OUT, IN)
    assert not nothing.dense().any()
    assert nothing.truncate().rank == 0
    assert torch.equal((nothing + d).dense(), d.dense())
    assert LowRank(d.A, torch.zeros_like(d.B)).truncate().rank == 0


def test_truncation_to_rank_zero_is_the_zero_matrix():
    assert pair(7, 2).truncate(0).rank == 0


@pytest.mark.parametrize(
    ("a", "b"), [((2, 5), (7, 3)), ((2,), (7, 2)), ((2, 5), (2,))], ids=["ranks", "A a vector", "B a vector"]
)
def test_factors_that_do_not_fit_are_refused(a, b):
    with pytest.raises(ValueError, match="do not fit"):
        LowRank(torch.zeros(a), torch.zeros(b))


# -- factors of many clients


def test_a_factor_goes_on_one_side_and_keeps_the_dtype():
    d = pair(1, 3)
    assert relative(exact(0.3 * d), 0.3 * exact(d)) < 1e-7
    assert torch.equal((0.3 * d).A, d.A)
    assert (0.3 * d).B.dtype == torch.float32
    assert (0.3 * d.double()).B.dtype == torch.float64


def test_a_change_times_a_matrix_is_the_dense_product_in_float64():
    d = pair(1, 3)
    x = torch.randn(IN, 4, generator=torch.Generator().manual_seed(2))
    assert (d @ x).dtype == torch.float64
    assert relative(d @ x, exact(d) @ x.double()) < 1e-14


@pytest.mark.parametrize("ranks", [(2, 4), (1, 1), (0, 3), (8, 6)])
def test_the_inner_product_from_gram_matrices_is_the_dense_one(ranks):
    x, y = pair(1, ranks[0]), pair(2, ranks[1])
    assert lowrank.inner(x, y) == pytest.approx(float((exact(x) * exact(y)).sum()), rel=1e-12, abs=1e-12)
    assert lowrank.inner(x, x) == pytest.approx(x.norm() ** 2, rel=1e-12)


def test_padding_gives_all_the_largest_rank_and_changes_no_product():
    items = clients(1, 4, 0, 2)
    grown = lowrank.pad_to_largest(iter(items))
    assert {d.rank for d, _ in grown} == {4}
    assert [n for _, n in grown] == [n for _, n in items]
    assert all(torch.equal(exact(x), exact(y)) for (x, _), (y, _) in zip(grown, items, strict=True))
    assert lowrank.pad_to_largest([]) == []


def test_rows_that_the_new_pair_lacks_are_the_old_ones():
    new, old = pair(1, 2), pair(2, 5)
    both = lowrank.padded_to(new, old)
    assert torch.equal(both.A, torch.cat([new.A, old.A[2:]]))
    assert torch.equal(both.B, torch.cat([new.B, old.B[:, 2:]], dim=1))


@pytest.mark.parametrize("old_rank", [1, 4, 6])
def test_a_row_zero_in_both_factors_gets_the_old_row_of_a_and_the_product_stays(old_rank):
    """Row 1 is dead; row 2 has a B, row 3 an A: those stay as they are."""
    new, old = pair(1, 4), pair(2, old_rank)
    a, b = new.A.clone(), new.B.clone()
    a[1:3], b[:, 1], b[:, 3] = 0, 0, 0
    grown = lowrank.padded_to(LowRank(a, b), old)
    assert torch.equal(grown.A[1], old.A[1] if old_rank > 1 else a[1])
    assert torch.equal(grown.A[[0, 2, 3]], a[[0, 2, 3]])
    assert torch.equal(exact(LowRank(grown.A[:4], grown.B[:, :4])), exact(LowRank(a, b)))
