"""Low-rank changes as factors, against dense float64 matrices."""

import itertools

import pytest
import torch

from fedft.arithmetic import lowrank
from fedft.arithmetic.lowrank import LowRank

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
    stacked = lowrank.stack(items)
    assert stacked.rank == sum(ranks)
    assert relative(exact(stacked), oracle(items)) < 1e-6


def test_the_weight_goes_on_one_factor_once():
    """p = 1/4 and 3/4 on products 8 and 16: 2 + 12 = 14; p on both factors would give 8/16 + 9."""
    items = [(LowRank(torch.tensor([[2.0]]), torch.tensor([[4.0]])), 1), (LowRank(*[torch.tensor([[4.0]])] * 2), 3)]
    assert lowrank.stack(items).dense().item() == 14.0


def test_the_order_of_the_stack_does_not_matter():
    items = clients(1, 2, 4)
    want = exact(lowrank.stack(items))
    for other in itertools.permutations(items):
        assert relative(exact(lowrank.stack(other)), want) < 1e-6


def test_a_stack_depends_on_ratios_of_weights_only_and_reads_once():
    items = clients(2, 3)
    stacked, scaled = lowrank.stack(items), lowrank.stack((d, n * 2.0**20) for d, n in items)
    assert torch.equal(stacked.A, scaled.A)
    assert torch.equal(stacked.B, scaled.B)


@pytest.mark.parametrize("items", [[], [(pair(0, 2), 0)]])
def test_a_stack_of_nothing_is_refused(items):
    with pytest.raises(ValueError, match="none"):
        lowrank.stack(items)


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
    assert relative(exact(lowrank.stack(items) + -lowrank.mean_factors(items)), covariance) < 1e-5


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
    d = lowrank.stack(clients(*ranks))
    values = torch.linalg.svdvals(exact(d))
    error = float((exact(d) - exact(d.truncate(keep))).norm())
    assert d.truncate(keep).rank == keep
    assert error == pytest.approx(float(values[keep:].norm()), rel=1e-5)


