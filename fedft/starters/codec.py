"""example: integers of BITS bits on one scale for each tensor, its largest magnitude.

    example:BITS    scale fp32 | a field of BITS bits for every entry

Say here what is kept of a tensor, in which bytes, and which paper it is from.
"""

import struct

import numpy as np

from fedft.compression import bit_packing
from fedft.compression.bit_packing import Floats, Reader
from fedft.compression.codec import Codec, Rounded, Rounding
from fedft.compression.plain import whole


def example(arguments: str) -> Codec:
    """The codec of "example:BITS", BITS from 2 to 8; of "example" it is 8. Raises ValueError in one line."""
    bits = int(arguments or 8) if (arguments or "8").isdecimal() else 0
    if not 2 <= bits <= 8:
        raise ValueError(f"example:{arguments}: wanted example:BITS with BITS from 2 to 8")
    most = (1 << (bits - 1)) - 1

    def rounded(x: Floats) -> Rounded:
        largest = np.float32(np.abs(x).max() if len(x) else 0)
        if not np.isfinite(largest):  # comes out as NaN everywhere, and not as zeros, which a selection leaves out
            return Rounded(np.ones(len(x), np.int32), np.float32(np.nan))
        if not largest:
            return Rounded(np.zeros(len(x), np.int32), largest)
        return Rounded(np.rint(x / largest * most).astype(np.int32), largest)

    def unpack(reader: Reader, k: int) -> Rounded:
        (scale,) = struct.unpack("<f", reader.take(4))
        q = bit_packing.get_fields(reader, k, bits) - most
        if scale < 0 or (k and np.abs(q).max() > most):
            raise ValueError("expected a scale that is not below 0, and fields within it")
        return Rounded(q, np.float32(scale))

    rounding = Rounding(
        f"example:{bits}" if bits < 8 else "example",
        bits_per_parameter=float(bits),
        size=lambda k: 4 + (k * bits + 7) // 8,
        round=rounded,
        floats=lambda sent: (sent.entries / most * sent.scale).astype(np.float32),
        pack=lambda sent: [struct.pack("<f", sent.scale), bit_packing.put_fields(sent.entries + most, bits)],
        unpack=unpack,
        coarse=bits < 8,
    )
    return whole(rounding)
