"""Numbers as integers that add up exactly, modulo 2^ring, and the masks that hide them until they are added up.

    step = R / (2^(b-1) - 1)
    q    = clamp(floor(x / step + v), -+(2^(b-1) - 1))     v uniform in [0, 1), shared randomness: unbiased, repeatable
    mask = AES-256-CTR key stream of a key, zero counter block, read as little-endian uint32 (ring 32) or uint16

v is known to everybody and hides nothing: it makes a resumed run, and one without masks, end with the same bytes.
"""

from collections.abc import Mapping

import numpy as np

from fedft.privacy.secure_sum.context import Spec


def quantised(tensors: Mapping[str, np.ndarray], spec: Spec, seed: int) -> tuple[np.ndarray, int]:
    """(the vector of integers, int32 [spec.length]; how many entries lay beyond +-R and were cut).

    Args:
        tensors: floats by name, in the shapes of `spec`; raises ValueError for others and for what is not finite.
        spec: of the vector.
        seed: of the rounding, 64 bits: one per client, round and slot.
    """
    raise NotImplementedError


def mean(total: np.ndarray, spec: Spec, count: int) -> dict[str, np.ndarray]:
    """step * total / count as tensors, float64, in the names and shapes of `spec`; `total` is int64 [spec.length]."""
    raise NotImplementedError


def clear_sum(vectors: Mapping[str, np.ndarray]) -> np.ndarray:
    """The sum of vectors without masks, int64: what `collector.Block.sum` gives of the same integers."""
    raise NotImplementedError
