"""The `stream` of `entropy_coder.py`, compiled: the words of `constriction`, bit for bit, and its symbols.

A division by a frequency f < 2^23 is a product with ceil(2^(63 + s) / f), s = ceil(log2 f): exact for every state below
2^63, and f 2^40 is above all states that are divided by f. A table says for the upper 12 bits of a remainder which
symbol to begin to look at.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from fedft.arithmetic.compiled import Array, compiled

TOTAL_BITS, UPPER_BITS = 24, 12
_U = np.uint64
_MASK, _WORD, _SHIFT, _ROOM = _U((1 << TOTAL_BITS) - 1), _U(32), _U(TOTAL_BITS), _U(64 - TOTAL_BITS)
_LEAST = _U(1 << 32)


@intrinsic
def _high(_: Any, __: Any, ___: Any) -> Any:
    """The upper 64 bits of the product of two uint64."""

    def code(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        wide = ir.IntType(128)
        product = builder.mul(*(builder.zext(a, wide) for a in arguments))
        return builder.trunc(builder.lshr(product, ir.Constant(wide, 64)), ir.IntType(64))

    return types.uint64(types.uint64, types.uint64), code


@compiled
def _finish(x: np.uint64, out: Array, k: int) -> int:
    """Write the state behind k words; returns how many there are."""
    if x:
        out[k] = np.uint32(x)
        k += 1
        if x >> _WORD:
            out[k] = np.uint32(x >> _WORD)
            k += 1
    return k


@compiled
def _put(symbols, frequencies, starts, begin, inverses, shifts, others, out):  # type: ignore[no-untyped-def]
    """For f below 2^23; see `_products`. A state of 0, with which it begins, is no number that the products are for."""
    x, k, left = _U(0), 0, symbols.size
    while left and x == _U(0):
        left -= 1
        x = starts[symbols[left]]
    for i in range(left - 1, -1, -1):
        s = symbols[i]
        if x >> _ROOM >= frequencies[s]:
            out[k] = np.uint32(x)
            k += 1
            x >>= _WORD
        whole = _high(x, inverses[s]) >> shifts[s]  # type: ignore[call-arg]
        x = x + begin[s] + whole * others[s]
    return _finish(x, out, k)


@compiled
def _put_any(symbols, frequencies, starts, out):  # type: ignore[no-untyped-def]
    """For any frequencies."""
    x, k = _U(0), 0
    for i in range(symbols.size - 1, -1, -1):
        s = symbols[i]
        f = frequencies[s]
        if x >> _ROOM >= f:
            out[k] = np.uint32(x)
            k += 1
            x >>= _WORD
        whole = x // f
        x = (whole << _SHIFT) + starts[s] + (x - whole * f)
    return _finish(x, out, k)


@compiled
def _get(words, frequencies, starts, first, out):  # type: ignore[no-untyped-def]
    """Whether the stream ends where its symbols do, which are in `out`."""
    x, k = _U(0), words.size
    for _ in range(min(k, 2)):
        k -= 1
        x = x << _WORD | _U(words[k])
    for i in range(out.size):
        r = x & _MASK
        s = np.int64(first[r >> _U(TOTAL_BITS - UPPER_BITS)])
        while starts[s + 1] <= r:
            s += 1
        out[i] = s
        x = frequencies[s] * (x >> _SHIFT) + (r - starts[s])
        if x < _LEAST and k:
            k -= 1
            x = x << _WORD | _U(words[k])
    return x == _U(0) and k == 0


def put(symbols: NDArray[np.int32], frequencies: NDArray[np.int64]) -> NDArray[np.uint32]:
    """The words of symbols 0 .. a - 1, of which `frequencies` [a] say how many of 2^24 places each has, 1 or more."""
    f, starts = _places(frequencies)
    out = np.empty(len(symbols) + 2, np.uint32)  # a symbol adds at most 24 bits
    if int(frequencies.max()) >= 1 << 23:
        return out[: _put_any(symbols, f, starts, out)]
    return out[: _put(symbols, f, starts, *_products(frequencies.tobytes()), out)]


def get(words: NDArray[np.uint32], n: int, frequencies: NDArray[np.int64]) -> NDArray[np.int32]:
    """The n symbols of a stream. Raises ValueError where its last word is 0, or it does not end with them."""
    if len(words) and not words[-1]:
        raise ValueError("the last word of a stream is 0")
    f, starts = _places(frequencies)
    out = np.empty(n, np.int32)
    if not _get(words, f, starts, _first(frequencies.tobytes()), out):
        raise ValueError("a stream does not end where its symbols do")
    return out


@lru_cache(maxsize=64)  # many tensors have the frequencies of a normal distribution
def _products(frequencies: bytes) -> tuple[Array, Array, Array, Array]:
    """(begin, inverses, shifts, others) as `_put` takes them, of int64 frequencies f below 2^23.

    Others are 2^24 - f. Where f is 1 the inverse is cut to 2^64 - 1, a product is 1 too small, and `begin` larger.
    """
    f, starts = _places(np.frombuffer(frequencies, np.int64))
    plain = f.tolist()
    sizes = [(n - 1).bit_length() for n in plain]
    inverses = [-(-(1 << (63 + s)) // n) if n > 1 else (1 << 64) - 1 for n, s in zip(plain, sizes, strict=True)]
    begin = starts[:-1] + np.where(f == 1, _MASK, _U(0))
    shifts = np.array([max(s - 1, 0) for s in sizes], np.uint64)
    return begin, np.array(inverses, np.uint64), shifts, (_MASK + _U(1)) - f


@lru_cache(maxsize=64)
def _first(frequencies: bytes) -> Array:
    """int16 [4096]: the first symbol that a remainder of these upper 12 bits may be."""
    upper = np.arange(1 << UPPER_BITS, dtype=np.uint64) << _U(TOTAL_BITS - UPPER_BITS)
    found: Array = np.searchsorted(_places(np.frombuffer(frequencies, np.int64))[1], upper, "right") - 1
    return found.astype(np.int16)


def _places(frequencies: NDArray[np.int64]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """(frequencies [a], where the places of each begin and at last 2^24 [a + 1])."""
    f = frequencies.astype(np.uint64)
    starts = np.zeros(len(f) + 1, np.uint64)
    np.cumsum(f, out=starts[1:])
    return f, starts
