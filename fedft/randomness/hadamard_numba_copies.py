"""`hadamard v1` on the CPU, compiled: weights in any precision to the copy of them that a forward pass sees.

    out = round(keep x + unit sum_j integers[j] z_j + alpha z'_index)

in one pass, block by block: x is widened to float32 in the first cache, every operation rounds there as torch's does,
and the last rounding is to the precision of the copy. Halves are read and written as bits, for which numba has no type.
"""

from __future__ import annotations

from functools import partial

import numba
import numpy as np
import torch
from torch import Tensor

from fedft.arithmetic.compiled import Array, compiled
from fedft.randomness.hadamard_numba_parts import (
    BIT,
    BLOCK,
    SUPERBLOCK,
    WORDS,
    WORTH,
    D,
    S,
    add_sum,
    random_words,
    share,
    walsh,
)

_KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_U = np.uint32
_SUBNORMAL = np.float32(0.5)  # added to a float16 below 2^-14 its last bit is the last bit of the sum
_UP = np.float32(2.0**112)  # from the exponents of float16 to those of float32


@compiled
def _same(x: Array, out: Array) -> None:
    """Copy float32 as bits; assigning a slice would first ask whether the two overlap."""
    for i in range(x.size):
        out[i] = x[i]


@compiled
def _widen_bfloat16(x: Array, bits: Array) -> None:
    """The float32 of bfloat16, exactly."""
    for i in range(x.size):
        bits[i] = _U(x[i]) << _U(16)


@compiled
def _widen_float16(x: Array, bits: Array, values: Array) -> None:
    """The float32 of float16, exactly; `bits` and `values` are one memory."""
    for i in range(x.size):
        bits[i] = (_U(x[i]) & _U(0x7FFF)) << _U(13)
    for i in range(x.size):
        values[i] = values[i] * _UP
    for i in range(x.size):
        h = _U(x[i])
        special = _U(0x7F800000) if h & _U(0x7C00) == _U(0x7C00) else _U(0)
        bits[i] = bits[i] | special | (h & _U(0x8000)) << _U(16)


@compiled
def _narrow_bfloat16(bits: Array, out: Array) -> None:
    """The bfloat16 nearest to float32, ties to even."""
    for i in range(out.size):
        b = bits[i]
        rounded = (b + _U(0x7FFF) + (b >> _U(16) & _U(1))) >> _U(16)
        out[i] = _U(0x7FC0) if b & _U(0x7FFFFFFF) > _U(0x7F800000) else rounded


@compiled
def _narrow_float16(bits: Array, values: Array, spare: Array, out: Array) -> None:
    """The float16 nearest to float32, ties to even; `bits` and `values`, one memory, and `spare` are used up."""
    for i in range(out.size):
        b = bits[i] & _U(0x7FFFFFFF)
        usual = (b + _U(0xC8000FFF) + (b >> _U(13) & _U(1))) >> _U(13)
        most = _U(0x7E00) if b > _U(0x7F800000) else _U(0x7C00)
        nearest = usual if b < _U(0x47800000) else most
        spare[i] = (bits[i] >> _U(16) & _U(0x8000)) | (nearest & _U(0x7FFF))
    for i in range(out.size):
        bits[i] = bits[i] & _U(0x7FFFFFFF)
    for i in range(out.size):
        values[i] = values[i] + _SUBNORMAL
    for i in range(out.size):
        b, wide = bits[i], spare[i]
        out[i] = (wide & _U(0x8000)) | (b - _U(0x3F000000)) if b <= _U(0x3F000400) else wide


def _copy(out_at, x_at, kinds, size, first, name, keep, key, sum_at, unit, other, index, alpha):  # type: ignore[no-untyped-def]
    """The module's formula for `size` elements at two addresses, from block `first` on.

    kinds: of out, and 3 times that of x; unit: 0 for no sum; index: -1 for no direction beside it.
    """
    x16, x32 = numba.carray(x_at, (size,), np.uint16), numba.carray(x_at, (size,), np.uint32)
    out16, out32 = numba.carray(out_at, (size,), np.uint16), numba.carray(out_at, (size,), np.uint32)
    coefficients = numba.carray(sum_at, (BLOCK,), np.int32)
    values, sums, spare = np.zeros(BLOCK, np.float32), np.empty(BLOCK, np.int32), np.empty(BLOCK, np.int32)
    bits, minus, mine = values.view(np.uint32), np.empty(BLOCK // 2, np.uint32), np.empty(4, np.uint32)
    flip, row, own = np.empty(WORDS, np.uint32), np.empty(WORDS, np.uint32), np.empty(WORDS, np.uint32)
    if index >= 0:
        walsh(row, index)
    for at in range(0, size, BLOCK):
        block, n = first + at // BLOCK, min(BLOCK, size - at)
        begins = at == 0 or block % SUPERBLOCK == 0
        if kinds // 3 == 0:
            _same(x32[at : at + n], bits)
        elif kinds // 3 == 1:
            _widen_bfloat16(x16[at : at + n], bits)
        else:
            _widen_float16(x16[at : at + n], bits, values)
        if keep != np.float32(1):
            for i in range(BLOCK):
                values[i] = values[i] * keep
        if unit != np.float32(0):
            if begins:
                random_words(minus, key, name, S, block // SUPERBLOCK * 512)
            random_words(flip, key, name, D, block * 32)
            add_sum(values, block, coefficients, unit, minus, flip, sums, spare)
        if index >= 0:
            if begins:
                random_words(mine, other, name, S, block // SUPERBLOCK * 512 + index // 8)
            if unit == np.float32(0) or other != key:
                random_words(flip, other, name, D, block * 32)
            for w in range(WORDS):
                own[w] = flip[w] ^ row[w]
            value = -alpha if mine[index // 2 % 4] & BIT[block % SUPERBLOCK + index % 2 * 16] else alpha
            for w in range(WORDS):
                word = own[w]
                for k in range(32):
                    values[32 * w + k] += -value if word & BIT[k] else value
        if kinds % 3 == 0:
            _same(bits[:n], out32[at : at + n])
        elif kinds % 3 == 1:
            _narrow_bfloat16(bits, out16[at : at + n])
        else:
            _narrow_float16(bits, values, spare.view(np.uint32), out16[at : at + n])


_COPY = "void(voidptr, voidptr, int64, int64, int64, uint32, float32, uint64, voidptr, float32, uint64, int64, float32)"
_copy_at = compiled(_copy, partial(numba.cfunc, _COPY)).ctypes


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
        summed: (seed, integers int32 [4096] below 2^19 on the CPU, unit, a power of two) or None for no sum.
        step: (seed, index, alpha) or None for no direction.
    """
    key, integers, unit = summed or (0, None, 0.0)
    other, index, alpha = step or (0, -1, 0.0)
    kinds, size = _KINDS[out.dtype] + 3 * _KINDS[x.dtype], out.numel()
    to, at, table = out.data_ptr(), x.data_ptr(), 0 if integers is None else integers.data_ptr()

    def of(low: int, high: int) -> None:
        there = to + low * out.itemsize, at + low * x.itemsize
        _copy_at(*there, kinds, high - low, low // BLOCK, name_id, keep, key, table, unit, other, index, alpha)

    if size < 2 * WORTH:
        of(0, size)
    else:
        share(0, size, of)
