"""`hadamard v1` on the CPU, compiled: the arithmetic of `hadamard.py` block by block, all buffers in the first cache.

Bits are made where they are used, so nothing is kept between calls. Without `fastmath` numba keeps to IEEE: every
float is rounded once and zeros keep their sign, as in torch, so the results are its results bit for bit.

Written for what LLVM turns into vectors: flat indices, constant counts, bits looked up in `BIT`, and `number(...)`
around sums, which numba would otherwise widen to 64 bits. Arrays are made outside, where nobody has to compile that.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from fedft.arithmetic.compiled import Array, compiled
from fedft.randomness.hadamard_numba_parts import (
    BIT,
    BLOCK,
    QUARTER,
    SUPERBLOCK,
    WORDS,
    WORTH,
    D,
    S,
    add_sum,
    random_words,
    rotate,
    share,
    walsh,
)

_ROUNDER = np.float32(3 << 22)  # added and taken away again it rounds |v| <= 2^22 to an integer, ties to even


@compiled
def _axpy(out, first, key, name, coefficients, unit, minus, flip, sums, spare):  # type: ignore[no-untyped-def]
    for n in range(out.size // BLOCK):
        block = first + n
        if n == 0 or block % SUPERBLOCK == 0:
            random_words(minus, key, name, S, block // SUPERBLOCK * 512)
        random_words(flip, key, name, D, block * 32)
        add_sum(out[BLOCK * n : BLOCK * (n + 1)], block, coefficients, unit, minus, flip, sums, spare)


@compiled
def _dot(x, first, key, name, scale, total, minus, flip, values, spare, wide):  # type: ignore[no-untyped-def]
    for n in range(x.size // BLOCK):
        block = first + n
        if n == 0 or block % SUPERBLOCK == 0:
            random_words(minus, key, name, S, block // SUPERBLOCK * 512)
        random_words(flip, key, name, D, block * 32)
        for w in range(WORDS):
            word = flip[w]
            for k in range(32):
                value = np.int32((x[BLOCK * n + 32 * w + k] * scale + _ROUNDER) - _ROUNDER)
                values[32 * w + k] = -value if word & BIT[k] else value
        for _ in range(2):
            rotate(values, spare)
            rotate(spare, values)
        rotate(values, wide)  # from 2^30 on: int32 would not do
        even, odd = BIT[block % SUPERBLOCK], BIT[block % SUPERBLOCK + 16]
        for k in range(QUARTER):  # the last two steps, too
            a, b, c, d = wide[k], wide[k + QUARTER], wide[k + 2 * QUARTER], wide[k + 3 * QUARTER]
            a, b, c, d = a + b, a - b, c + d, c - d
            a, b, c, d = a + c, b + d, a - c, b - d
            total[4 * k] += -a if minus[2 * k] & even else a
            total[4 * k + 1] += -b if minus[2 * k] & odd else b
            total[4 * k + 2] += -c if minus[2 * k + 1] & even else c
            total[4 * k + 3] += -d if minus[2 * k + 1] & odd else d


def _add(out_at, x_at, size, start, key, name, index, alpha):  # type: ignore[no-untyped-def]
    """out = x + alpha z_index for float32 at two addresses, which may be one.

    A forward pass calls this for every tensor, most of them small: what a call costs counts, so there is one for all
    parts of a tensor, ragged ends too, and it takes plain numbers.
    """
    out, x = numba.carray(out_at, (size,), np.float32), numba.carray(x_at, (size,), np.float32)
    inside = out.ctypes.data == x.ctypes.data
    minus, flip, row = np.empty(4, np.uint32), np.empty(WORDS, np.uint32), np.empty(WORDS, np.uint32)
    walsh(row, index)
    for block in range(start // BLOCK, -(-(start + out.size) // BLOCK)):
        at = block * BLOCK - start
        if at <= 0 or block % SUPERBLOCK == 0:
            random_words(minus, key, name, S, block // SUPERBLOCK * 512 + index // 8)
        value = -alpha if minus[index // 2 % 4] & BIT[block % SUPERBLOCK + index % 2 * 16] else alpha
        low, high = max(0, -at), min(BLOCK, out.size - at)
        first, last = low // 128, -(-high // 128)  # Philox blocks
        random_words(flip[4 * first : 4 * last], key, name, D, block * 32 + first)
        if high - low < BLOCK:
            for i in range(low, high):
                out[at + i] = x[at + i] + (-value if (flip[i // 32] ^ row[i // 32]) & BIT[i % 32] else value)
            continue
        here, there = out[at : at + BLOCK], x[at : at + BLOCK]
        for w in range(WORDS):  # two loops alike: only of memory that is apart, or one, can the compiler make vectors
            word = flip[w] ^ row[w]
            if inside:
                for k in range(32):
                    here[32 * w + k] += -value if word & BIT[k] else value
            else:
                for k in range(32):
                    here[32 * w + k] = there[32 * w + k] + (-value if word & BIT[k] else value)


_ADD = "void(voidptr, voidptr, int64, int64, uint64, uint32, int64, float32)"
_add_at = compiled(_add, partial(numba.cfunc, _ADD)).ctypes


def axpy_(out: Tensor, start: int, key: int, name_id: int, integers: Tensor, unit: float) -> None:
    """Add unit * sum_j integers[j] z_j to `out`, in place.

    Args:
        out: contiguous float32; its first element is element `start` of the tensor.
        key, name_id: the seed and the tensor's stream number, see `philox.py`.
        integers: int32 [4096], below 2^19 in size, on the device of `out`.
        unit: a power of two.
    """
    coefficients, stream = integers.numpy(), (np.uint64(key), np.uint32(name_id))

    def of(part: Array, first: int) -> None:
        words = np.empty(BLOCK // 2, np.uint32), np.empty(WORDS, np.uint32)
        _axpy(part, first, *stream, coefficients, np.float32(unit), *words, *_buffers(np.int32, np.int32))

    _each(out, start, of, write=True)


def dot(x: Tensor, start: int, key: int, name_id: int, scale: float) -> Tensor:
    """The sums over i of round(scale x_i) z_j[start + i] for all 4096 directions j: int64 [4096].

    `x` is contiguous float32 and `scale` a power of two such that |scale x_i| <= 2^22.
    """
    stream, totals = (np.uint64(key), np.uint32(name_id)), [np.zeros(BLOCK, np.int64)]

    def of(part: Array, first: int) -> None:
        total, words = np.zeros(BLOCK, np.int64), (np.empty(BLOCK // 2, np.uint32), np.empty(WORDS, np.uint32))
        buffers = _buffers(np.int32, np.int32, np.int64)
        _dot(part, first, *stream, np.float32(scale), total, *words, *buffers)
        totals.append(total)

    _each(x, start, of)
    return torch.from_numpy(np.sum(totals, axis=0))


def add_into(out: Tensor, x: Tensor, start: int, key: int, name_id: int, index: int, alpha: float) -> None:
    """Set out = x + alpha z_index, for contiguous float32 tensors alike; `x` may be `out` itself."""
    to, at, size = out.data_ptr(), x.data_ptr(), out.numel()
    if size < 2 * WORTH:
        _add_at(to, at, size, start, key, name_id, index, alpha)
        return

    def of(low: int, high: int) -> None:
        _add_at(to + 4 * low, at + 4 * low, high - low, start + low, key, name_id, index, alpha)

    share(0, size, of)


def copy_moved(*how: Any) -> None:
    """`hadamard_numba_copies.copy_moved`, which is compiled when it is asked for: that takes seconds."""
    from fedft.randomness import hadamard_numba_copies

    hadamard_numba_copies.copy_moved(*how)


def _buffers(*types: type) -> list[Array]:
    return [np.empty(BLOCK, number) for number in types]


def _each(x: Tensor, start: int, of: Callable[[Array, int], None], *, write: bool = False) -> None:
    """Call `of(part of x, number of its first block)` for parts of whole blocks that cover the window of `x`.

    The ends of the window within a block are padded to one with zeros; with `write` the result is copied back.
    """
    numbers = x.numpy()
    head = min(numbers.size, -start % BLOCK)
    tail = numbers.size - (numbers.size - head) % BLOCK
    for low, high in ((0, head), (tail, numbers.size)):
        if low < high:
            block, skip = divmod(start + low, BLOCK)
            padded = np.zeros(BLOCK, np.float32)
            there = padded[skip : skip + high - low]
            there[:] = numbers[low:high]
            of(padded, block)
            if write:
                numbers[low:high] = there
    share(head, tail, lambda low, high: of(numbers[low:high], (start + low) // BLOCK))
