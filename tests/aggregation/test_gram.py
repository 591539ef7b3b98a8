"""Inner products of clients' changes: those of the matrices multiplied out, at any grouping, in any gauge."""

from functools import partial

import pytest
import torch

from fedft.aggregation import entry_blocks, gram
from fedft.arithmetic.lowrank import LowRank


def pairs(ranks: list[int], o: int = 12, i: int = 9, seed: int = 0) -> list[LowRank]:
    """Random pairs of these ranks, one per client."""
    g = torch.Generator().manual_seed(seed)
    return [LowRank(torch.randn(r, i, generator=g), torch.randn(o, r, generator=g)) for r in ranks]


def found(items: list[LowRank | None]) -> torch.Tensor:
    return gram.of_pairs([lambda d=d: d for d in items])


def dense(items: list[LowRank]) -> torch.Tensor:
    flat = torch.stack([d.double().dense().reshape(-1) for d in items])
    return flat @ flat.T


def test_two_products_of_the_sheet():
    """B1 = B2 = (1, 0)^T, A1 = (2, 0), A2 = (1, 1): <B1 A1, B2 A2> = 2."""
    b = torch.tensor([[1.0], [0.0]])
    h = found([LowRank(torch.tensor([[2.0, 0.0]]), b), LowRank(torch.tensor([[1.0, 1.0]]), b)])
    assert h.tolist() == [[4.0, 2.0], [2.0, 2.0]]


@pytest.mark.parametrize("held", [gram.HELD, 300, 1])
def test_products_of_unlike_ranks_are_those_of_the_matrices_however_they_are_grouped(monkeypatch, held):
    monkeypatch.setattr(gram, "HELD", held)
    items = pairs([3, 1, 5, 2, 4, 1, 7])
    torch.testing.assert_close(found(items), dense(items), rtol=1e-12, atol=1e-12)


def test_who_sent_no_pair_has_no_product():
    a, b = pairs([2, 3])
    h = found([None, a, None, b, LowRank(torch.zeros(0, 9), torch.zeros(12, 0))])
    assert not h[[0, 2, 4]].any()
    torch.testing.assert_close(h[[1, 3]][:, [1, 3]], dense([a, b]), rtol=1e-12, atol=1e-12)
    assert found([None, None]).tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_a_client_s_own_gauge_changes_nothing_and_the_order_of_clients_only_the_order():
    items, g = pairs([4] * 6), torch.Generator().manual_seed(1)
    turned = []
    for d in items:
        q = torch.linalg.qr(torch.randn(4, 4, generator=g, dtype=torch.float64))[0] * torch.rand(4, generator=g).add(
            0.5
        )
        turned.append(LowRank(torch.linalg.inv(q) @ d.A.double(), d.B.double() @ q))
    h = found(items)
    assert not torch.allclose(turned[0].A.float(), items[0].A)
    torch.testing.assert_close(found(turned), h, rtol=1e-5, atol=1e-5)
    order = torch.randperm(6, generator=g)
    torch.testing.assert_close(found([items[k] for k in order]), h[order][:, order], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("held", [entry_blocks.HELD, 100, 1])
def test_tensors_are_vectors_read_in_blocks(monkeypatch, held):
    monkeypatch.setattr(entry_blocks, "HELD", held)
    x = torch.randn(4, 7, 11, generator=torch.Generator().manual_seed(0))
    read: list[int] = []

    def reading(k: int) -> torch.Tensor:
        read.append(k)
        return x[k]

    flat = x.reshape(4, -1).double()
    h = gram.of_tensors([partial(reading, k) for k in range(4)])
    torch.testing.assert_close(h, flat @ flat.T, rtol=1e-12, atol=1e-12)
    assert read[:4] == [0, 1, 2, 3]
    assert (len(read) == 4) == (held > 4 * 77)


def test_squared_distances_are_never_negative():
    h = torch.full((2, 2), 1.0, dtype=torch.float64)
    h[0, 1] = h[1, 0] = 1 + 1e-12
    assert gram.squared_distances(h).tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_unlike_shapes_are_refused():
    with pytest.raises(ValueError, match="shape"):
        gram.of_tensors([lambda: torch.zeros(3), lambda: torch.zeros(4)])
