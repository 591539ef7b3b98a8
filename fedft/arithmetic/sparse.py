"""The largest entries of many tensors taken as one vector: which they are, and how they travel.

    values     float32 [k]                the chosen entries in the order of their positions
    support    int32 [ceil(P / 32)]       one bit per position: bit e mod 32 of word e // 32 is position e

All of it on the CPU: which entries are chosen must not depend on a device, so ties go to the lower index.
"""

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from fedft.arithmetic.tensors import Tensors


def flat(x: Tensors) -> Tensor:
    """All entries as one vector: names in bytewise order, each row-major."""
    return torch.cat([x[n].reshape(-1) for n in sorted(x, key=str.encode)])


def shaped(x: Tensor, shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """The inverse of `flat`; new memory."""
    names = sorted(shapes, key=str.encode)
    pieces = x.split([math.prod(shapes[n]) for n in names])
    return {n: piece.reshape(tuple(shapes[n])).clone() for n, piece in zip(names, pieces, strict=True)}


def count(density: float, entries: int) -> int:
    """ceil(density * entries), of the density as it is written in decimal."""
    return math.ceil(Fraction(str(density)) * entries)


def largest(score: Tensor, density: float) -> Tensor:
    """True at the `count` largest scores, [P]; among equal ones the lower index goes first, NaN is largest of all."""
    k = count(density, len(score))
    if not k:
        return torch.zeros_like(score, dtype=torch.bool)
    ranked = torch.nan_to_num(score, nan=math.inf)
    threshold = ranked.kthvalue(len(score) - k + 1).values
    chosen = ranked > threshold
    chosen[(ranked == threshold).nonzero().squeeze(1)[: k - int(chosen.sum())]] = True
    return chosen


def packed(x: Tensor, chosen: Tensor) -> dict[str, Tensor]:
    """`values` and `support` of the entries of `x` that are chosen (bool, [P])."""
    bits = np.zeros(32 * words(len(x)), dtype=bool)
    bits[: len(x)] = chosen.numpy()
    support = np.packbits(bits, bitorder="little").view("<i4").astype(np.int32)
    return {"values": x[chosen], "support": torch.from_numpy(support)}


def unpacked(sent: Tensors) -> Tensor:
    """The dense vector, float64, zero where nothing was sent; filled up with zeros to a multiple of 32."""
    x = torch.zeros(32 * len(sent["support"]), dtype=torch.float64)
    x[positions(sent["support"])] = sent["values"].double()
    return x


def positions(support: Tensor) -> Tensor:
    """Bit by bit: [32 words], bool."""
    raw = support.contiguous().numpy().astype("<i4").view(np.uint8)
    return torch.from_numpy(np.unpackbits(raw, bitorder="little").astype(bool))


def words(entries: int) -> int:
    """Length of a support."""
    return -(-entries // 32)
