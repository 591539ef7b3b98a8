"""NF4: the published codes, what is read back, and how many bytes it takes."""

import pytest
import torch

from fedft.models import nf4

EXAMPLE = torch.tensor([0.5, -0.25, 0.1, 0.0])


def packed(*codes: int) -> nf4.Packed4:
    """One block whose scale is exactly 0.5."""
    scales, spreads, mean = nf4.pack_scales(torch.tensor([0.5]))
    return nf4.Packed4(torch.tensor(codes, dtype=torch.uint8), scales, spreads, mean)


def size(p: nf4.Packed4) -> int:
    return sum(x.numel() * x.element_size() for x in p)


def test_the_levels_are_the_published_ones():
    published = [
        -1, -0.6961928, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105004, 0,
        0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1,
    ]  # fmt: skip
    assert nf4.LEVELS.tolist() == pytest.approx(published, rel=1e-7)


def test_the_example_of_the_specification():
    first, second = EXAMPLE, torch.tensor([-0.5, 0.04, 0.33, -0.02])
    assert [nf4.pack(x).codes.tolist() for x in (first, second)] == [[242, 151], [8, 231]]
    assert nf4.unpack(packed(242, 151), 4).tolist() == pytest.approx([0.5, -0.26253653, 0.08046511, 0])
    assert nf4.unpack(packed(8, 231), 4).tolist() == pytest.approx([-0.5, 0.03979015, 0.36147842, 0])


def test_scales_are_coded_around_their_mean():
    codes, spreads, mean = nf4.pack_scales(torch.tensor([1.0, 2.0, 4.0, 1.0]))
    back = nf4.unpack_scales(nf4.Packed4(torch.empty(0), codes, spreads, mean))
    assert codes.tolist() == [-64, 0, 127, -64]
    assert back.tolist() == pytest.approx([0.992126, 2, 4, 0.992126])


@pytest.mark.parametrize("n", [1, 2, 63, 64, 65, 1000, nf4.BLOCK * nf4.BLOCKS + 1])
def test_any_length_comes_back_with_the_codes_that_it_has(n):
    x = torch.randn(n, generator=torch.Generator().manual_seed(n))
    once = nf4.pack(x)
    back = nf4.unpack(once, n)
    assert back.shape == (n,)
    assert torch.equal(nf4.pack(back).codes, once.codes)
    blocks = -(-n // 64)
    assert size(once) == -(-n // 2) + blocks + 4 * -(-blocks // 256) + 4


def test_a_large_matrix_is_packed_as_in_one_piece(monkeypatch):
    x = torch.randn(300, 64, generator=torch.Generator().manual_seed(0))
    whole = nf4.pack(x)
    monkeypatch.setattr(nf4, "PART", nf4.BLOCK * 2)
    assert all(torch.equal(a, b) for a, b in zip(nf4.pack(x), whole, strict=True))


def test_normal_weights_lose_nine_percent_and_take_a_good_half_byte():
    x = torch.randn(512, 512, generator=torch.Generator().manual_seed(0))
    p = nf4.pack(x)
    assert float((nf4.unpack(p, x.numel()).view_as(x) - x).norm() / x.norm()) == pytest.approx(0.0922, abs=1e-3)
    assert size(p) / x.numel() == pytest.approx(0.5159, abs=1e-4)


def test_zeros_stay_zeros_beside_other_blocks():
    x = torch.cat([torch.zeros(70), torch.full((58,), 3.0)])
    p = nf4.pack(x)
    assert set(p.codes[:32].tolist()) == {7 << 4 | 7}
    assert not nf4.unpack(p, 128)[:70].any()
    assert not nf4.unpack(nf4.pack(torch.zeros(5)), 5).any()


def test_half_precision_is_packed_as_the_same_numbers_in_float32():
    x = torch.randn(130, generator=torch.Generator().manual_seed(1)).bfloat16()
    assert all(torch.equal(a, b) for a, b in zip(nf4.pack(x), nf4.pack(x.float()), strict=True))


@pytest.mark.parametrize("shape", [(320, 320), (864, 320), (128, 512)])
def test_codes_are_those_of_bitsandbytes(shape):
    theirs = pytest.importorskip("bitsandbytes.functional", reason="bitsandbytes is not installed")
    x = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    codes, state = theirs.quantize_4bit(x, blocksize=64, quant_type="nf4", compress_statistics=False)
    ours = nf4.pack(x)
    assert torch.equal(codes.flatten(), ours.codes)
    scales = nf4.unpack_scales(ours)
    assert torch.allclose(state.absmax, scales, rtol=0, atol=float(ours.spreads.max()) / 250)
    state.absmax = scales
    assert torch.equal(theirs.dequantize_4bit(codes, state).flatten(), nf4.unpack(ours, x.numel()))
