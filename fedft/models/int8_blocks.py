"""Weights as integers of 8 bits, times a scale for every 64 of them.

    block of 64    s = max|w| / 127 in bfloat16; q = round(w / s), half to even, from -127 to 127
    read           q * s

|error| <= s / 2. The last block may be shorter; one of zeros has the scale 0, and so has one of numbers below 2^-107,
whose quotients would lose bits. Bytes of n weights: n + 2 n/64, which is 8.25 bits each.
"""

from typing import NamedTuple

import torch
from torch import Tensor

BLOCK = 64


class Packed8(NamedTuple):
    """A matrix in 8 bits."""

    codes: Tensor
    """int8 [n]."""
    scales: Tensor
    """bfloat16 [ceil(n / 64)]."""


def pack(weight: Tensor) -> Packed8:
    """A matrix in 8 bits, on its device. `weight` is of any float dtype and shape, finite, and not modified."""
    flat = weight.detach().reshape(-1)
    rows = torch.nn.functional.pad(flat, (0, -len(flat) % BLOCK)).view(-1, BLOCK).float()
    scales = (rows.abs().amax(1) / 127).bfloat16()
    scales = torch.where(scales < 2.0**-107, 0.0, scales)
    by = torch.where(scales == 0, torch.inf, scales.float())
    codes = (rows / by[:, None]).round_().clamp_(-127, 127).to(torch.int8)
    return Packed8(codes.flatten()[: len(flat)].contiguous(), scales)


def unpack(packed: Packed8, n: int) -> Tensor:
    """The n weights that a packed matrix stands for, float32 [n]."""
    found, scales, whole = packed.codes.float(), packed.scales.float(), n - n % BLOCK
    found[:whole].view(-1, BLOCK).mul_(scales[: whole // BLOCK, None])
    found[whole:].mul_(scales[-1:])
    return found


def part(packed: Packed8, start: int, end: int) -> Packed8:
    """The packed form of weights `start` to `end` - 1, as views; `start` is a multiple of 64."""
    return Packed8(packed.codes[start:end], packed.scales[start // BLOCK : -(-end // BLOCK)])
