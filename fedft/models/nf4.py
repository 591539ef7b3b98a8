"""NF4: weights as 4-bit codes of levels between -1 and 1, times a scale for every 64 of them; the scales in 8 bits.

    block of 64    s = max|w|; a code is the level nearest to w / s; two codes in a byte, the first in the high half
    scales         blocks of 256: round(127 (s - mean) / spread), half to even, where spread = max|s - mean|
    read           level * (mean + code * spread / 127), and a scale below 0 is 0

The last block of either kind may be shorter. An all-zero block is all code 7, whose level is 0. Bytes of n weights:
n/2 + n/64 + 4 n/(64 * 256) + 4, which is 4.13 bits each. Codes are those of bitsandbytes; its scales are coded by
another table.

Dettmers, Pagnoni, Holtzman, Zettlemoyer, "QLoRA: Efficient Finetuning of Quantized LLMs", NeurIPS 2023,
arXiv:2305.14314.
"""

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

BLOCK = 64
BLOCKS = 256
"""Scales that share a spread."""
PART = BLOCK << 14
"""Weights that are packed at a time, so that a large matrix needs little more memory than itself."""
LEVELS = torch.tensor([
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
])  # fmt: skip
"""The paper's, float32 [16]: quantiles of a normal distribution."""
MIDPOINTS: list[float] = ((LEVELS[1:] + LEVELS[:-1]) / 2).tolist()
"""Between neighbouring levels; what lies on one is rounded down."""


class Packed4(NamedTuple):
    """A matrix in NF4."""

    codes: Tensor
    """uint8 [ceil(n / 2)]."""
    scales: Tensor
    """int8 [ceil(n / 64)]."""
    spreads: Tensor
    """float32 [ceil(n / (64 * 256))]."""
    mean: Tensor
    """float32 [1]: of all scales."""


def pack(weight: Tensor) -> Packed4:
    """A matrix in NF4, on its device. `weight` is of any float dtype and shape, finite, and not modified."""
    parts = [_coded(part.float()) for part in weight.detach().reshape(-1).split(PART)]
    return Packed4(torch.cat([codes for codes, _ in parts]), *pack_scales(torch.cat([scales for _, scales in parts])))


def unpack(packed: Packed4, n: int) -> Tensor:
    """The n weights that a packed matrix stands for, float32 [n]."""
    found = torch.index_select(_pairs(packed.codes.device), 0, packed.codes.int()).view(torch.float32)
    scales, whole = unpack_scales(packed), n - n % BLOCK
    found[:whole].view(-1, BLOCK).mul_(scales[: whole // BLOCK, None])
    found[whole:].mul_(scales[-1:])
    return found[:n]


def part(packed: Packed4, start: int, end: int) -> Packed4:
    """The packed form of weights `start` to `end` - 1, as views; `start` is a multiple of 64 * 256."""
    codes, scales = packed.codes[start // 2 : -(-end // 2)], packed.scales[start // BLOCK : -(-end // BLOCK)]
    return Packed4(codes, scales, packed.spreads[start // (BLOCK * BLOCKS) : -(-end // (BLOCK * BLOCKS))], packed.mean)


def pack_scales(scales: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(codes int8, spreads float32, mean float32 [1]) of scales float32 [blocks].

    >>> codes, spreads, mean = pack_scales(torch.tensor([1.0, 2.0, 4.0, 1.0]))
    >>> codes.tolist(), spreads.tolist(), mean.tolist()
    ([-64, 0, 127, -64], [2.0], [2.0])
    """
    mean = scales.double().mean().float().reshape(1)
    rows = _in_rows(scales - mean, BLOCKS)
    spreads = rows.abs().amax(1)
    codes = (rows * 127 / torch.where(spreads == 0, 1.0, spreads)[:, None]).round().to(torch.int8)
    return codes.flatten()[: len(scales)].contiguous(), spreads, mean


def unpack_scales(packed: Packed4) -> Tensor:
    """The scales, float32 [blocks], none below 0."""
    rows = _in_rows(packed.scales.float(), BLOCKS) * packed.spreads[:, None] / 127
    return (rows + packed.mean).clamp_(min=0).flatten()[: len(packed.scales)]


@cache
def _pairs(device: torch.device) -> Tensor:
    """The two levels of each byte, as 8 bytes that are looked up at once: float64 [256] that are no numbers."""
    every = torch.arange(256)
    return torch.stack([LEVELS[every >> 4], LEVELS[every & 15]], dim=1).view(torch.float64).flatten().to(device)


def _coded(flat: Tensor) -> tuple[Tensor, Tensor]:
    """(codes uint8, two in each; scales float32) of weights float32 [n]."""
    rows = _in_rows(flat, BLOCK)
    scales = rows.abs().amax(1)
    x = (rows / torch.where(scales == 0, 1.0, scales)[:, None]).flatten()
    codes, above = torch.zeros_like(x, dtype=torch.uint8), torch.empty_like(x, dtype=torch.bool)
    for middle in MIDPOINTS:  # fifteen comparisons side by side take a third of the time of a binary search
        codes.add_(torch.gt(x, middle, out=above).view(torch.uint8))
    return (codes[0::2] << 4 | codes[1::2])[: -(-len(flat) // 2)].contiguous(), scales


def _in_rows(x: Tensor, length: int) -> Tensor:
    """x [n] as [ceil(n / length), length], the end of the last row filled with 0."""
    return torch.nn.functional.pad(x, (0, -len(x) % length)).view(-1, length)
