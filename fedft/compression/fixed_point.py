"""fixed:BITS[:CLIP]: integers on a public scale, which add up exactly over clients, also under masks modulo 2^32.

    n fields of BITS bits: q + 2^(BITS-1), or 0 for not finite, where q = round(x 2^(BITS-1) / CLIP), half to even,
    from -(2^(BITS-1) - 1) to 2^(BITS-1) - 1

What is beyond +-CLIP is cut. CLIP is a power of two (1 if left out), BITS at most 24, so that a decoded integer is
exact in float32.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fedft.compression import bit_packing
from fedft.compression.bit_packing import Floats, Reader
from fedft.compression.codec import Codec, Rounded, Rounding, number
from fedft.compression.plain import whole


@dataclass(frozen=True)
class Scale:
    """The scale of fixed-point integers, the same for everybody."""

    bits: int
    """Of an integer, from 2 to 24."""
    clip: float
    """Largest magnitude of a number; a power of two."""

    def integers(self, x: Tensor) -> Tensor:
        """The int32 integers of a tensor of floats; what is not finite becomes -2^(BITS-1), which no number does."""
        half = 1 << (self.bits - 1)
        q = (x.detach().double() * (half / self.clip)).round_().clamp_(1 - half, half - 1)
        return torch.where(torch.isfinite(x), q, -half).to(torch.int32)

    def floats(self, q: Tensor) -> Tensor:
        """The numbers that one tensor's integers stand for, float32; NaN where `integers` met what is not finite.

        For sums over clients `q * (CLIP / 2^(BITS-1))` is all there is to it.
        """
        half = 1 << (self.bits - 1)
        return torch.where(q == -half, math.nan, q.double() * (self.clip / half)).float()


def scale(arguments: str) -> Scale:
    """The scale of "BITS" or "BITS:CLIP". Raises ValueError in one line."""
    bits, colon, clip = arguments.partition(":")
    width, most = int(bits) if bits.isascii() and bits.isdigit() and len(bits) < 4 else 0, number(clip or "1")
    if not 2 <= width <= 24 or not (2.0**-40 <= most <= 2.0**13 and math.frexp(most)[0] == 0.5) or (colon and not clip):
        raise ValueError(
            f"codec is 'fixed:{arguments}': wanted fixed:BITS[:CLIP] with BITS from 2 to 24 and CLIP a power of two "
            "up to 8192"
        )
    return Scale(width, most)


def fixed(arguments: str) -> Codec:
    """The codec `fixed:BITS[:CLIP]`; `arguments` are what stands behind its first colon. Raises ValueError."""
    s = scale(arguments)

    def rounded(x: Floats) -> Rounded:
        return Rounded(s.integers(torch.from_numpy(x)).numpy())

    def unpack(r: Reader, k: int) -> Rounded:
        return Rounded(bit_packing.get_fields(r, k, s.bits) - (1 << (s.bits - 1)))

    rounding = Rounding(
        f"fixed:{s.bits}" + (f":{s.clip:.17g}" if s.clip != 1 else ""), float(s.bits),
        size=lambda k: (k * s.bits + 7) // 8,
        round=rounded,
        floats=lambda sent: s.floats(torch.from_numpy(sent.entries)).numpy(),
        pack=lambda sent: [bit_packing.put_fields(sent.entries + (1 << (s.bits - 1)), s.bits)],
        unpack=unpack,
        linear=True, idempotent=True, ring_summable=True,
    )  # fmt: skip
    return whole(rounding)
