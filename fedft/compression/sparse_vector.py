"""A sparse vector as two named tensors: the largest entries of a vector, and one bit per position that says where.

    values     float32 [k]                the chosen entries in the order of their positions
    support    int32 [ceil(P / 32)]       one bit per position: bit e mod 32 of word e // 32 is position e

Exactly k = ceil(density P) entries are chosen (`count`), zeros too if there are fewer others: shapes are known
beforehand.
All of it on the CPU: which entries are chosen must not depend on a device, so ties go to the lower index.
"""

import math
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from fedft.arithmetic.tensors import Tensors
from fedft.compression import top_k


def count(density: float, entries: int, floor: bool = False) -> int:
    """How many entries a density keeps: ceil(density * entries), with the density as it is written in decimal.

    `floor`: rounded down instead, but at least one.

    >>> count(0.07, 100)  # in float64, 0.07 * 100 is 7.000000000000001
    7
    >>> count(0.25, 10), count(0.25, 10, floor=True)
    (3, 2)
    """
    share = Fraction(str(density))
    return min(entries, max(1, int(share * entries))) if floor else top_k.kept(share, entries)


def largest(score: Tensor, density: float, floor: bool = False) -> Tensor:
    """A mask that is true at the `count(density, P, floor)` largest scores, on the CPU: bool [P] of float32 [P] >= 0.

    Among equal scores the lower index is taken first; NaN is larger than all.

    >>> largest(torch.tensor([1.0, 3.0, 2.0, 3.0]), 0.5).tolist()
    [False, True, False, True]
    """
    k = count(density, len(score), floor)
    chosen = np.zeros(len(score), dtype=bool)
    chosen[top_k.largest(torch.nan_to_num(score, nan=math.inf).numpy(), k)] = True
    if missing := k - int(np.count_nonzero(chosen)):  # all that is not zero is chosen: the first zeros fill up
        chosen[np.flatnonzero(~chosen)[:missing]] = True
    return torch.from_numpy(chosen)


def packed(x: Tensor, chosen: Tensor) -> dict[str, Tensor]:
    """The chosen entries of a vector in two tensors, `values` and `support` (formats: the module's docstring).

    Args:
        x: [P], on the CPU.
        chosen: bool [P].

    >>> sent = packed(torch.tensor([5.0, 0.0, 7.0]), torch.tensor([True, False, True]))
    >>> sent["values"].tolist(), sent["support"].tolist()  # bits 0 and 2
    ([5.0, 7.0], [5])
    >>> unpacked(sent)[:3].tolist()
    [5.0, 0.0, 7.0]
    """
    bits = np.zeros(32 * words(len(x)), dtype=bool)
    bits[: len(x)] = chosen.numpy()
    support = np.packbits(bits, bitorder="little").view("<i4").astype(np.int32)
    return {"values": x[chosen], "support": torch.from_numpy(support)}


def unpacked(sent: Tensors) -> Tensor:
    """The dense vector that `packed` was given: float64 [32 words], zero at every position that was not chosen.

    The length is P rounded up to a multiple of 32, since a support does not tell P.
    """
    x = torch.zeros(32 * len(sent["support"]), dtype=torch.float64)
    x[positions(sent["support"])] = sent["values"].double()
    return x


def positions(support: Tensor) -> Tensor:
    """The bits of a support int32 [words] as a mask: bool [32 words], true at the chosen positions."""
    raw = support.contiguous().numpy().astype("<i4").view(np.uint8)
    return torch.from_numpy(np.unpackbits(raw, bitorder="little").astype(bool))


def words(entries: int) -> int:
    """How many int32 words the support of a vector of `entries` positions has: one bit for each position."""
    return -(-entries // 32)