def test_svd_equals_the_dense_svd():
    d = lowrank.stack(clients(2, 2))
    u, s, v = d.svd()
    assert (u.shape, s.shape, v.shape) == ((OUT, 4), (4,), (4, IN))
    assert torch.allclose(s, torch.linalg.svdvals(exact(d))[:4], rtol=1e-10)
    assert relative((u * s) @ v, exact(d)) < 1e-12
    assert torch.allclose(u.T @ u, torch.eye(4, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(v @ v.T, torch.eye(4, dtype=torch.float64), atol=1e-12)


def test_truncations_are_nested():
    d = lowrank.stack(clients(4, 4))
    wide, narrow = d.truncate(5), d.truncate(2)
    assert torch.equal(wide.A[:2], narrow.A)
    assert torch.equal(wide.B[:, :2], narrow.B)


def test_signs_are_fixed_and_runs_repeat():
    d = lowrank.stack(clients(2, 3))
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
    assert lowrank.stack([(d, 1), (d, 1), (d, 1)]).truncate().rank == 2


@pytest.mark.parametrize(("small", "rank"), [(2.0**-20, 2), (2.0**-23, 2), (2.0**-26, 1), (0.0, 1)])
def test_exact_truncation_drops_only_what_float32_cannot_hold(small, rank):
    """diag(1, small): two singular values, of which the second counts from 2^-24 of the first."""
    assert LowRank(torch.eye(2), torch.diag(torch.tensor([1.0, small]))).truncate().rank == rank


def test_truncation_spreads_each_singular_value_over_both_factors():
    d = pair(6, 3).truncate()
    assert torch.allclose(d.A.norm(dim=1), d.B.norm(dim=0), rtol=1e-5)


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


def test_split_and_named_are_inverse_and_leave_the_rest_alone():
    x = {
        "m.lora_A": torch.ones(2, 5),
        "m.lora_B": torch.ones(7, 2),
        "n.lora_B": torch.ones(3, 2),
        "head": torch.ones(4),
    }
    pairs, rest = lowrank.split(x)
    assert (set(pairs), set(rest)) == ({"m"}, {"n.lora_B", "head"})
    assert lowrank.named(pairs).keys() | rest.keys() == x.keys()
    assert lowrank.named(pairs)["m.lora_A"] is x["m.lora_A"]


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
    grown = lowrank.padded(iter(items))
    assert {d.rank for d, _ in grown} == {4}
    assert [n for _, n in grown] == [n for _, n in items]
    assert all(torch.equal(exact(x), exact(y)) for (x, _), (y, _) in zip(grown, items, strict=True))
    assert lowrank.padded([]) == []


def test_a_cut_undoes_padding():
    d = pair(3, 2)
    grown = lowrank.cut(lowrank.named({"m": lowrank.pad(d, 6)}), 2)
    assert torch.equal(grown["m.lora_A"], d.A)
    assert torch.equal(grown["m.lora_B"], d.B)


def test_rows_that_the_new_pair_lacks_are_the_old_ones():
    new, old = pair(1, 2), pair(2, 5)
    both = lowrank.onto(new, old)
    assert torch.equal(both.A, torch.cat([new.A, old.A[2:]]))
    assert torch.equal(both.B, torch.cat([new.B, old.B[:, 2:]], dim=1))


@pytest.mark.parametrize("old_rank", [1, 4, 6])
def test_a_row_zero_in_both_factors_gets_the_old_row_of_a_and_the_product_stays(old_rank):
    """Row 1 is dead; row 2 has a B, row 3 an A: those stay as they are."""
    new, old = pair(1, 4), pair(2, old_rank)
    a, b = new.A.clone(), new.B.clone()
    a[1:3], b[:, 1], b[:, 3] = 0, 0, 0
    grown = lowrank.onto(LowRank(a, b), old)
    assert torch.equal(grown.A[1], old.A[1] if old_rank > 1 else a[1])
    assert torch.equal(grown.A[[0, 2, 3]], a[[0, 2, 3]])
    assert torch.equal(exact(LowRank(grown.A[:4], grown.B[:, :4])), exact(LowRank(a, b)))


def test_pairs_are_gathered_by_module_and_the_rest_is_averaged():
    items = clients(1, 3)
    named = [(lowrank.named({"m": d}) | {"head": torch.full((2,), float(k))}, n) for k, (d, n) in enumerate(items)]
    pairs, rest = lowrank.gathered(iter(named))
    assert [(d.rank, n) for d, n in pairs["m"]] == [(1, 1), (3, 4)]
    assert rest["head"].tolist() == pytest.approx([0.8, 0.8])
    with pytest.raises(ValueError, match="none"):
        lowrank.gathered(iter([]))


def test_values_replace_and_everything_else_stays():
    old = lowrank.named({"m": pair(1, 3), "n": pair(2, 3)}) | {"head": torch.zeros(2), "other": torch.ones(1)}
    new = lowrank.named({"m": pair(3, 2)}) | {"head": torch.ones(2)}
    now = lowrank.replaced(old, new)
    assert now.keys() == old.keys()
    assert torch.equal(now["m.lora_A"][:2], new["m.lora_A"])
    assert torch.equal(now["m.lora_A"][2], old["m.lora_A"][2])
    assert now["n.lora_A"] is old["n.lora_A"]
    assert now["other"] is old["other"]
    assert torch.equal(now["head"], torch.ones(2))


def decaying(decay: float, rank: int = 12, o: int = 50, i: int = 60) -> LowRank:
    """Singular values over `decay` decades, about."""
    rng = torch.Generator().manual_seed(3)
    scale = torch.logspace(0, -decay, rank)
    return LowRank(torch.randn(rank, i, generator=rng), torch.randn(o, rank, generator=rng) * scale)


def agree(d: LowRank, rank: int, values: float = 1e-6, vectors: float = 2e-6) -> None:
    """Both ways to the SVD say the same to what `_svd_by_gram` promises of vectors, and float64 of what counts."""
    short, long = d._svd_by_gram(rank), d._svd_by_qr(rank)
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
    agree(lowrank.stack(moved), 3)


def test_where_gram_matrices_lose_the_digits_qr_is_used() -> None:
    """A value of 1e-7 of the largest; a sum whose terms cancel to 1e-6 of each; zero. All are as with dense float64."""
    d, small, zero = decaying(9.0), decaying(0.0), LowRank(torch.zeros(12, 60), decaying(0.0).B)
    cancels = d.double() + -LowRank(d.A.double(), d.B.double() + 1e-6 * small.B.double())
    for case, rank in ((d, 10), (cancels, 4), (zero, 4)):
        assert case._svd_by_gram(rank) is None
        dense = torch.linalg.svdvals(exact(case))[:rank]
        assert torch.allclose(case.svd(rank)[1], dense, rtol=1e-7, atol=1e-15)


def test_factors_that_are_not_tall_go_through_qr() -> None:
    assert pair(3, 8)._svd_by_gram(2) is None  # 8 columns of length 7
    assert pair(3, 4)._svd_by_gram(4) is None  # nothing is cut
    assert pair(3, 4)._svd_by_gram(2) is not None


def test_a_long_gram_matrix_in_strips_is_the_whole_one() -> None:
    x = pair(4, 200, 3, 211).A.double()
    assert relative(lowrank._gram(x), x @ x.T) < 1e-15
