"""The mean over those who keep a row or column, against dense matrices averaged entry by entry."""

import pytest
import torch

from fedft.arithmetic.lowrank import LowRank
from fedft.arithmetic.stacks import stack
from fedft.strategies.parts.kept_entries import Holding, completed, mean_of_kept

OUT, IN = 7, 5


def drawn(seed: int, side: str, clients: int = 4, keep: float = 0.5) -> list[Holding]:
    """Random clients of unlike ranks, weights and masks."""
    rng = torch.Generator().manual_seed(seed)
    parts = []
    for k in range(clients):
        rank = int(torch.randint(1, 4, (), generator=rng))
        a, b = torch.randn(rank, IN, generator=rng), torch.randn(OUT, rank, generator=rng)
        kept = torch.rand(OUT if side == "rows" else IN, generator=rng) < keep
        parts.append(Holding(LowRank(a, b), 1 + 3 * k, kept))
    return parts


def as_grid(kept: torch.Tensor, side: str) -> torch.Tensor:
    """The mask of a side as one of entries, bool [o, i]."""
    return kept[:, None].expand(OUT, IN) if side == "rows" else kept.expand(OUT, IN)


def entrywise(parts: list[Holding], side: str) -> torch.Tensor:
    """The oracle: a loop over entries, in float64."""
    out = torch.zeros(OUT, IN, dtype=torch.float64)
    for a in range(OUT):
        for c in range(IN):
            holders = [p for p in parts if as_grid(p.kept, side)[a, c]]
            total = sum(p.weight for p in holders)
            for p in holders:
                out[a, c] += p.weight / total * float(p.change.B[a].double() @ p.change.A[:, c].double())
    return out


@pytest.mark.parametrize("side", ["rows", "columns"])
def test_it_is_the_entrywise_mean_for_random_masks(side):
    bare = 0
    for seed in range(40):
        parts = drawn(seed, side)
        bare += int((~torch.stack([p.kept for p in parts]).any(0)).sum())
        mean = mean_of_kept(parts, side)
        assert torch.allclose(mean.dense().double(), entrywise(parts, side), atol=1e-5)
        assert mean.rank == sum(p.change.rank for p in parts)
    assert bare > 10, "some rows are kept by nobody"


def test_by_hand():
    """p = (1/4, 3/4), rows 110 and 101: omega = (1/4 1 0) and (3/4 0 1)."""
    one = Holding(
        LowRank(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0], [1.0], [0.0]])), 1, torch.tensor([True, True, False])
    )
    two = Holding(
        LowRank(torch.tensor([[3.0, 0.0]]), torch.tensor([[2.0], [0.0], [1.0]])), 3, torch.tensor([True, False, True])
    )
    assert mean_of_kept([one, two], "rows").dense().tolist() == [[4.75, 0.5], [1.0, 2.0], [3.0, 0.0]]
    turned = [Holding(LowRank(p.change.B.T, p.change.A.T), p.weight, p.kept) for p in (one, two)]
    assert mean_of_kept(turned, "columns").dense().T.tolist() == [[4.75, 0.5], [1.0, 2.0], [3.0, 0.0]]


@pytest.mark.parametrize("side", ["rows", "columns"])
def test_where_everybody_keeps_everything_it_is_the_mean_of_products_to_the_bit(side):
    parts = drawn(3, side, keep=1.1)
    mean, wanted = mean_of_kept(parts, side), stack([(p.change, p.weight) for p in parts])
    assert torch.equal(mean.A, wanted.A)
    assert torch.equal(mean.B, wanted.B)


@pytest.mark.parametrize("side", ["rows", "columns"])
def test_who_counts_nothing_leaves_zeros_where_nobody_else_holds_anything(side):
    one, two = drawn(5, side, clients=2)
    mean = mean_of_kept([Holding(one.change, 0.0, one.kept), Holding(two.change, 1.0, ~one.kept)], side).dense()
    of_one = as_grid(one.kept, side)
    assert not mean[of_one].any()
    assert torch.allclose(mean[~of_one], two.change.dense()[~of_one], atol=1e-6)


@pytest.mark.parametrize("side", ["rows", "columns"])
def test_of_disjoint_rows_each_is_its_clients_own(side):
    one, two = drawn(5, side, clients=2)
    two = Holding(two.change, two.weight, ~one.kept)
    mean = mean_of_kept([one, two], side).dense()
    for part in (one, two):
        assert part.kept.any()
        of_client = as_grid(part.kept, side)
        assert torch.allclose(mean[of_client], part.change.dense()[of_client], atol=1e-6)


@pytest.mark.parametrize("side", ["rows", "columns"])
def test_pruned_entries_of_a_factor_are_never_read(side):
    parts = drawn(8, side)
    marred = []
    for p in parts:
        a, b = p.change.A.clone(), p.change.B.clone()
        if side == "rows":
            b[~p.kept] = 1e30
        else:
            a[:, ~p.kept] = 1e30
        marred.append(Holding(LowRank(a, b), p.weight, p.kept))
    assert torch.equal(mean_of_kept(marred, side).dense(), mean_of_kept(parts, side).dense())


@pytest.mark.parametrize("side", ["rows", "columns"])
def test_what_nobody_keeps_has_the_states_value(side):
    parts = [Holding(p.change, p.weight, p.kept & (torch.arange(len(p.kept)) > 1)) for p in drawn(2, side, keep=0.9)]
    kept = [p.kept for p in parts]
    state = LowRank(torch.randn(3, IN), torch.randn(OUT, 3))
    mean = mean_of_kept(parts, side)
    whole = completed(mean, kept, state, side).dense()
    held = as_grid(torch.stack(kept).any(0), side)
    assert 0 < int(held.sum()) < OUT * IN
    assert torch.allclose(whole[held], mean.dense()[held], atol=1e-6)
    assert torch.allclose(whole[~held], state.dense()[~held], atol=1e-6)
    everybody = [torch.ones_like(k) for k in kept]
    assert completed(mean, everybody, state, side) is mean
