"""Random numbers from a key that nobody else has: of one key, release, purpose and name always the same ones.

    bits  = AES-256-CTR(HKDF-SHA256(key, salt, info = "fedft-noise/1\\0" | purpose | "\\0" | name))
    b     = the upper 53 bits of each little-endian uint64
    u     = b / 2^53                             uniform in [0, 1)
    xi    = Phi^-1((b + 1/2) / 2^53)             a standard Gaussian

`salt` is a digest of all that is released. So a release that is made again after a crash has the same noise, and no two
different ones ever share any: their difference would be the data. `fedft.randomness.philox` is for what everybody may
know; a key here comes from the operating system, is on the disk before it is used, and never travels.

Phi^-1 is torch's ndtri in float64 on the CPU: other libraries differ from it in the last bit.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from torch import Tensor

from fedft.randomness import philox

KEY_BYTES = 32
_INFO = b"fedft-noise/1\0"


def new_key() -> bytes:
    """A key of KEY_BYTES from the operating system."""
    return os.urandom(KEY_BYTES)


def seeded_key(seed: int, purpose: str, name: str) -> bytes:
    """A key that follows from a run's seed, its purpose and a name: equal everywhere, and secret from nobody."""
    words = (philox.derive(seed, purpose, name, n) for n in range(KEY_BYTES // 8))
    return b"".join(word.to_bytes(8, "little") for word in words)


@dataclass(frozen=True)
class Stream:
    """The numbers of one release."""

    key: bytes
    """KEY_BYTES that nobody else has."""
    salt: bytes
    """SHA-256 of what is released: 32 bytes."""

    def bits(self, purpose: str, name: str, count: int) -> Tensor:
        """int64 [count]: independent uniform integers of 53 bits, from the beginning of this purpose's and name's."""
        stream = self.drawing(purpose, name)(8 * count)
        return torch.from_numpy((np.frombuffer(stream, dtype="<u8") >> np.uint64(11)).astype(np.int64))

    def drawing(self, purpose: str, name: str) -> Callable[[int], bytes]:
        """A function that gives so many bytes of this purpose's and name's, each call those behind the last ones."""
        info = _INFO + purpose.encode() + b"\0" + name.encode()
        key = HKDF(SHA256(), 32, self.salt, info).derive(self.key)
        stream = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()
        return lambda size: stream.update(bytes(size))

    def uniforms(self, purpose: str, name: str, count: int) -> Tensor:
        """float64 [count] in [0, 1), multiples of 2^-53."""
        return self.bits(purpose, name, count).double() * 2.0**-53

    def gaussians(self, purpose: str, name: str, count: int) -> Tensor:
        """float64 [count] of mean 0 and variance 1."""
        return torch.special.ndtri((self.bits(purpose, name, count).double() + 0.5) * 2.0**-53)
