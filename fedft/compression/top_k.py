"""Which entries of a tensor are sent: the largest, or some at random that both sides can draw."""

import numpy as np
from numpy.typing import NDArray

from fedft.randomness import philox

Places = NDArray[np.int64]


def largest(x: NDArray[np.float32], k: int) -> Places:
    """Places of the k largest magnitudes of a vector, ascending; of equal ones the first; no zeros, NaN above all."""
    size = np.abs(x).view(np.int32)  # magnitudes are in the same order as their bits
    k = min(k, int(np.count_nonzero(size)))
    if k == len(size):
        return np.arange(k)
    least = _smallest(size, len(size) - k) if k else np.iinfo(np.int32).max
    return _first(np.flatnonzero(size >= max(least, 1)), size, least, k)


def drawn(seed: int, name: str, d: int, k: int) -> Places:
    """k of d places, ascending: those of the smallest of d numbers that come from the seed and the tensor's name.

    Every place has the same chance k / d (but for 2^-24, where numbers are equal). Seeds are 64 bits.
    """
    number = philox.uniform(seed, philox.MASK, name, (d,)).numpy().view(np.int32)
    most = _smallest(number, k - 1)
    return _first(np.flatnonzero(number <= most), number, most, k)


def _smallest(x: NDArray[np.int32], k: int) -> int:
    """The value that k entries stand before in ascending order. A sample says where to look, which saves most of it."""
    if len(x) > 1 << 14:
        sample = np.sort(x[:: len(x) >> 12])
        at, beside = k * len(sample) // len(x), len(sample) >> 5
        low, high = sample[max(0, at - beside)], sample[min(len(sample) - 1, at + beside)]
        before = np.count_nonzero(x < low)
        there = x[(x >= low) & (x <= high)]
        if before <= k < before + len(there):
            return int(np.partition(there, k - before)[k - before])
    return int(np.partition(x, k)[k])


def _first(places: Places, value: NDArray[np.int32], last: int, k: int) -> Places:
    """`places` without the last of those whose value is `last`, so that k are left."""
    if len(places) == k:
        return places
    equal = np.flatnonzero(value[places] == last)
    return np.delete(places, equal[k - len(places) :])
