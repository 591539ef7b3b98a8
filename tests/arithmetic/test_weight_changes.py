"""Changes of a weight, factored or dense: the shorter form, exact sums, and names that go there and back."""

import pytest
import torch

from fedft.arithmetic.lowrank import LowRank
from fedft.arithmetic.weight_changes import factored, plus, shorter, split, to_names

OUT, IN = 6, 8


def pair(seed: int, rank: int, o: int = OUT, i: int = IN) -> LowRank:
    rng = torch.Generator().manual_seed(seed)
    return LowRank(torch.randn(rank, i, generator=rng), torch.randn(o, rank, generator=rng))


def exact(d) -> torch.Tensor:
    return d.double() if isinstance(d, torch.Tensor) else d.B.double() @ d.A.double()


@pytest.mark.parametrize("rank", range(9))
def test_the_shorter_form_has_the_fewer_numbers_and_is_rounded_once(rank):
    d = pair(1, rank)
    found = shorter(d)
    if rank * (OUT + IN) <= OUT * IN:
        assert found is d
    else:
        assert torch.equal(found, exact(d).float())
        assert shorter(found) is found


@pytest.mark.parametrize("dense", [(), (0,), (1,), (0, 1)], ids=str)
@pytest.mark.parametrize("ranks", [(1, 1), (0, 2), (5, 9)], ids=str)
def test_a_sum_is_exact_and_dense_where_a_term_is(ranks, dense):
    x, y = (exact(d).float() if k in dense else d for k, d in enumerate(pair(k, r) for k, r in enumerate(ranks)))
    found = plus(x, y)
    assert isinstance(found, torch.Tensor) == bool(dense)
    if dense:
        assert torch.equal(found, (exact(x) + exact(y)).float())
    else:
        assert torch.allclose(exact(found), exact(x) + exact(y))


def test_rows_are_summed_in_pieces_with_the_same_bits(monkeypatch):
    d = pair(2, 20, 50, 30)
    whole = shorter(d)
    monkeypatch.setattr("fedft.arithmetic.weight_changes.BLOCK", 70)  # two rows of 30 at a time
    assert torch.equal(shorter(d), whole)


@pytest.mark.parametrize(("o", "i"), [(3, 5), (5, 3), (4, 4)])
def test_a_dense_change_is_a_pair_beside_the_identity_bit_for_bit(o, i):
    d = torch.randn(o, i)
    found = factored(d)
    assert torch.equal(found.dense(), d)
    assert found.rank == min(o, i)
    assert factored(found) is found


def test_names_lead_back_to_both_forms_and_leave_the_rest_alone():
    changes = {"a": pair(1, 2), "b.dense": torch.randn(OUT, IN), "c": pair(2, 0)}
    rest = {"head": torch.ones(2), "a.lora_A.mean": torch.ones(3), "lone.lora_B": torch.ones(1)}
    found, others = split({**rest, **to_names(changes)})
    assert found.keys() == changes.keys()
    assert all(torch.equal(exact(found[m]), exact(d)) for m, d in changes.items())
    assert others.keys() == rest.keys()
