"""Integers in few bytes, lossless: small symbols, which entries are kept, and increasing lists. The format of each is
here; every form is the smallest of several, told by a byte.

    varint    7 bits per byte, low ones first, the top bit says that more follow; no longer than needed
    bits      most significant bit of a byte first; the last byte is filled up with zeros

    symbols   n integers in -m .. m, m <= 127:  form u8, then
                0        nothing: all are 0
                1 .. 8   n fields of so many bits: symbol + 2^(form - 1) - 1
                16       m u8 | m + 1 sizes for 0 .. m, both signs alike | stream
                17       m u8 | 2m + 1 sizes for -m .. m | stream
                18       m u8 | stream; the sizes are those of a normal distribution in steps of 0.46 of its deviation
              A size s in 0 .. 192 stands for the weight floor(2^(s/8)); in form 18 it is 192 - (39 i^2 + 16) // 32 of
              the symbol i, at least 0.
    support   k of d places, ascending:  k varint, then for 0 < k < d:  form u8
                1        d bits
                2        gaps: rice
                3        stream of d symbols 0 or 1, the 1 with frequency k / d
    rice      p u8 | sum of the quotients varint | bits: for each gap g >> p ones and a zero, then p low bits of each
              gap (a gap is the number of places between one and the next)
    numbers   n in 0 .. 65535:  form u8
                1 .. 16  n fields of so many bits
                32       they ascend strictly: rice
    stream    words varint | so many u32, little endian: rANS with a state x of 64 bits and frequencies f out of 2^24.
              To read: x is the last word and the one before it (if there is one) as low half; then for each symbol
              r = x mod 2^24, the symbol is the one with c <= r < c + f (c: sum of the f before it),
              x = f floor(x / 2^24) + r - c, and if x < 2^32 and words are left, the last of them goes in as low half.
              In the end x is 0 and no word is left

Frequencies come from weights w_1 .. w_a by integer arithmetic alone: f_i = 1 + floor(w_i (2^24 - a) / sum w), and what
is missing to 2^24 goes to the first of the largest. The coder (package `constriction`) is given f_i - 1 as weights,
whose sum is 2^24 - a, so that its own rounding has nothing left to do.

Readers raise ValueError for what these lines do not allow, and check lengths before they allocate.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fedft.compression import streams
from fedft.compression.bit_packing import Ints, Reader, get_bits, get_fields, put_bits, put_fields, varint

TOTAL = 1 << 24
SAMPLE = 1 << 14  # symbols counted for a table; a table need not be exact
_SIZES = 193
_RANS, _RANS_LOPSIDED, _RANS_NORMAL, _RICE = 16, 17, 18, 32


# Symbols


def put_symbols(q: NDArray[np.int32]) -> bytes:
    """The bytes of a vector of integers in -127 .. 127, in the form that takes the fewest."""
    m = max(int(q.max()), -int(q.min())) if len(q) else 0
    if not m:
        return b"\0"
    width = (2 * m).bit_length()
    packed = (width * len(q) + 7) // 8
    shifted = q + np.int32(m)
    best, form, table = float(packed), width, b""
    if packed > 16:
        some = shifted[:: -(-len(q) // SAMPLE)].astype(np.int64)  # from all over; as it is counted, without a detour
        counts = np.bincount(some, minlength=2 * m + 1)
        for f in (_RANS_NORMAL, _RANS, _RANS_LOPSIDED):
            if (length := {_RANS_NORMAL: 0, _RANS: m + 1, _RANS_LOPSIDED: 2 * m + 1}[f]) + 8 < best:
                t = bytes(_sizes(counts if f == _RANS_LOPSIDED else (counts + counts[::-1])[m:])) if length else b""
                cost = len(q) * _bits(counts, _unfold(f, m, t)) / 8 + length + 8
                if cost < best:
                    best, form, table = cost, f, t
    if form <= 8:
        return bytes([width]) + put_fields(q + ((1 << (width - 1)) - 1), width)
    return bytes([form, m]) + table + _put_stream(shifted, _frequencies(_unfold(form, m, table)))


def get_symbols(r: Reader, n: int) -> NDArray[np.int32]:
    """The next n integers in -127 .. 127, int32 [n]. Raises ValueError for bytes that are no such symbols."""
    form = r.byte()
    if not form:
        return np.zeros(n, np.int32)
    if form <= 8:
        q = get_fields(r, n, form) - ((1 << (form - 1)) - 1)
        if n and int(q.max()) > 127:
            raise ValueError("a symbol is above 127")
        return q
    if form not in (_RANS, _RANS_LOPSIDED, _RANS_NORMAL):
        raise ValueError(f"symbols of form {form}")
    m = r.byte()
    if not 0 < m <= 127:
        raise ValueError(f"expected symbols up to 1 .. 127, got {m}")
    table = bytes(r.take({_RANS: m + 1, _RANS_LOPSIDED: 2 * m + 1, _RANS_NORMAL: 0}[form]))
    if max(table, default=0) >= _SIZES:
        raise ValueError(f"a size in a table is {max(table)}, at most {_SIZES - 1} allowed")
    q = _get_stream(r, n, _frequencies(_unfold(form, m, table)))
    q -= m
    return q


def _unfold(form: int, m: int, table: bytes) -> Sequence[int]:
    """The sizes of -m .. m."""
    if form == _RANS_NORMAL:
        return _normal(m)
    return [*reversed(table[1:]), *table] if form == _RANS else list(table)


@lru_cache(maxsize=1)
def _weights() -> NDArray[np.int64]:
    """floor(2^(s/8)), by integer square roots: the same everywhere."""

    def eighth_root(n: int) -> int:
        return math.isqrt(math.isqrt(math.isqrt(n)))

    return np.array([eighth_root(1 << s) for s in range(_SIZES)], np.int64)


def _sizes(counts: Ints) -> list[int]:
    scaled = counts.astype(np.int64) * (1 << 24) // int(counts.max())
    sizes: list[int] = np.maximum(np.searchsorted(_weights(), scaled, "right") - 1, 0).tolist()
    return sizes


@lru_cache(maxsize=256)
def _normal(m: int) -> tuple[int, ...]:
    return tuple(max(0, _SIZES - 1 - (39 * i * i + 16) // 32) for i in range(-m, m + 1))


def _bits(counts: Ints, sizes: Sequence[int]) -> float:
    """Bits per symbol of those counted, about."""
    return float(counts @ (24 - np.log2(_frequencies(sizes)))) / float(counts.sum())


def _frequencies(sizes: Sequence[int]) -> NDArray[np.int64]:
    weights = _weights()[np.array(sizes)]
    f = 1 + weights * (TOTAL - len(weights)) // weights.sum()
    f[f.argmax()] += TOTAL - f.sum()
    return f


# Streams


def _put_stream(symbols: NDArray[np.int32], frequencies: NDArray[np.int64]) -> bytes:
    words = streams.put(symbols, frequencies)
    return varint(len(words)) + words.astype("<u4").tobytes()


def _get_stream(r: Reader, n: int, frequencies: NDArray[np.int64]) -> NDArray[np.int32]:
    return streams.get(np.frombuffer(r.take(4 * r.varint()), "<u4").astype(np.uint32), n, frequencies)


# Supports and lists


def bits_per_place(p: float) -> float:
    """Entropy, in bits, of whether a place is kept, if a share p of all places are.

    >>> bits_per_place(0.5)
    1.0
    """
    return 0.0 if p in (0.0, 1.0) else -p * math.log2(p) - (1 - p) * math.log2(1 - p)


def put_support(index: NDArray[np.int64], d: int) -> bytes:
    """The bytes that say which of d places are kept: `index` holds their numbers, ascending."""
    k = len(index)
    head = varint(k)
    if k in (0, d):
        return head
    bitmap = (d + 7) // 8
    stream = 1.01 * d * bits_per_place(k / d) / 8 + 9  # slower, so it has to be worth it
    if 4 * k <= d:  # above it never is the shortest
        gaps = np.diff(index, prepend=-1) - 1
        p, rice = _rice_size(gaps)
        if rice <= min(bitmap, stream):
            return head + b"\2" + _put_rice(gaps, p)
    mask = np.zeros(d, np.uint8)
    mask[index] = 1
    if bitmap <= stream:
        return head + b"\1" + put_bits(mask)
    return head + b"\3" + _put_stream(mask.astype(np.int32), _share(k, d))


def get_support(r: Reader, d: int, most: int) -> NDArray[np.int64]:
    """The kept ones of d places, ascending. Raises ValueError if they are more than `most`, or no such places."""
    k = r.varint()
    if k > most:
        raise ValueError(f"{k} entries are kept of {d}, at most {most} allowed")
    if not k:
        return np.zeros(0, np.int64)
    if k == d:
        return np.arange(d)
    form = r.byte()
    if form == 2:
        index = _get_rice(r, k)
    elif form in (1, 3):
        mask = get_bits(r, d) if form == 1 else _get_stream(r, d, _share(k, d))
        index = np.flatnonzero(mask)
    else:
        raise ValueError(f"support of form {form}")
    if len(index) != k or index[-1] >= d:
        raise ValueError(f"expected {k} of {d} places, got {len(index)} up to {index[-1] if len(index) else 0}")
    return index


def _share(k: int, d: int) -> NDArray[np.int64]:
    f = min(max(k * TOTAL // d, 1), TOTAL - 1)
    return np.array([TOTAL - f, f])


def _rice_size(gaps: Ints) -> tuple[int, int]:
    """(parameter, bytes) of the shortest Rice code of gaps."""
    mean = float(gaps.mean())
    around = max(0, round(math.log2(math.log(2) * mean))) if mean > 1 else 0
    sizes = {p: len(gaps) * (1 + p) + int((gaps >> p).sum()) for p in range(max(0, around - 1), around + 2)}
    best = min(sizes, key=sizes.__getitem__)
    return best, (sizes[best] + 7) // 8 + 5


def _put_rice(gaps: Ints, p: int) -> bytes:
    quotients = gaps >> p
    total = int(quotients.sum())
    unary = np.ones(total + len(gaps), np.uint8)
    unary[np.cumsum(quotients + 1) - 1] = 0
    low = ((gaps[:, None] >> np.arange(p - 1, -1, -1)) & 1).astype(np.uint8)
    return bytes([p]) + varint(total) + put_bits(np.concatenate([unary, low.reshape(-1)]))


def _get_rice(r: Reader, n: int) -> NDArray[np.int64]:
    """n ascending numbers; the bits are there before anything is allocated."""
    p = r.byte()
    if p > 31:
        raise ValueError(f"expected a Rice parameter up to 31, got {p}")
    unary = r.varint() + n
    if unary << p >= 1 << 48:
        raise ValueError(f"gaps of {n} numbers add up to far too much")
    bits = get_bits(r, unary + n * p)
    ends = np.flatnonzero(bits[:unary] == 0)
    if len(ends) != n or unary != (ends[-1] + 1 if n else 0):
        raise ValueError(f"expected {n} quotients in {unary} bits, got {len(ends)}")
    gaps = np.diff(ends, prepend=-1) - 1
    low = np.zeros(n, np.int64)
    for plane in bits[unary:].reshape(n, p).T:
        low = (low << 1) | plane
    return np.cumsum((gaps << p) + low + 1) - 1


def put_numbers(x: NDArray[np.uint16]) -> bytes:
    """The bytes of a vector of integers in 0 .. 65535, fewer where they ascend strictly."""
    values = x.astype(np.int64)
    width = max(1, int(values.max(initial=0)).bit_length())  # so that many numbers need many bytes
    gaps = np.diff(values, prepend=-1) - 1
    if int(gaps.min(initial=0)) >= 0 and len(values):
        p, rice = _rice_size(gaps)
        if rice < width * len(values) / 8:
            return bytes([_RICE]) + _put_rice(gaps, p)
    return bytes([width]) + put_fields(values, width)


def get_numbers(r: Reader, n: int) -> NDArray[np.int64]:
    """The next n integers in 0 .. 65535, int64 [n]. Raises ValueError for bytes that are no such numbers."""
    form = r.byte()
    if form == _RICE:
        values = _get_rice(r, n)
        if n and int(values[-1]) > 65535:
            raise ValueError(f"a number is {values[-1]}, at most 65535 allowed")
        return values
    if not 1 <= form <= 16:
        raise ValueError(f"numbers of form {form}")
    return get_fields(r, n, form).astype(np.int64)
