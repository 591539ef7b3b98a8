"""Shared randomness: the same numbers on every machine, in any order, from a key and a place.

The generator is Philox-4x32-10, stateless and made of integer arithmetic only: output block c of a stream is a
function of (key, c), so a tensor may be cut, sharded or moved to another device and keeps its numbers.

    key      64-bit seed, low word first
    counter  (block_lo, block_hi, tensor_id, purpose), four 32-bit words

Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.

Everybody who knows the seed knows these numbers. Privacy noise, keys and nonces must never come from here: server
or clients could compute the noise and subtract it. Those come from the operating system.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Purposes keep the streams of one key apart; the numbers are part of the wire format, never reuse one.
DIRECTION = 1  # sign bits of directions per element (hadamard: D), or words of gaussian ones
LORA_INIT = 2  # the seeded factor A of an adapter
MASK = 3  # which entries are kept
SAMPLING = 4  # clients, batches
ROUNDING = 5  # reserved: stochastic rounding
DIRECTION_SIGN = 6  # hadamard: S, one sign per block and direction

MASK32 = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)  # of counter words 0 and 2, from the paper
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)  # golden ratio and sqrt(3) - 1, from the paper
_ROUNDS = 10
_LOW, _HALF = np.uint64(MASK32), np.uint64(32)
_PIECE = 4096  # blocks

Word = Any  # 32 bits in 0 .. 2^32 - 1: a Python int, or an int64 tensor of such numbers; the two mix and broadcast


def philox4x32(counter: tuple[Word, Word, Word, Word], key: tuple[Word, Word]) -> tuple[Word, Word, Word, Word]:
    """The four output words of Philox-4x32-10 at `counter` under `key`, bit exact on every device.

    All are 32-bit words, as Python ints or as int64 tensors that broadcast. Python ints are the fast way for a few
    blocks (about 5 us each), tensors for many. Salmon et al., SC 2011; the example is of their test vectors.

    >>> [f"{word:08x}" for word in philox4x32((0, 0, 0, 0), (0, 0))]
    ['6627e8d5', 'e169c58d', 'bc57ac4c', '9b00dbd8']
    """
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(_ROUNDS):
        # In int64 the product wraps modulo 2^64 and >> copies the sign bit down; the mask leaves the true high word,
        # and in the next round it also cuts c1 and c3, which until then carry high bits that nobody reads.
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1 = ((p1 >> 32) ^ c1 ^ k0) & MASK32, p1
        c2, c3 = ((p0 >> 32) ^ c3 ^ k1) & MASK32, p0
        k0, k1 = (k0 + _KEY_STEPS[0]) & MASK32, (k1 + _KEY_STEPS[1]) & MASK32
    return c0, c1 & MASK32, c2, c3 & MASK32


@lru_cache(maxsize=1 << 16)
def tensor_id(name: str) -> int:
    """The stream number of a tensor, 32 bits: the first 4 bytes, little endian, of BLAKE2b-512 of `name` in UTF-8."""
    return int.from_bytes(hashlib.blake2b(name.encode()).digest()[:4], "little")


def split_key(key: int) -> tuple[int, int]:
    """The low and the high 32-bit word of a 64-bit key; ValueError outside 0 .. 2^64 - 1."""
    if not 0 <= key < 1 << 64:
        raise ValueError(f"expected a seed in 0 .. 2^64 - 1, got {key}")
    return key & MASK32, key >> 32


def key_as_words(key: int) -> Tensor:
    """A 64-bit key as a tensor that travels: int32 [2], low word first; ValueError outside 0 .. 2^64 - 1.

    >>> key_as_words(2**32 + 7).tolist()
    [7, 1]
    """
    return torch.tensor(split_key(key)).to(torch.int32)  # keeps the 32 bits, whatever int32 takes them for


def key_of_words(key: Tensor) -> int:
    """The 64-bit key, 0 .. 2^64 - 1, that `key_as_words` wrote; any int32 [2] is one.

    >>> key_of_words(key_as_words(2**64 - 1)) == 2**64 - 1
    True
    """
    low, high = key.tolist()
    return int(low & MASK32 | (high & MASK32) << 32)


def words(
    key: int, purpose: int, name_id: int, first_block: int, blocks: int, device: torch.device | str = "cpu"
) -> Tensor:
    """Output blocks `first_block` .. `first_block + blocks - 1` of one stream of random words.

    Args:
        key: 64-bit seed.
        purpose: one of the constants above.
        name_id: `tensor_id` of the tensor the numbers are for.
        first_block, blocks: which blocks of four words; >= 0.
    Returns:
        int64 [blocks, 4], each in 0 .. 2^32 - 1, on `device`.
    """
    if torch.device(device).type == "cpu":
        return torch.from_numpy(_words(key, purpose, name_id, first_block, blocks))
    index = torch.arange(first_block, first_block + blocks, dtype=torch.int64, device=device)
    low, high = index & MASK32, index >> 32
    return torch.stack(philox4x32((low, high, name_id, purpose), split_key(key)), dim=-1)


def _words(key: int, purpose: int, name_id: int, first_block: int, blocks: int) -> np.ndarray:
    """`words` in place and in pieces that stay in the cache: a third of torch's time, for few blocks and for many."""
    out, key_words = np.empty((blocks, 4), np.int64), split_key(key)
    for at in range(0, blocks, _PIECE):
        piece = out[at : at + _PIECE]
        index = np.arange(first_block + at, first_block + at + len(piece), dtype=np.uint64)
        c0, c1 = index & _LOW, index >> _HALF
        c2, c3 = (np.full(len(piece), n, np.uint64) for n in (name_id, purpose))
        k0, k1 = key_words
        for _ in range(_ROUNDS):
            p0, p1 = c0 * np.uint64(_MULTIPLIERS[0]), c2 * np.uint64(_MULTIPLIERS[1])
            c0, c2 = p1 >> _HALF, p0 >> _HALF
            c0 ^= c1
            c0 ^= np.uint64(k0)
            c2 ^= c3
            c2 ^= np.uint64(k1)
            p0 &= _LOW
            p1 &= _LOW
            c1, c3 = p1, p0
            k0, k1 = (k0 + _KEY_STEPS[0]) & MASK32, (k1 + _KEY_STEPS[1]) & MASK32
        for i, word in enumerate((c0, c1, c2, c3)):
            piece[:, i] = word
    return out


