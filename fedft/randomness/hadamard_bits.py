"""The signs of `hadamard v1` as packed bits in torch: S of blocks, D of elements, and columns of H. 1 means -1.

The layout is part of the wire format, and defined in `hadamard.py`. Bits are made here and not kept.
"""

import torch
from torch import Tensor

from fedft.randomness import directions, philox

BLOCK = 4096  # M of the definition
SUPERBLOCK = 16  # blocks that share Philox blocks of S
WORDS = BLOCK // 32  # 32-bit words of D per block
SPAN = SUPERBLOCK * BLOCK  # elements, and bits of D or S, of a superblock
PHILOX_CHUNK = 1 << 14  # Philox blocks made at once: int64 temporaries of 128 KB are reused, larger ones mapped anew


def superblock_bits(seed: int, purpose: int, name: str, start: int, numel: int, device: torch.device) -> Tensor:
    """D or S of the superblocks that hold the window start .. start + numel of a tensor, int32 [superblocks, 2048].

    `purpose` is `philox.DIRECTION` for D, bit k of a superblock being that of its element k, or
    `philox.DIRECTION_SIGN` for S.
    """
    first, last = start // SPAN, -(-(start + numel) // SPAN)
    name_id, per_span = philox.tensor_id(name), SPAN // 128  # Philox blocks of a superblock
    bits = torch.empty(((last - first) * per_span, 4), dtype=torch.int32, device=device)
    for at in range(0, bits.shape[0], PHILOX_CHUNK):
        part = bits[at : at + PHILOX_CHUNK]
        part.copy_(philox.words(seed, purpose, name_id, first * per_span + at, part.shape[0], device))
    return bits.view(last - first, SPAN // 32)


def signs_of_one(seed: int, name: str, index: int, blocks: range, device: torch.device) -> Tensor:
    """S of direction `index` in the blocks of a tensor: int32 [blocks, 1], -1 where negative, else 0."""
    first, last = blocks.start // SUPERBLOCK, -(-blocks.stop // SUPERBLOCK)
    key, tail = philox.split_key(seed), (philox.tensor_id(name), philox.DIRECTION_SIGN)
    if last - first <= 16:  # Python ints need 5 us per block, tensors 200 us for any number
        places = [superblock * (SPAN // 128) + index // 8 for superblock in range(first, last)]
        drawn = [philox.philox4x32((p & philox.MASK32, p >> 32, *tail), key)[index // 2 % 4] for p in places]
        words = torch.tensor(drawn)
    else:
        at = torch.arange(first, last) * (SPAN // 128) + index // 8
        words = philox.philox4x32((at & philox.MASK32, at >> 32, *tail), key)[index // 2 % 4]
    signs = words.to(torch.int32)[:, None] << directions.shifts(words.device).view(2, SUPERBLOCK)[index % 2]
    skip = blocks.start - first * SUPERBLOCK
    return (signs.view(-1, 1)[skip : skip + len(blocks)] >> 31).to(device)


def signs_of_all(bits: Tensor, blocks: range, start: int) -> Tensor:
    """S of all 4096 directions, int32 [4096, blocks]: the top bit is the sign, the others are arbitrary.

    Args:
        bits: S by `superblock_bits`, int32 [superblocks, 2048], from the superblock that holds element `start` on.
        blocks: which blocks of the tensor.
        start: the first element of the window that `bits` are of.
    """
    first, last = blocks.start // SUPERBLOCK, -(-blocks.stop // SUPERBLOCK)
    base = start // SPAN
    by_word = bits[first - base : last - base].t().contiguous()[:, None, :, None]  # two directions in each word
    signs = torch.empty((BLOCK // 2, 2, last - first, SUPERBLOCK), dtype=torch.int32, device=bits.device)
    torch.bitwise_left_shift(by_word, directions.shifts(bits.device).view(2, 1, SUPERBLOCK), out=signs)
    skip = blocks.start - first * SUPERBLOCK
    return signs.view(BLOCK, -1)[:, skip : skip + len(blocks)]


def walsh_row(index: int, device: torch.device) -> Tensor:
    """Row `index` of H, which is symmetric, as int32 [128]: bit i % 32 of word i // 32 is set where H[i, index] = -1.

    >>> walsh_row(1, torch.device("cpu"))[0].item() == 0xAAAAAAAA - 2**32  # every second sign is minus
    True
    """
    within = sum(((i & index).bit_count() & 1) << i for i in range(32))
    words = [within ^ (philox.MASK32 * ((w & index >> 5).bit_count() & 1)) for w in range(WORDS)]
    return torch.tensor(words).to(torch.int32).to(device)
