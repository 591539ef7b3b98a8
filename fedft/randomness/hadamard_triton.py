"""`hadamard v1` on CUDA devices: the arithmetic of `hadamard.py`, one block of 4096 at a time in registers.

Sums are of integers, so their order does not matter; the product with a power of two is exact, so fusing it with the
addition changes nothing; signs of floats are flipped as bits, because Triton's -x is 0 - x and forgets that of a zero.
bfloat16 is read and written as bits, since not everything that runs Triton rounds to it alike.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

from fedft.randomness import philox

BLOCK = 4096
_ROWS = 1024  # partial sums of a dot: as many programs run at once
_HOW = {"num_warps": 8, "enable_fp_fusion": False}  # keep x and what is added to it are rounded one by one

_D = tl.constexpr(philox.DIRECTION)
_S = tl.constexpr(philox.DIRECTION_SIGN)


@triton.jit
def _philox(place, k0, k1, name, purpose: tl.constexpr):  # type: ignore[no-untyped-def]
    """The four uint32 words of the Philox blocks at `place` (int64) of a stream: see `philox.py`."""
    c0 = place.to(tl.uint32)
    c1 = (place >> 32).to(tl.uint32)
    c2 = tl.full(place.shape, 0, tl.uint32) + name.to(tl.uint32)
    c3 = tl.full(place.shape, purpose, tl.uint32)
    k0 = k0.to(tl.uint32)
    k1 = k1.to(tl.uint32)
    a = tl.full(place.shape, 0xD2511F53, tl.uint32)
    b = tl.full(place.shape, 0xCD9E8D57, tl.uint32)
    for _ in tl.static_range(10):
        high0, low0 = tl.umulhi(a, c0), a * c0
        high1, low1 = tl.umulhi(b, c2), b * c2
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0 = k0 + tl.full((), 0x9E3779B9, tl.uint32)
        k1 = k1 + tl.full((), 0xBB67AE85, tl.uint32)
    return c0, c1, c2, c3


@triton.jit
def _element_signs(block, k0, k1, name):  # type: ignore[no-untyped-def]
    """D of a block, int32 [4096] of 0 and 1."""
    c0, c1, c2, c3 = _philox(block * 32 + tl.arange(0, 32), k0, k1, name, _D)
    words = tl.reshape(tl.join(tl.join(c0, c2), tl.join(c1, c3)), (128, 1))
    return tl.reshape((words >> tl.arange(0, 32)[None, :].to(tl.uint32)) & 1, (4096,)).to(tl.int32)


@triton.jit
def _block_signs(block, k0, k1, name):  # type: ignore[no-untyped-def]
    """S of a block, int32 [4096] of 0 and 1: one per direction."""
    c0, c1, c2, c3 = _philox(block // 16 * 512 + tl.arange(0, 512), k0, k1, name, _S)
    words = tl.reshape(tl.join(tl.join(c0, c2), tl.join(c1, c3)), (2048,))
    bit = (block % 16).to(tl.uint32)
    return tl.reshape(tl.join((words >> bit) & 1, (words >> (bit + 16)) & 1), (4096,)).to(tl.int32)


@triton.jit
def _steps(x, first: tl.constexpr, count: tl.constexpr):  # type: ignore[no-untyped-def]
    """Steps `first`, `first + 1`, .. of the transform of x [4096]: step t adds and subtracts what is 2^t apart."""
    for t in tl.static_range(first, first + count):
        pairs = tl.permute(tl.reshape(x, (4096 >> (t + 1), 2, 1 << t)), (0, 2, 1))
        a, b = tl.split(pairs)
        x = tl.reshape(tl.permute(tl.join(a + b, a - b), (0, 2, 1)), (4096,))
    return x


@triton.jit
def _flipped(value, bits):  # type: ignore[no-untyped-def]
    """float32 `value` negated where the bit is 1."""
    return (value.to(tl.int32, bitcast=True) ^ (bits << 31)).to(tl.float32, bitcast=True)


@triton.jit(do_not_specialize=["size", "start", "first", "k0", "k1", "name"])
def _axpy(out, size, start, first, k0, k1, name, coefficients, unit):  # type: ignore[no-untyped-def]
    block = first + tl.program_id(0).to(tl.int64)
    at = block * 4096 + tl.arange(0, 4096) - start
    inside = (at >= 0) & (at < size)
    minus = -_block_signs(block, k0, k1, name)
    sums = _steps((tl.load(coefficients + tl.arange(0, 4096)) ^ minus) - minus, 0, 12).to(tl.float32)
    there = tl.load(out + at, mask=inside, other=0.0)
    tl.store(out + at, there + _flipped(sums, _element_signs(block, k0, k1, name)) * unit, mask=inside)


@triton.jit(do_not_specialize=["size", "start", "first", "blocks", "k0", "k1", "name"])
def _dot(x, size, start, first, blocks, k0, k1, name, scale, total):  # type: ignore[no-untyped-def]
    row = tl.program_id(0)
    mine = tl.full((4096,), 0, tl.int64)
    for n in range(row, blocks, tl.num_programs(0)):
        block = first + tl.cast(n, tl.int64)
        at = block * 4096 + tl.arange(0, 4096) - start
        values = tl.load(x + at, mask=(at >= 0) & (at < size), other=0.0) * scale
        values = ((values + 12582912.0) - 12582912.0).to(tl.int32)  # to nearest, ties to even, for |v| <= 2^22
        minus = -_element_signs(block, k0, k1, name)
        sums = _steps((values ^ minus) - minus, 0, 8).to(tl.int64)  # up to 2^30: four steps more leave int32
        minus = -_block_signs(block, k0, k1, name).to(tl.int64)
        mine += (_steps(sums, 8, 4) ^ minus) - minus
    tl.store(total + row * 4096 + tl.arange(0, 4096), mine)


@triton.jit
def _direction_signs(block, k0, k1, name, index):  # type: ignore[no-untyped-def]
    """S and H of one direction on a block, int32 [4096]; the lowest bit counts, 1 for -1."""
    c0, c1, c2, c3 = _philox(block // 16 * 512 + index // 8, k0, k1, name, _S)
    word = index // 2 % 4
    mine = tl.where(word < 2, tl.where(word == 0, c0, c1), tl.where(word == 2, c2, c3))
    parity = tl.arange(0, 4096) & index
    for shift in tl.static_range(4):
        parity = parity ^ (parity >> (8 >> shift))
    return (mine >> (index % 2 * 16 + block % 16).to(tl.uint32)).to(tl.int32) ^ parity


@triton.jit(do_not_specialize=["size", "start", "first", "k0", "k1", "name", "index"])
def _add(out, x, size, start, first, k0, k1, name, index, alpha):  # type: ignore[no-untyped-def]
    block = first + tl.program_id(0).to(tl.int64)
    at = block * 4096 + tl.arange(0, 4096) - start
    inside = (at >= 0) & (at < size)
    bits = (_direction_signs(block, k0, k1, name, index) ^ _element_signs(block, k0, k1, name)) & 1
    there = tl.load(x + at, mask=inside, other=0.0)
    tl.store(out + at, there + _flipped(tl.full((4096,), 0.0, tl.float32) + alpha, bits), mask=inside)


@triton.jit
def _nearest_bfloat16(value):  # type: ignore[no-untyped-def]
    """The bits of the bfloat16 nearest to float32, ties to even; int16."""
    bits = value.to(tl.int32, bitcast=True)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return tl.where((bits & 0x7FFFFFFF) > 0x7F800000, 0x7FC0, rounded).to(tl.int16)


@triton.jit(do_not_specialize=["size", "k0", "k1", "o0", "o1", "name", "index"])
def _copy(  # type: ignore[no-untyped-def]
    out, x, size, k0, k1, o0, o1, name, keep, integers, unit, index, alpha,
    reads_bits: tl.constexpr, writes_bits: tl.constexpr, sums: tl.constexpr, steps: tl.constexpr, one: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0).to(tl.int64)
    at = block * 4096 + tl.arange(0, 4096)
    inside = at < size
    if reads_bits:
        there = tl.load(x + at, mask=inside, other=0).to(tl.int32) << 16
        value = there.to(tl.float32, bitcast=True)
    else:
        value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    value = value * keep
    signs = _element_signs(block, k0, k1, name)
    if sums:
        minus = -_block_signs(block, k0, k1, name)
        total = _steps((tl.load(integers + tl.arange(0, 4096)) ^ minus) - minus, 0, 12).to(tl.float32)
        value = value + _flipped(total, signs) * unit
    if steps:
        if not one:
            signs = _element_signs(block, o0, o1, name)
        bits = (_direction_signs(block, o0, o1, name, index) ^ signs) & 1
        value = value + _flipped(tl.full((4096,), 0.0, tl.float32) + alpha, bits)
    if writes_bits:
        tl.store(out + at, _nearest_bfloat16(value), mask=inside)
    else:
        tl.store(out + at, value.to(out.dtype.element_ty), mask=inside)


def axpy_(out: Tensor, start: int, key: int, name_id: int, integers: Tensor, unit: float) -> None:
    """Add unit * sum_j integers[j] z_j to `out`, in place.

    Args:
        out: contiguous float32; its first element is element `start` of the tensor.
        key, name_id: the seed and the tensor's stream number, see `philox.py`.
        integers: int32 [4096], below 2^19 in size, on the device of `out`.
        unit: a power of two.
    """
    first, blocks, words = _plan(out, start, key, name_id)
    with _on(out):
        _axpy[(blocks,)](out, out.numel(), start, first, *words, integers, unit, **_HOW)


def dot(x: Tensor, start: int, key: int, name_id: int, scale: float) -> Tensor:
    """The sums over i of round(scale x_i) z_j[start + i] for all 4096 directions j: int64 [4096].

    `x` is contiguous float32 and `scale` a power of two such that |scale x_i| <= 2^22.
    """
    first, blocks, words = _plan(x, start, key, name_id)
    total = torch.empty((min(blocks, _ROWS), BLOCK), dtype=torch.int64, device=x.device)
    with _on(x):
        _dot[(len(total),)](x, x.numel(), start, first, blocks, *words, scale, total, **_HOW)
    return total.sum(0)


def add_into(out: Tensor, x: Tensor, start: int, key: int, name_id: int, index: int, alpha: float) -> None:
    """Set out = x + alpha z_index, for contiguous float32 tensors alike; `x` may be `out` itself."""
    first, blocks, words = _plan(out, start, key, name_id)
    with _on(out):
        _add[(blocks,)](out, x, out.numel(), start, first, *words, index, alpha, **_HOW)


def copy_moved(
    out: Tensor,
    x: Tensor,
    name_id: int,
    keep: float,
    summed: tuple[int, Tensor, float] | None,
    step: tuple[int, int, float] | None,
) -> None:
    """Set out = keep x + unit sum_j integers[j] z_j + alpha z'_index, rounded in float32 and at last to `out`.

    Args:
        out, x: whole tensors of one shape, contiguous, apart; float32, bfloat16 or float16.
        name_id: the tensor's stream number, see `philox.py`.
        keep: factor of x, rounded to float32.
        summed: (seed, integers int32 [4096] below 2^19, unit, a power of two) or None for no sum.
        step: (seed, index, alpha) or None for no direction.
    """
    other, index, alpha = step or (0, 0, 0.0)
    key, integers, unit = summed or (other, out, 1.0)
    _, blocks, (k0, k1, name) = _plan(out, 0, key, name_id)
    _, _, (o0, o1, _) = _plan(out, 0, other, name_id)
    halves = [t.view(torch.int16) if t.dtype == torch.bfloat16 else t for t in (out, x)]
    how = {"reads_bits": x.dtype == torch.bfloat16, "writes_bits": out.dtype == torch.bfloat16, "one": key == other}
    with _on(out):
        _copy[(blocks,)](
            *halves, out.numel(), k0, k1, o0, o1, name, keep, integers, unit, index, alpha,
            sums=summed is not None, steps=step is not None, **how, **_HOW,
        )  # fmt: skip


def _plan(x: Tensor, start: int, key: int, name_id: int) -> tuple[int, int, tuple[int, ...]]:
    """(first block, number of blocks, key and name as three int32) of a window."""
    first = start // BLOCK
    low, high = philox.split_key(key)
    words = tuple(word - (word >> 31 << 32) for word in (low, high, name_id))
    return first, -(-(start + x.numel()) // BLOCK) - first, words


def _on(x: Tensor) -> AbstractContextManager[object]:
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
