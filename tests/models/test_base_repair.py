"""What packing has lost of a weight, approximated by a pair of a rank."""

import pytest
import torch

from fedft.models import nf4
from fedft.models.base_repair import repair


@pytest.mark.parametrize(("o", "i", "rank"), [(64, 64, 8), (96, 160, 16), (160, 96, 4), (300, 300, 16)])
def test_as_much_is_repaired_as_a_rank_can_within_two_percent(o, i, rank):
    w = torch.randn(o, i, generator=torch.Generator().manual_seed(1)) * torch.logspace(0, -1, i)
    lost = w - nf4.unpack(nf4.pack(w), w.numel()).view(o, i)
    d = repair(lost, rank, "m")
    least = float(torch.linalg.svdvals(lost.double())[rank:].norm())
    left = float((lost - d.dense()).norm())
    assert d.rank == rank
    assert least * 0.999 <= left <= 1.02 * least
    assert left < 0.99 * float(lost.norm())


def test_the_same_matrix_gives_the_same_factors():
    lost = torch.randn(40, 30, generator=torch.Generator().manual_seed(2))
    one, two = repair(lost, 4, "m"), repair(lost.clone(), 4, "m")
    assert torch.equal(one.A, two.A)
    assert torch.equal(one.B, two.B)


def test_nothing_lost_is_nothing_to_repair():
    assert repair(torch.zeros(20, 30), 4, "m").rank == 0
    one = torch.ones(20, 1) @ torch.ones(1, 30)
    assert repair(one, 4, "m").rank == 1
    assert torch.allclose(repair(one, 4, "m").dense(), one, atol=1e-4)


def test_a_small_matrix_is_repaired_in_full():
    lost = torch.randn(3, 5, generator=torch.Generator().manual_seed(3))
    assert torch.allclose(repair(lost, 16, "m").dense(), lost, atol=1e-5)
