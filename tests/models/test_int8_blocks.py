"""Weights in 8 bits: what is read back, and how many bytes it takes."""

import pytest
import torch

from fedft.models import int8_blocks


@pytest.mark.parametrize("n", [1, 63, 64, 65, 1000])
def test_any_length_comes_back_within_half_a_step_and_packs_to_the_same_again(n):
    x = torch.randn(n, generator=torch.Generator().manual_seed(n))
    once = int8_blocks.pack(x)
    back = int8_blocks.unpack(once, n)
    steps = once.scales.float().repeat_interleave(64)[:n]
    assert bool(((back - x).abs() <= 0.501 * steps).all())
    assert all(torch.equal(a, b) for a, b in zip(int8_blocks.pack(back), once, strict=True))
    assert sum(t.numel() * t.element_size() for t in once) == n + 2 * -(-n // 64)


def test_a_block_by_hand():
    p = int8_blocks.pack(torch.tensor([127.0, -63.5, 0.5, 1.5]))
    assert p.scales.tolist() == [1.0]
    assert p.codes.tolist() == [127, -64, 0, 2]


def test_zeros_and_numbers_too_small_to_divide_are_zeros():
    x = torch.cat([torch.zeros(64), torch.full((64,), 1e-38), torch.ones(3)])
    back = int8_blocks.unpack(int8_blocks.pack(x), len(x))
    assert not back[:128].any()
    assert back[128:].tolist() == pytest.approx([1.0] * 3, rel=0.01)
