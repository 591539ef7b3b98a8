"""What the compiled kernels of `hadamard v1` on the CPU share: random words, the transform, threads."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from fedft.arithmetic.compiled import Array, compiled
from fedft.randomness import philox

BLOCK = 4096
QUARTER = BLOCK // 4
SUPERBLOCK = 16  # blocks that share Philox blocks of S
WORDS = BLOCK // 32
WORTH = 1 << 21  # elements worth a thread
D, S = np.uint32(philox.DIRECTION), np.uint32(philox.DIRECTION_SIGN)
BIT = np.uint32(1) << np.arange(32, dtype=np.uint32)


@compiled
def random_words(out: Array, key: np.uint64, name: np.uint32, purpose: np.uint32, first: int) -> None:
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


@compiled
def rotate(x: Array, y: Array) -> None:
    """y = x after two of the twelve steps: the top two bits of the index, which become its lowest. Six times is H."""
    number = y.dtype.type
    for k in range(QUARTER):
        a, b, c, d = number(x[k]), number(x[k + QUARTER]), number(x[k + 2 * QUARTER]), number(x[k + 3 * QUARTER])
        a, b, c, d = number(a + b), number(a - b), number(c + d), number(c - d)
        y[4 * k], y[4 * k + 1], y[4 * k + 2], y[4 * k + 3] = a + c, b + d, a - c, b - d


@compiled
def add_sum(values, block, coefficients, unit, minus, flip, sums, spare):  # type: ignore[no-untyped-def]
    """values += unit sum_j coefficients[j] z_j on a block; S (`minus`) and D (`flip`) of the block are at hand."""
    even, odd = BIT[block % SUPERBLOCK], BIT[block % SUPERBLOCK + 16]
    for k in range(BLOCK // 2):
        a, b = coefficients[2 * k], coefficients[2 * k + 1]
        sums[2 * k] = -a if minus[k] & even else a
        sums[2 * k + 1] = -b if minus[k] & odd else b
    for _ in range(3):
        rotate(sums, spare)
        rotate(spare, sums)
    for w in range(WORDS):
        word = flip[w]
        for k in range(32):
            value = np.float32(sums[32 * w + k])
            values[32 * w + k] += unit * (-value if word & BIT[k] else value)


@compiled
def walsh(row: Array, index: int) -> None:
    """Bit i of `row` is the parity of i & index; the upper half of 2^t bits is the lower one, or its opposite."""
    row[0] = 0
    for t in range(5):
        upper = row[0] ^ np.uint32((1 << (1 << t)) - 1 if index >> t & 1 else 0)
        row[0] |= np.uint32(upper << (1 << t))
    for t in range(7):
        for w in range(1 << t):
            row[w + (1 << t)] = ~row[w] if index >> (t + 5) & 1 else row[w]


def share(low: int, high: int, of: Callable[[int, int], None]) -> None:
    """Call `of(low, high)` for parts of low .. high, cut at multiples of a block, in as many threads as torch has."""
    threads = max(1, min(torch.get_num_threads(), (high - low) // WORTH))
    if threads == 1:
        of(low, high)
        return
    size = -(-(high - low) // (BLOCK * threads)) * BLOCK
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda at: of(at, min(at + size, high)), range(low, high, size)))
