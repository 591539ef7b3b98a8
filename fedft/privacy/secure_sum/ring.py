"""Numbers as integers that add up exactly, modulo 2^ring, and the masks that hide them until they are added up.

    step = R / (2^(b-1) - 1)
    q    = clamp(floor(x / step + v), -+(2^(b-1) - 1))     v uniform in [0, 1), shared randomness: unbiased, repeatable
    mask = AES-256-CTR key stream of a key, zero counter block, read as little-endian uint32 (ring 32) or uint16

v is known to everybody and hides nothing: it makes a resumed run, and one without masks, end with the same bytes.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from fedft.privacy.secure_sum.context import Spec
from fedft.randomness import philox

_PIECE = 1 << 18  # bytes of a key stream at once: it stays in the cache until it is added
_ZEROS = bytes(_PIECE)


def word(ring_bits: int) -> np.dtype[Any]:
    """The type of a vector's entries under masks: uint32 of a ring of 32 bits, uint16 of 16."""
    return np.dtype("<u4" if ring_bits == 32 else "<u2")


def _placed(spec: Spec) -> Iterator[tuple[str, tuple[int, ...], float, slice]]:
    """(name, shape, R, where in the vector) of every tensor."""
    at = 0
    for (name, shape), clip in zip(spec.tensors, spec.clips, strict=True):
        yield name, shape, clip, slice(at, at + math.prod(shape))
        at += math.prod(shape)


def rounded(x: np.ndarray, clip: float, bits: int, v: np.ndarray) -> tuple[np.ndarray, int]:
    """(the integers of finite numbers, int32; how many of them lay beyond +-clip and were cut to it).

    Args:
        x: floats of any shape.
        clip: R.
        bits: b.
        v: uniform in [0, 1), of x's shape.

    >>> rounded(np.array([0.3, 0.3, 5.0]), 1.0, 4, np.array([0.5, 0.95, 0.5]))
    (array([2, 3, 7], dtype=int32), 1)
    """
    most = (1 << (bits - 1)) - 1
    wide = x.astype(np.float64)
    q = np.clip(np.floor(wide * (most / clip) + v), -most, most).astype(np.int32)
    return q, int(np.count_nonzero(np.abs(wide) > clip))


def quantised(tensors: Mapping[str, np.ndarray], spec: Spec, seed: int) -> tuple[np.ndarray, int]:
    """(the vector of integers, int32 [spec.length]; how many entries lay beyond +-R and were cut).

    Args:
        tensors: floats by name, in the shapes of `spec`; raises ValueError for others and for what is not finite.
        spec: of the vector.
        seed: of the rounding, 64 bits: one per client, round and slot.
    """
    if (found := {n: x.shape for n, x in tensors.items()}) != dict(spec.tensors):
        raise ValueError(f"a secure sum of {dict(spec.tensors)}, got {found}")
    q, cut = np.empty(spec.length, np.int32), 0
    for name, shape, clip, place in _placed(spec):
        if not np.isfinite(tensors[name]).all():
            raise ValueError(f"{name} has entries that are not finite")
        v = philox.uniform(seed, philox.ROUNDING, name, shape).numpy()
        whole, beyond = rounded(tensors[name], clip, spec.bits, v)
        q[place], cut = whole.reshape(-1), cut + beyond
    return q, cut


def mean(total: np.ndarray, spec: Spec, count: float) -> dict[str, np.ndarray]:
    """step * total / count as tensors, float64, in the names and shapes of `spec`; `total` is int64 [spec.length]."""
    return {
        name: (total[place] * (clip / spec.largest / count)).reshape(shape)
        for name, shape, clip, place in _placed(spec)
    }


def clear_sum(vectors: Mapping[str, np.ndarray]) -> np.ndarray:
    """The sum of vectors without masks, int64: what `collector.Block.sum` gives of the same integers."""
    return np.sum([q.astype(np.int64) for q in vectors.values()], axis=0)


def add_masks(total: np.ndarray, keys: Iterable[tuple[bytes, bool]]) -> None:
    """Add key streams to `total`, uint32 or uint16 [d], in place and modulo 2^ring.

    `keys` are AES-256 keys, each with whether its stream is subtracted instead.
    """
    if total.dtype not in (word(32), word(16)) or not total.flags.c_contiguous:
        raise ValueError(f"masks are added to contiguous uint32 or uint16, not {total.dtype}")
    step = _PIECE // total.itemsize
    buffer = bytearray(_PIECE + 15)  # as `update_into` wants it
    stream = np.frombuffer(buffer, total.dtype, step)
    for key, negative in keys:
        cipher = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()
        for at in range(0, len(total), step):
            part = total[at : at + step]
            cipher.update_into(memoryview(_ZEROS)[: part.nbytes], buffer)
            (np.subtract if negative else np.add)(part, stream[: len(part)], out=part)


def centred(total: np.ndarray) -> np.ndarray:
    """The integers nearest to zero that are equal to `total` modulo 2^ring: int64 of uint32 or uint16 [d]."""
    return total.view(np.int32 if total.itemsize == 4 else np.int16).astype(np.int64)
