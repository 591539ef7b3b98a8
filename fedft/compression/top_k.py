"""Selections: only some entries of a tensor are sent, the largest or some at random that both sides can draw.

topk:Q | X    support of the places sent (`entropy_coder.py`), then for k > 0 of them X of the k numbers there;
              what X rounds to 0 is not sent
randk:Q | X   seed u64, then X of the k = ceil(Q d) numbers at the places that `drawn` says; times d / k when read
"""

import math
import struct
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedft.compression import entropy_coder
from fedft.compression.bit_packing import Floats, Reader
from fedft.compression.codec import Codec, Part, Rounded, Rounding, Shape
from fedft.compression.plain import flat
from fedft.randomness import philox

Places = NDArray[np.int64]


def topk(share: str, r: Rounding, name: str = "") -> Codec:
    """The codec of a tensor's largest entries, `share` (a decimal number) of all, rounded by `r`.

    `name`: the codec's canonical name where it is not `topk:SHARE|ROUNDING`.
    """
    q, exactly = float(share), Fraction(share)

    def selected(tensor: Tensor) -> tuple[Places, Rounded | None]:
        """(places sent, what is sent of the numbers there)."""
        x = flat(tensor)
        index = largest(x, kept(exactly, len(x)))
        if not len(index):
            return index, None
        found = r.round(x[index])
        zero = r.is_zero(found.entries)
        if not zero.any():
            return index, found
        index = index[~zero]
        return index, Rounded(found.entries[~zero], found.scale) if len(index) else None

    def size(name: str, shape: Shape) -> int:
        d = math.prod(shape)
        return (d + 7) // 8 + 6 + r.size(kept(exactly, d))

    def pack(name: str, tensor: Tensor, seed: int = 0) -> list[Part]:
        index, found = selected(tensor)
        return [entropy_coder.put_support(index, tensor.numel()), *(r.pack(found) if found else ())]

    def unpack(name: str, shape: Shape, data: memoryview) -> Tensor:
        reader, d = Reader(data), math.prod(shape)
        index = entropy_coder.get_support(reader, d, kept(exactly, d))
        found = r.unpack(reader, len(index)) if len(index) else None
        reader.close()
        return _spread(shape, index, r.floats(found) if found else 0)

    def seen(name: str, tensor: Tensor, seed: int = 0) -> Tensor:
        index, found = selected(tensor)
        return _spread(tuple(tensor.shape), index, r.floats(found) if found else 0)

    return Codec(
        name or f"topk:{share}|{r.name}", entropy_coder.bits_per_place(q) + q * r.bits_per_parameter,
        size, pack, unpack, seen,
        linear=r.linear and q == 1, exact=r.exact and q == 1, unbiased=r.exact and q == 1,
        idempotent=r.idempotent, coarse=r.coarse or q < 1, behind_selection=r if name else None,
    )  # fmt: skip


def randk(share: str, r: Rounding) -> Codec:
    """The codec of entries drawn from the message's seed, `share` (a decimal number) of all, rounded by `r`."""
    exactly = Fraction(share)

    def numbers(found: Rounded, k: int, d: int) -> Floats:
        with np.errstate(all="ignore"):  # what is not finite is for the receiver to refuse
            scaled: Floats = r.floats(found) * np.float32(d / k)
        return scaled

    def rounded(name: str, tensor: Tensor, seed: int) -> tuple[Places, Rounded]:
        x = flat(tensor)
        index = drawn(seed, name, len(x), kept(exactly, len(x)))
        return index, r.round(x[index])

    def pack(name: str, tensor: Tensor, seed: int = 0) -> list[Part]:
        return [struct.pack("<Q", seed), *r.pack(rounded(name, tensor, seed)[1])]

    def unpack(name: str, shape: Shape, data: memoryview) -> Tensor:
        reader, d = Reader(data), math.prod(shape)
        (seed,) = struct.unpack("<Q", reader.take(8))
        k = kept(exactly, d)
        found = r.unpack(reader, k)
        reader.close()
        return _spread(shape, drawn(seed, name, d, k), numbers(found, k, d))

    def seen(name: str, tensor: Tensor, seed: int = 0) -> Tensor:
        index, found = rounded(name, tensor, seed)
        return _spread(tuple(tensor.shape), index, numbers(found, len(index), tensor.numel()))

    return Codec(
        f"randk:{share}|{r.name}", float(share) * r.bits_per_parameter,
        size=lambda name, shape: 8 + r.size(kept(exactly, math.prod(shape))),
        pack=pack, unpack=unpack, seen=seen,
        linear=r.linear, unbiased=r.exact, coarse=r.coarse, drawn=True,
    )  # fmt: skip


def kept(share: Fraction, entries: int) -> int:
    """How many of d entries are selected, at most: ceil(Q d), where Q is exactly the decimal number of the name.

    >>> kept(Fraction("0.1"), 30)  # in binary 0.1 x 30 is a little above 3
    3
    """
    return -(-share.numerator * entries // share.denominator)


def _spread(shape: Shape, index: Places, numbers: Any) -> Tensor:
    """A tensor with `numbers` at the places of `index` and zeros elsewhere."""
    out = np.zeros(math.prod(shape), np.float32)
    out[index] = numbers
    return torch.from_numpy(out.reshape(shape))


def largest(x: NDArray[np.float32], k: int) -> Places:
    """Places of the k largest magnitudes of a vector, ascending; of equal ones the first; no zeros, NaN above all.

    >>> largest(np.array([0.5, -2.0, 0.0, 2.0], np.float32), 1).tolist()
    [1]
    """
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
