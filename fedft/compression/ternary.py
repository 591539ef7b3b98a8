"""ternary: a sign, and one magnitude for all entries of a tensor that are sent, their mean.

    ternary          support of the entries that are not 0 (`top_k.py`), then for k > 0 of them:
                     scale bf16, the mean magnitude | k bits, 1 for minus
    ternary:Q        the same of the largest: topk:Q | ternary

Of all magnitudes the mean is nearest in squares.

Yadav, Choshen, Raffel, Bansal, "ComPEFT: Compression for Communicating Parameter Efficient Updates via Sparsification
and Quantization", 2023, arXiv:2311.13171.
"""

import struct

import numpy as np
import torch

from fedft.compression import bit_packing
from fedft.compression.bit_packing import Floats, Reader
from fedft.compression.codec import Rounded, Rounding
from fedft.compression.top_k import topk


def _round(x: Floats) -> Rounded:
    """Entries are signs as float32, the scale is the magnitude's bits."""
    with np.errstate(all="ignore"):  # what is not finite is for the receiver to refuse
        magnitude = torch.tensor(np.abs(x).mean(dtype=np.float64)).bfloat16()
    sign = np.copysign(np.float32(1), x) if magnitude != 0 else np.zeros_like(x)
    return Rounded(sign, int(magnitude.view(torch.int16)) & 0xFFFF)


def _floats(sent: Rounded) -> Floats:
    with np.errstate(all="ignore"):
        numbers: Floats = sent.entries * np.array([sent.scale << 16], np.uint32).view(np.float32)
    return numbers


def _unpack(r: Reader, k: int) -> Rounded:
    (scale,) = struct.unpack("<H", r.take(2))
    if scale > 0x7FFF:
        raise ValueError("a magnitude is below 0")
    return Rounded(1 - 2 * bit_packing.get_bits(r, k).astype(np.float32), scale)


SIGNS = Rounding(
    "ternary", 1.0,
    size=lambda k: 2 + (k + 7) // 8,
    round=_round,
    floats=_floats,
    pack=lambda sent: [struct.pack("<H", sent.scale), bit_packing.put_bits(sent.entries < 0)],
    unpack=_unpack,
    idempotent=True, coarse=True, has_zero=False,
)  # fmt: skip

TERNARY = topk("1", SIGNS, "ternary")
