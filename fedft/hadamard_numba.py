"""`hadamard v1` on the CPU, compiled: the arithmetic of `hadamard.py` block by block, all buffers in the first cache.

Bits are made where they are used, so nothing is kept between calls. Without `fastmath` numba keeps to IEEE: every
float is rounded once and zeros keep their sign, as in torch, so the results are its results bit for bit.

Written for what LLVM turns into vectors: flat indices, constant counts, bits looked up in `_BIT`, and `number(...)`
around sums, which numba would otherwise widen to 64 bits. Arrays are made outside, where nobody has to compile that.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedft import philox

BLOCK = 4096
_QUARTER = BLOCK // 4
_SUPERBLOCK = 16  # blocks that share Philox blocks of S
_WORDS = BLOCK // 32
_SHARE = 1 << 21  # elements worth a thread
_D, _S = np.uint32(philox.DIRECTION), np.uint32(philox.DIRECTION_SIGN)
_BIT = np.uint32(1) << np.arange(32, dtype=np.uint32)
_ROUNDER = np.float32(3 << 22)  # added and taken away again it rounds |v| <= 2^22 to an integer, ties to even

Array = NDArray[Any]


def _jit(function: Callable[..., Any]) -> Any:
    """`function`, compiled at its first call; kept for other processes where there is a place to write."""
    how: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
    try:
        return numba.njit(cache=True, **how)(function)
    except RuntimeError:  # no such place
        return numba.njit(**how)(function)


@_jit
def _words(out: Array, key: np.uint64, name: np.uint32, purpose: np.uint32, first: int) -> None:
    """Philox blocks `first`, `first + 1`, .. of a stream as uint32 until `out` is full: see `philox.py`."""
    for block in range(out.size // 4):
        place = np.uint64(first + block)
        c0, c1, c2, c3 = np.uint32(place), np.uint32(place >> np.uint64(32)), name, purpose
        k0, k1 = np.uint32(key), np.uint32(key >> np.uint64(32))
        for _ in range(10):
            p0, p1 = np.uint64(c0) * np.uint64(0xD2511F53), np.uint64(c2) * np.uint64(0xCD9E8D57)
            c0, c1 = np.uint32(p1 >> np.uint64(32)) ^ c1 ^ k0, np.uint32(p1)
            c2, c3 = np.uint32(p0 >> np.uint64(32)) ^ c3 ^ k1, np.uint32(p0)
            k0, k1 = np.uint32(k0 + np.uint32(0x9E3779B9)), np.uint32(k1 + np.uint32(0xBB67AE85))
        out[4 * block], out[4 * block + 1], out[4 * block + 2], out[4 * block + 3] = c0, c1, c2, c3


@_jit
def _rotate(x: Array, y: Array) -> None:
    """y = x after two of the twelve steps: the top two bits of the index, which become its lowest. Six times is H."""
    number = y.dtype.type
    for k in range(_QUARTER):
        a, b, c, d = number(x[k]), number(x[k + _QUARTER]), number(x[k + 2 * _QUARTER]), number(x[k + 3 * _QUARTER])
        a, b, c, d = number(a + b), number(a - b), number(c + d), number(c - d)
        y[4 * k], y[4 * k + 1], y[4 * k + 2], y[4 * k + 3] = a + c, b + d, a - c, b - d


@_jit
def _axpy(out, first, key, name, coefficients, unit, minus, flip, sums, spare):  # type: ignore[no-untyped-def]
    for n in range(out.size // BLOCK):
        block = first + n
        if n == 0 or block % _SUPERBLOCK == 0:
            _words(minus, key, name, _S, block // _SUPERBLOCK * 512)
        _words(flip, key, name, _D, block * 32)
        even, odd = _BIT[block % _SUPERBLOCK], _BIT[block % _SUPERBLOCK + 16]
        for k in range(BLOCK // 2):
            a, b = coefficients[2 * k], coefficients[2 * k + 1]
            sums[2 * k] = -a if minus[k] & even else a
            sums[2 * k + 1] = -b if minus[k] & odd else b
        for _ in range(3):
            _rotate(sums, spare)
            _rotate(spare, sums)
        for w in range(_WORDS):
            word = flip[w]
            for k in range(32):
                value = np.float32(sums[32 * w + k])
                out[BLOCK * n + 32 * w + k] += unit * (-value if word & _BIT[k] else value)


@_jit
def _dot(x, first, key, name, scale, total, minus, flip, values, spare, wide):  # type: ignore[no-untyped-def]
    for n in range(x.size // BLOCK):
        block = first + n
        if n == 0 or block % _SUPERBLOCK == 0:
            _words(minus, key, name, _S, block // _SUPERBLOCK * 512)
        _words(flip, key, name, _D, block * 32)
        for w in range(_WORDS):
            word = flip[w]
            for k in range(32):
                value = np.int32((x[BLOCK * n + 32 * w + k] * scale + _ROUNDER) - _ROUNDER)
                values[32 * w + k] = -value if word & _BIT[k] else value
        for _ in range(2):
            _rotate(values, spare)
            _rotate(spare, values)
        _rotate(values, wide)  # from 2^30 on: int32 would not do
        even, odd = _BIT[block % _SUPERBLOCK], _BIT[block % _SUPERBLOCK + 16]
        for k in range(_QUARTER):  # the last two steps, too
            a, b, c, d = wide[k], wide[k + _QUARTER], wide[k + 2 * _QUARTER], wide[k + 3 * _QUARTER]
            a, b, c, d = a + b, a - b, c + d, c - d
            a, b, c, d = a + c, b + d, a - c, b - d
            total[4 * k] += -a if minus[2 * k] & even else a
            total[4 * k + 1] += -b if minus[2 * k] & odd else b
            total[4 * k + 2] += -c if minus[2 * k + 1] & even else c
            total[4 * k + 3] += -d if minus[2 * k + 1] & odd else d


@_jit
def _add(out, x, copy, first, key, name, index, alpha, minus, flip, row):  # type: ignore[no-untyped-def]
    row[0] = (
        0  # Walsh row: bit i is the parity of i & index; the upper half of 2^t bits is the lower one, or its opposite
    )
    for t in range(5):
        upper = row[0] ^ np.uint32((1 << (1 << t)) - 1 if index >> t & 1 else 0)
        row[0] |= np.uint32(upper << (1 << t))
    for t in range(7):
        for w in range(1 << t):
            row[w + (1 << t)] = ~row[w] if index >> (t + 5) & 1 else row[w]
    for n in range(out.size // BLOCK):
        block = first + n
        if n == 0 or block % _SUPERBLOCK == 0:
            _words(minus, key, name, _S, block // _SUPERBLOCK * 512 + index // 8)
        _words(flip, key, name, _D, block * 32)
        minus_here = minus[index // 2 % 4] & _BIT[block % _SUPERBLOCK + index % 2 * 16]
        value = -alpha if minus_here else alpha
        if copy:
            for k in range(BLOCK):
                out[BLOCK * n + k] = x[BLOCK * n + k]
        for w in range(_WORDS):
            word = flip[w] ^ row[w]
            for k in range(32):
                out[BLOCK * n + 32 * w + k] += -value if word & _BIT[k] else value


def axpy_(out: Tensor, start: int, key: int, name_id: int, integers: Tensor, unit: float) -> None:
    """out += unit * sum_j integers[j] z_j, where `integers` is int32 [4096] and `out` begins at element `start`."""
    coefficients, stream = integers.numpy(), (np.uint64(key), np.uint32(name_id))

    def of(_: Array, part: Array, first: int) -> None:
        words = np.empty(BLOCK // 2, np.uint32), np.empty(_WORDS, np.uint32)
        _axpy(part, first, *stream, coefficients, np.float32(unit), *words, *_buffers(np.int32, np.int32))

    _each(out, start, of, out)


def dot(x: Tensor, start: int, key: int, name_id: int, scale: float) -> Tensor:
    """sum_i round(scale x_i) z_j[start + i] for every j, int64 [4096]."""
    stream, totals = (np.uint64(key), np.uint32(name_id)), [np.zeros(BLOCK, np.int64)]

    def of(part: Array, _: Array, first: int) -> None:
        total, words = np.zeros(BLOCK, np.int64), (np.empty(BLOCK // 2, np.uint32), np.empty(_WORDS, np.uint32))
        buffers = _buffers(np.int32, np.int32, np.int64)
        _dot(part, first, *stream, np.float32(scale), total, *words, *buffers)
        totals.append(total)

    _each(x, start, of)
    return torch.from_numpy(np.sum(totals, axis=0))


def add_into(out: Tensor, x: Tensor, start: int, key: int, name_id: int, index: int, alpha: float) -> None:
    """out = x + alpha z_index; x may be out."""
    stream, copy = (np.uint64(key), np.uint32(name_id)), out.data_ptr() != x.data_ptr()

    def of(source: Array, part: Array, first: int) -> None:
        words = np.empty(4, np.uint32), np.empty(_WORDS, np.uint32), np.empty(_WORDS, np.uint32)
        _add(part, source, copy, first, *stream, index, np.float32(alpha), *words)

    _each(x, start, of, out)


def _buffers(*types: type) -> list[Array]:
    return [np.empty(BLOCK, number) for number in types]


def _each(x: Tensor, start: int, of: Callable[[Array, Array, int], None], out: Tensor | None = None) -> None:
    """of(part of x, part of out, its first block) for parts of whole blocks that cover the window.

    Ragged ends of a window stand among zeros, both parts in one; the rest is shared by torch's number of threads.
    """
    source = x.numpy()
    target = source if out is None else out.numpy()
    head = min(source.size, -start % BLOCK)
    tail = source.size - (source.size - head) % BLOCK
    for low, high in ((0, head), (tail, source.size)):
        if low < high:
            block, skip = divmod(start + low, BLOCK)
            padded = np.zeros(BLOCK, np.float32)
            there = padded[skip : skip + high - low]
            there[:] = source[low:high]
            of(padded, padded, block)
            if out is not None:
                target[low:high] = there
    threads = max(1, min(torch.get_num_threads(), (tail - head) // _SHARE))
    size = -(-(tail - head) // (BLOCK * threads)) * BLOCK or BLOCK

    def share(low: int) -> None:
        here = slice(low, min(low + size, tail))
        of(source[here], target[here], (start + low) // BLOCK)

    if threads == 1:
        share(head)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(share, range(head, tail, size)))