def uniform(key: int, purpose: int, name: str, shape: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """Uniform random numbers in [0, 1), float32 of `shape`: multiples of 2^-24, the same bits on every device.

    Element e in row-major order is the top 24 bits of word e % 4 of block e // 4. `purpose` is one of the module's
    constants; `name` is the tensor's. Raises ValueError for a key outside 0 .. 2^64 - 1.

    >>> a, b = uniform(7, LORA_INIT, "q.lora_A", (2, 2)), uniform(7, LORA_INIT, "q.lora_A", (4,))
    >>> a.flatten().equal(b)  # the shape does not matter
    True
    """
    count = math.prod(shape)
    numbers = words(key, purpose, tensor_id(name), 0, -(-count // 4), device)
    return ((numbers.reshape(-1)[:count] >> 8).to(torch.float32) * 2.0**-24).reshape(tuple(shape))


def derive(seed: int, purpose: str, *parts: int | str) -> int:
    """A seed in 0 .. 2^63 - 1 for one use of a master seed, as in `derive(run_seed, "batches", round, client)`.

    >>> derive(7, "batches", 3, "north") == derive(7, "batches", 3, "south")
    False

    BLAKE2b with 8 bytes of output, personalised "fedft.derive.v1", over each argument as kind ("i" or "s"), length in
    8 bytes (little endian) and text (UTF-8; integers in decimal). Different arguments are different texts: ("ab", "c")
    is not ("a", "bc") and 1 is not "1". The result is read little endian and its top bit dropped.
    """
    digest = hashlib.blake2b(digest_size=8, person=b"fedft.derive.v1")
    for part in (seed, purpose, *parts):
        text = (part if isinstance(part, str) else str(int(part))).encode()
        digest.update((b"s" if isinstance(part, str) else b"i") + len(text).to_bytes(8, "little") + text)
    return int.from_bytes(digest.digest(), "little") & ((1 << 63) - 1)
