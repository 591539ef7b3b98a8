"""`hadamard v1`, the default family of directions: K of them for the price of one fast transform per 4096 elements.

The layout is a wire format: frozen. A tensor is cut in blocks of M = 4096 elements; block b, element i of it:

    z_j[b, i] = S[b, j] * H[i, j] * D[b, i],    H[i, j] = (-1)^popcount(i & j),    0 <= j < K <= 4096

S and D are bits of Philox-4x32-10 (`philox.py`; key = seed, 1 means -1). 16 blocks make a superblock s = b // 16 of
65,536 bits in either stream: bit k of it is bit k % 32 of word (k // 32) % 4 of Philox block 512 s + k // 128.

    D: purpose 1, k = 4096 (b % 16) + i          S: purpose 6, k = 16 j + b % 16

Full blocks of different directions are orthogonal, the K directions of a block cost one fast transform, and one
direction needs of S only 16 bits per superblock. Choromanski, Rowland, Weller, "The unreasonable effectiveness of
structured random orthogonal embeddings", NeurIPS 2017; for K << n the law is that of independent signs.

What stands here is torch, for every device. Where numba or Triton is installed, compiled kernels take over, with the
same bits, once a process has enough to do (`hadamard_kernels.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedft.randomness import directions, hadamard_bits, hadamard_kernels, philox
from fedft.randomness.hadamard_bits import BLOCK, SPAN, SUPERBLOCK, WORDS

CHUNK = 1 << 18  # elements worked on at once: the int32 buffers of a transform, 1 MB each, stay in cache
CACHE_BYTES = 1 << 28  # bits of D kept by one instance: those of 2^31 parameters
MAX_WINDOWS = 4096  # whose block signs one instance keeps: one per tensor, or per chunk of a walk
_TRANSFORM = 10  # `axpy_` and `dot` take torch as long as this many `add_`


@dataclass(frozen=True)
class Hadamard:
    """The directions of `hadamard v1`, the default family: K <= 4096; exact on every device. See `Directions`.

    >>> z = Hadamard(seed=7, count=2)
    >>> one, two = (z.direction("q.weight", j, (64, 64)).flatten() for j in range(2))
    >>> float(one @ one), float(one @ two)  # a full block: orthogonal
    (4096.0, 0.0)

    Raises ValueError for a seed outside 0 .. 2^64 - 1 or a count outside 1 .. 4096.

    Memory: compiled kernels keep nothing. torch keeps, for as long as the instance lives, the bits of D, which do not
    depend on the direction: n/8 bytes for a tensor of n elements (8 KiB at least), 256 MiB in all, beyond which they
    are made anew at each call; and the block signs of the direction last used, n/1024 bytes per tensor, of at most 4096
    tensors or chunks. Both are kept by window: a tensor given in chunks should be cut the same way each time. `axpy_`
    and `dot` hold another n/8 bytes while they work.
    """

    seed: int
    count: int
    _kept: dict[Hashable, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)
    _last: dict[Hashable, tuple[int, Tensor]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        philox.split_key(self.seed)
        if not 1 <= self.count <= BLOCK:
            raise ValueError(f"expected 1 <= count <= {BLOCK} for hadamard, got {self.count}")

    def direction(
        self, name: str, index: int, shape: Sequence[int], *, start: int = 0, device: torch.device | str = "cpu"
    ) -> Tensor:
        """Direction z_index of tensor `name`: float32 of `shape`, every entry +1 or -1. See `Directions`."""
        out = torch.zeros(tuple(shape), dtype=torch.float32, device=device)
        self.add_(out, name, index, 1.0, start=start)
        return out

    def add_(self, out: Tensor, name: str, index: int, alpha: float, *, start: int = 0) -> None:
        """Add alpha * z_index to the contiguous float32 tensor `out`, in place. See `Directions.add_`."""
        self.add_into(out, out, name, index, alpha, start=start)

    def add_into(self, out: Tensor, x: Tensor, name: str, index: int, alpha: float, *, start: int = 0) -> None:
        """Set out = x + alpha * z_index in one pass; `x` is a tensor like `out`, or `out` itself."""
        alike = x is out or (
            x.dtype is out.dtype and x.is_contiguous() and x.shape == out.shape and x.device == out.device
        )
        right = out.dtype is torch.float32 and out.is_contiguous() and start >= 0 and 0 <= index < self.count
        if not (alike and right and abs(alpha) <= directions.LARGEST):  # in one place: a forward pass asks often
            self._refuse(out, x, index, alpha, start)
        if kernels := hadamard_kernels.chosen(out):
            kernels.add_into(out, x, start, self.seed, philox.tensor_id(name), index, alpha)
            torch.autograd.graph.increment_version(out)
            return
        flat, old, value = directions.flat(out), directions.flat(x), directions.float32_bits(alpha)
        for here, piece in self._pieces(name, index, start, flat.numel(), value, flat.device):
            torch.add(old[here], piece, out=flat[here])

    def _refuse(self, out: Tensor, x: Tensor, index: int, alpha: float, start: int) -> None:
        """Raise the ValueError of the first argument of `add_into` that is wrong."""
        directions.check_out(out)
        directions.check_out(x)
        if (out.shape, out.device) != (x.shape, x.device):
            raise ValueError(f"expected tensors alike, got {list(out.shape)} {out.device}, {list(x.shape)} {x.device}")
        directions.check_alpha(alpha)
        directions.check_index(index, self.count)
        directions.check_start(start)

    def axpy_(self, out: Tensor, name: str, coefficients: Tensor, *, start: int = 0) -> None:
        """Add sum_j coefficients[j] z_j to `out` in place: one fast transform per block. See `Directions.axpy_`."""
        directions.check_out(out)
        self.add_sum_(out, name, *directions.quantised(coefficients, self.count), start=start)

    def add_sum_(self, out: Tensor, name: str, integers: Tensor, unit: float, *, start: int = 0) -> None:
        """`axpy_` of coefficients that `directions.quantised` was given before: many calls may share them."""
        flat = directions.flat(out)
        if unit == 0.0:
            return
        directions.check_start(start)
        padded = hadamard_kernels.padded(integers, flat.device)
        if kernels := hadamard_kernels.chosen(flat, _TRANSFORM):
            kernels.axpy_(flat, start, self.seed, philox.tensor_id(name), padded, unit)
            torch.autograd.graph.increment_version(flat)
            return
        bits = self._element_bits(name, start, flat.numel(), flat.device)
        block_bits = hadamard_bits.superblock_bits(
            self.seed, philox.DIRECTION_SIGN, name, start, flat.numel(), flat.device
        )
        for blocks, here, there in _walk(start, flat.numel()):
            minus = hadamard_bits.signs_of_all(block_bits, blocks, start) >> 31  # -1 where S is -1, else 0
            signed = (padded[:, None] ^ minus) - minus
            sums = _walsh_hadamard(signed).t().contiguous().to(torch.float32)  # rounds to nearest
            _flip_(sums, _of_window(bits, blocks, start))
            flat[here].add_(sums.view(-1)[there], alpha=unit)  # times a power of two is exact, with or without FMA

    def dot(self, x: Tensor, name: str, *, start: int = 0, scale_exponent: int | None = None) -> Tensor:
        """The inner products of `x` with all directions, float64 [K], exact sums of integers. See `Directions.dot`."""
        flat, scale = directions.scaled(x, scale_exponent)
        directions.check_start(start)
        if kernels := hadamard_kernels.chosen(flat, _TRANSFORM):
            exact = kernels.dot(flat.contiguous(), start, self.seed, philox.tensor_id(name), scale)
            return exact[: self.count].to(torch.float64) / scale
        total = torch.zeros(BLOCK, dtype=torch.float64, device=flat.device)
        bits = self._element_bits(name, start, flat.numel(), flat.device)
        block_bits = hadamard_bits.superblock_bits(
            self.seed, philox.DIRECTION_SIGN, name, start, flat.numel(), flat.device
        )
        for blocks, here, there in _walk(start, flat.numel()):
            values = torch.zeros((len(blocks), BLOCK), device=flat.device)
            values.view(-1)[there] = flat[here]
            _flip_(values.mul_(scale).round_(), _of_window(bits, blocks, start))
            sums = _walsh_hadamard(values.t().contiguous().to(torch.float64))
            signs = (hadamard_bits.signs_of_all(block_bits, blocks, start) & directions.SIGN_BIT) ^ directions.ONE_BITS
            total += sums.mul_(signs.view(torch.float32)).sum(1)
        return total[: self.count] / scale

    def _pieces(
        self, name: str, index: int, start: int, numel: int, value: int, device: torch.device
    ) -> Iterator[tuple[slice, Tensor]]:
        """Slices of the window start .. start + numel, each with z_index there times the float32 of bits `value`."""
        if numel == 0:
            return
        bits = self._element_bits(name, start, numel, device)
        row = self._latest(("walsh", device), index, lambda: hadamard_bits.walsh_row(index, device))
        first, last = start // BLOCK, -(-(start + numel) // BLOCK)
        minus = self._latest(
            (name, first, last, device),
            index,
            lambda: hadamard_bits.signs_of_one(self.seed, name, index, range(first, last), device),
        )
        for blocks, here, there in _walk(start, numel):
            signs = directions.spread(_of_window(bits, blocks, start) ^ row ^ _of_window(minus, blocks, start))
            yield here, signs.bitwise_xor_(value).view(torch.float32).view(-1)[there]

    def _latest(self, what: Hashable, index: int, made: Callable[[], Tensor]) -> Tensor:
        """The result of `made()`, kept under `what` until another direction is asked for.

        A zeroth-order step asks three times for one direction.
        """
        known = self._last.get(what)
        if known is None or known[0] != index:
            if known is None and len(self._last) >= MAX_WINDOWS:
                self._last.clear()
            known = self._last[what] = (index, made())
        return known[1]

    def _element_bits(self, name: str, start: int, numel: int, device: torch.device) -> Tensor:
        """D of the blocks that hold the window, int32 [blocks, 128]; row 0 is block start // 4096."""
        key = (name, start // SPAN, -(-(start + numel) // SPAN), device)
        bits = self._kept.get(key)
        if bits is None:
            bits = hadamard_bits.superblock_bits(self.seed, philox.DIRECTION, name, start, numel, device)
            bits = bits.view(SUPERBLOCK * bits.shape[0], WORDS)
            if sum(4 * kept.numel() for kept in self._kept.values()) + 4 * bits.numel() <= CACHE_BYTES:
                self._kept[key] = bits
        return bits[start // BLOCK % SUPERBLOCK :]


def _walsh_hadamard(values: Tensor) -> Tensor:
    """H @ values for [4096, blocks], overwriting `values`; blocks stand innermost so that every pass is long runs."""
    values = values.contiguous()
    spare = torch.empty_like(values)
    half = BLOCK // 2
    while half:
        pairs = values.view(BLOCK // (2 * half), 2, -1)
        into = spare.view(pairs.shape)
        torch.add(pairs[:, 0], pairs[:, 1], out=into[:, 0])
        torch.sub(pairs[:, 0], pairs[:, 1], out=into[:, 1])
        values, spare = spare, values
        half //= 2
    return values


def _of_window(rows: Tensor, blocks: range, start: int) -> Tensor:
    """The rows of `blocks`, where row 0 is the block that holds element `start`."""
    return rows[blocks.start - start // BLOCK :][: len(blocks)]


def _flip_(values: Tensor, bits: Tensor) -> None:
    """Negate in place the float32 `values` [blocks, 4096] whose bit in `bits` [blocks, 128] is set."""
    values.view(torch.int32).bitwise_xor_(directions.spread(bits))


def _walk(start: int, numel: int) -> Iterator[tuple[range, slice, slice]]:
    """Chunks of a window: the blocks that hold one, where it is in the window, where it is in those blocks."""
    for edge in range(start - start % CHUNK, start + numel, CHUNK):
        low, high = max(edge, start), min(edge + CHUNK, start + numel)
        blocks = range(low // BLOCK, -(-high // BLOCK))
        skip = blocks.start * BLOCK
        yield blocks, slice(low - start, high - start), slice(low - skip, high - skip)
