"""A codec from outside: a sign for every entry, and one scale for all, F times the mean magnitude of what is not 0.

    signs, signs:F    scale fp32 | signs as symbols -1, 0, 1

Bernstein, Wang, Azizzadenesheli, Anandkumar, "signSGD: Compressed Optimisation for Non-Convex Problems", ICML 2018,
arXiv:1802.04434.
"""

import math
import struct

import numpy as np

from fedft.compression import entropy_coder
from fedft.compression.codec import Codec, Rounded, Rounding, number
from fedft.compression.plain import whole


def signs(arguments: str) -> Codec:
    """The codec of "signs:F", 0 < F <= 1; of "signs" F is 1."""
    factor = number(arguments or "1")
    if not 0 < factor <= 1:
        raise ValueError(f"signs:{arguments}: wanted signs:F with F a factor on the mean magnitude, 0 < F <= 1")

    def rounded(x):
        some = np.abs(x[x != 0])
        scale = np.float32(factor * some.mean(dtype=np.float64)) if len(some) else np.float32(0)
        q = np.sign(x) if scale else np.zeros_like(x)
        return Rounded(np.where(np.isnan(q), 1, q).astype(np.int32), scale)

    def unpack(reader, k):
        (scale,) = struct.unpack("<f", reader.take(4))
        q = entropy_coder.get_symbols(reader, k)
        if scale < 0 or np.abs(q).max() > 1:
            raise ValueError("expected signs and a scale that is not below 0")
        return Rounded(q, np.float32(scale))

    rounding = Rounding(
        f"signs:{factor:g}" if factor < 1 else "signs",
        bits_per_parameter=1.0,
        size=lambda k: 4 + 1 + math.ceil(k / 4),
        round=rounded,
        floats=lambda sent: np.where(sent.entries == 0, np.float32(0), sent.entries * sent.scale).astype(np.float32),
        pack=lambda sent: [struct.pack("<f", sent.scale), entropy_coder.put_symbols(sent.entries)],
        unpack=unpack,
        idempotent=factor == 1,
        coarse=True,
    )
    return whole(rounding)
