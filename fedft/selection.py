"""Which entries of a tensor are sent: the largest, or some at random that both sides can draw."""

import numpy as np
from numpy.typing import NDArray

from fedft import philox

Places = NDArray[np.int64]


def largest(x: NDArray[np.float32], k: int) -> Places:
    """Places of the k largest magnitudes of a vector, ascending; of equal ones the first; no zeros, NaN above all."""
    size = np.abs(x).view(np.int32)  # magnitudes are in the same order as their bits
    k = min(k, int(np.count_nonzero(size)))
    if k == len(size):
        return np.arange(k)
    least = np.partition(size, len(size) - k)[len(size) - k] if k else np.iinfo(np.int32).max
    return _first(np.flatnonzero(size >= max(least, 1)), size, least, k)


def drawn(seed: int, name: str, d: int, k: int) -> Places:
    """k of d places, ascending: those of the smallest of d numbers that come from the seed and the tensor's name.

    Every place has the same chance k / d (but for 2^-24, where numbers are equal). Seeds are 64 bits.
    """
    number = philox.uniform(seed, philox.MASK, name, (d,)).numpy().view(np.int32)
    most = np.partition(number, k - 1)[k - 1]
    return _first(np.flatnonzero(number <= most), number, most, k)


def _first(places: Places, value: NDArray[np.int32], last: int, k: int) -> Places:
    """`places` without the last of those whose value is `last`, so that k are left."""
    if len(places) == k:
        return places
    equal = np.flatnonzero(value[places] == last)
    return np.delete(places, equal[k - len(places) :])
