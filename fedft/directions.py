"""Random directions z_1 .. z_K shared by seed: one at a time, weighted sums of all, inner products with all.

Entries have mean 0 and variance 1, and E[z z^T] = I. A direction is keyed by the tensor's canonical name and by the
position in that tensor flattened row-major, so neither other tensors nor the way a tensor is cut changes it.

`hadamard v1` (a wire format: frozen). A tensor is cut in blocks of M = 4096 elements; block b, element i of it:

    z_j[b, i] = S[b, j] * H[i, j] * D[b, i],    H[i, j] = (-1)^popcount(i & j),    0 <= j < K <= 4096

S and D are bits of Philox-4x32-10 (`philox.py`; key = seed, 1 means -1). 16 blocks make a superblock s = b // 16 of
65,536 bits in either stream: bit k of it is bit k % 32 of word (k // 32) % 4 of Philox block 512 s + k // 128.

    D: purpose 1, k = 4096 (b % 16) + i          S: purpose 6, k = 16 j + b % 16

Full blocks of different directions are orthogonal, the K directions of a block cost one fast transform, and one
direction needs of S only 16 bits per superblock. Choromanski, Rowland, Weller, "The unreasonable effectiveness of
structured random orthogonal embeddings", NeurIPS 2017; for K << n the law is that of independent signs.

`rademacher v1`: key = derive(seed, "rademacher", j), purpose 1, element e is bit e % 32 of word (e // 32) % 4 of block
e // 128. `gaussian v1`: key = derive(seed, "gaussian", j), purpose 1, elements 4c .. 4c + 3 are two Box-Muller pairs
made of block c in fp32; log, cos and sin differ by library, so it is portable to about 1e-6, not bitwise.
"""

from __future__ import annotations

import math
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from fedft import philox

BLOCK = 4096  # M of the definition
SUPERBLOCK = 16  # blocks that share Philox blocks of S
WORDS = BLOCK // 32  # 32-bit words of D per block
CHUNK = 1 << 18  # elements worked on at once: the int32 buffers of a transform, 1 MB each, stay in cache
PHILOX_CHUNK = 1 << 14  # Philox blocks made at once: int64 temporaries of 128 KB are reused, larger ones mapped anew
CACHE_BYTES = 1 << 28  # bits of D kept by one instance: those of 2^31 parameters
COEFFICIENT_BITS = 19  # 4096 coefficients below 2^19 sum to less than 2^31: int32 is exact
VALUE_BITS = 22  # 2^31 values up to 2^22 sum to at most 2^53: fp64 is exact
MAX_ELEMENTS = 1 << 31
_SPAN = SUPERBLOCK * BLOCK  # elements, and bits of D or S, of a superblock
SIGN_BIT = -(1 << 31)  # as int32
ONE_BITS = 0x3F800000  # float32 1.0


class Directions(Protocol):
    """K directions for every tensor. All tensors are float32, in any shape; element 0 is element `start` of `name`.

    Passing `start` lets a tensor be walked in chunks of any size. Wrong arguments raise ValueError: an index outside
    0 .. count - 1, a dtype other than the one promised, an `out` that is not contiguous, numbers that are not finite.
    """

    @property
    def count(self) -> int:
        """K, the number of directions."""

    def direction(
        self, name: str, index: int, shape: Sequence[int], *, start: int = 0, device: torch.device | str = "cpu"
    ) -> Tensor:
        """z_index in float32 of `shape`."""

    def add_(self, out: Tensor, name: str, index: int, alpha: float, *, start: int = 0) -> None:
        """out += alpha * z_index, in place, one rounding per element (alpha is rounded to float32 first)."""

    def axpy_(self, out: Tensor, name: str, coefficients: Tensor, *, start: int = 0) -> None:
        """out += sum_j coefficients[j] z_j, in place; `coefficients` is float32 or float64 [K], below 2^96.

        Sign families: coefficients become integers of 19 bits times u = 2^(e - 19), where 2^e is the smallest power
        of two above max|coefficients| (from the whole vector, never from a chunk; e >= -107). Their sum is exact, is
        rounded to float32 and added: bit-identical for any chunks, threads and device. Before the last addition the
        error of an element is at most K u plus 2^-24 of the sum, typically sqrt(K / 12) u: a coefficient is rounded
        to nearest, but held at 2^19 - 1. If all coefficients are zero, `out` keeps every bit.
        """

    def dot(self, x: Tensor, name: str, *, start: int = 0, scale_exponent: int | None = None) -> Tensor:
        """<x, z_j> for all j as float64 [K]; `x` has at most 2^31 elements and is not modified.

        Sign families: x is rounded to multiples of u = 2^(e - 22), e = `scale_exponent` or else `exponent(x)`, and
        the sums are exact: bit-identical for any threads and device, and sums over the chunks of one tensor are too
        if every chunk is given the `exponent` of the whole. Error at most n u / 2, typically sqrt(n / 12) u.
        The other families are accumulated in float64 and ignore `scale_exponent`.
        """


def make(family: str, seed: int, count: int) -> Directions:
    """`count` directions of "hadamard", "rademacher" or "gaussian"; `seed` in 0 .. 2^64 - 1."""
    if family == "hadamard":
        return Hadamard(seed, count)
    if family == "rademacher":
        return Rademacher(seed, count)
    if family == "gaussian":
        return Gaussian(seed, count)
    raise ValueError(f"unknown family of directions {family!r}; known: gaussian, hadamard, rademacher")


def exponent(x: Tensor) -> int:
    """The smallest e >= -104 such that every |x| < 2^e; ValueError where x is not finite. See `Directions.dot`."""
    low, high = torch.aminmax(x.detach()) if x.numel() else (torch.zeros(()), torch.zeros(()))
    largest = max(-low.item(), high.item())
    if not math.isfinite(high.item() - low.item()):  # float64: only a NaN or an infinity in x does this
        raise ValueError("expected finite values, got a NaN or an infinity")
    return max(math.frexp(largest)[1], -104) if largest else -104  # below, 2^(22 - e) is no float32


@dataclass(frozen=True)
class Hadamard:
    """`hadamard v1`, the default family: K <= 4096 directions; exact everywhere.

    Keeps the bits of D, which do not depend on j: n/8 bytes per tensor (8 KiB at least), 256 MiB in all, beyond which
    they are made anew at each call; and the block signs of the direction last used, n/1024 bytes per tensor. A tensor
    walked in chunks is kept chunk by chunk, so walk it in the same chunks each time. `axpy_` and `dot` hold another
    n/8 bytes while they work. What is kept goes with the instance.
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
        out = torch.empty(math.prod(shape), device=device)
        for here, piece in self._pieces(name, index, start, out.numel(), ONE_BITS, out.device):
            out[here] = piece
        return out.view(tuple(shape))

    def add_(self, out: Tensor, name: str, index: int, alpha: float, *, start: int = 0) -> None:
        flat, value = _flat(out), _float32_bits(alpha)
        for here, piece in self._pieces(name, index, start, flat.numel(), value, flat.device):
            flat[here].add_(piece)

    def axpy_(self, out: Tensor, name: str, coefficients: Tensor, *, start: int = 0) -> None:
        flat = _flat(out)
        integers, unit = _quantised(coefficients, self.count)
        if unit == 0.0:
            return
        padded = torch.nn.functional.pad(integers, (0, BLOCK - self.count)).to(flat.device, torch.int32)
        bits = self._element_bits(name, start, flat.numel(), flat.device)
        block_bits = self._superblock_bits(philox.DIRECTION_SIGN, name, start, flat.numel(), flat.device)
        for blocks, here, there in _walk(start, flat.numel()):
            minus = _block_signs(block_bits, blocks, start) >> 31  # -1 where S is -1, else 0
            signed = (padded[:, None] ^ minus) - minus
            sums = _walsh_hadamard(signed).t().contiguous().to(torch.float32)  # rounds to nearest
            _flip_(sums, _of_window(bits, blocks, start))
            flat[here].add_(sums.view(-1)[there], alpha=unit)  # times a power of two is exact, with or without FMA

    def dot(self, x: Tensor, name: str, *, start: int = 0, scale_exponent: int | None = None) -> Tensor:
        flat, scale = _scaled(x, scale_exponent)
        total = torch.zeros(BLOCK, dtype=torch.float64, device=flat.device)
        bits = self._element_bits(name, start, flat.numel(), flat.device)
        block_bits = self._superblock_bits(philox.DIRECTION_SIGN, name, start, flat.numel(), flat.device)
        for blocks, here, there in _walk(start, flat.numel()):
            values = torch.zeros((len(blocks), BLOCK), device=flat.device)
            values.view(-1)[there] = flat[here]
            _flip_(values.mul_(scale).round_(), _of_window(bits, blocks, start))
            sums = _walsh_hadamard(values.t().contiguous().to(torch.float64))
            signs = (_block_signs(block_bits, blocks, start) & SIGN_BIT) ^ ONE_BITS
            total += sums.mul_(signs.view(torch.float32)).sum(1)
        return total[: self.count] / scale

    def _pieces(
        self, name: str, index: int, start: int, numel: int, value: int, device: torch.device
    ) -> Iterator[tuple[slice, Tensor]]:
        """Parts of the window and there z_index times the float32 with bits `value`."""
        _check_index(index, self.count)
        if numel == 0:
            return
        bits = self._element_bits(name, start, numel, device)
        row = self._latest(("walsh", device), index, lambda: _walsh_row(index, device))
        first, last = start // BLOCK, -(-(start + numel) // BLOCK)
        minus = self._latest(
            (name, first, last, device), index, lambda: self._signs_of_one(name, index, range(first, last), device)
        )
        for blocks, here, there in _walk(start, numel):
            signs = _spread(_of_window(bits, blocks, start) ^ row ^ _of_window(minus, blocks, start))
            yield here, signs.bitwise_xor_(value).view(torch.float32).view(-1)[there]

    def _latest(self, what: Hashable, index: int, made: Callable[[], Tensor]) -> Tensor:
        """`made()` for direction `index`, once: a zeroth-order step asks three times for one direction."""
        known = self._last.get(what)
        if known is None or known[0] != index:
            known = self._last[what] = (index, made())
        return known[1]

    def _element_bits(self, name: str, start: int, numel: int, device: torch.device) -> Tensor:
        """D of the blocks that hold the window, int32 [blocks, 128]; row 0 is block start // 4096."""
        _check_start(start)
        key = (name, start // _SPAN, -(-(start + numel) // _SPAN), device)
        bits = self._kept.get(key)
        if bits is None:
            bits = self._superblock_bits(philox.DIRECTION, name, start, numel, device)
            bits = bits.view(SUPERBLOCK * bits.shape[0], WORDS)
            if sum(4 * kept.numel() for kept in self._kept.values()) + 4 * bits.numel() <= CACHE_BYTES:
                self._kept[key] = bits
        return bits[start // BLOCK % SUPERBLOCK :]

    def _superblock_bits(self, purpose: int, name: str, start: int, numel: int, device: torch.device) -> Tensor:
        """D or S of the superblocks that hold the window, int32 [superblocks, 2048]."""
        first, last = start // _SPAN, -(-(start + numel) // _SPAN)
        name_id, per_span = philox.tensor_id(name), _SPAN // 128  # Philox blocks of a superblock
        bits = torch.empty(((last - first) * per_span, 4), dtype=torch.int32, device=device)
        for at in range(0, bits.shape[0], PHILOX_CHUNK):
            part = bits[at : at + PHILOX_CHUNK]
            part.copy_(philox.words(self.seed, purpose, name_id, first * per_span + at, part.shape[0], device))
        return bits.view(last - first, _SPAN // 32)

    def _signs_of_one(self, name: str, index: int, blocks: range, device: torch.device) -> Tensor:
        """S of one direction: int32 [blocks, 1], -1 where negative, else 0."""
        first, last = blocks.start // SUPERBLOCK, -(-blocks.stop // SUPERBLOCK)
        key, tail = philox.split_key(self.seed), (philox.tensor_id(name), philox.DIRECTION_SIGN)
        if last - first <= 16:  # Python ints need 5 us per block, tensors 200 us for any number
            places = [superblock * (_SPAN // 128) + index // 8 for superblock in range(first, last)]
            drawn = [philox.philox4x32((p & philox.MASK32, p >> 32, *tail), key)[index // 2 % 4] for p in places]
            words = torch.tensor(drawn)
        else:
            at = torch.arange(first, last) * (_SPAN // 128) + index // 8
            words = philox.philox4x32((at & philox.MASK32, at >> 32, *tail), key)[index // 2 % 4]
        signs = words.to(torch.int32)[:, None] << _shifts(words.device).view(2, SUPERBLOCK)[index % 2]
        skip = blocks.start - first * SUPERBLOCK
        return (signs.view(-1, 1)[skip : skip + len(blocks)] >> 31).to(device)


class _Rows(ABC):
    """Directions that can be had in rows: float32 [indices, numel] of any of them over any window."""

    count: int
    exact: ClassVar[bool]  # entries are +-1, so that integers stay integers
    together: ClassVar[int]  # entries made at once: enough to hide call overhead, few enough for caches (measured)

    @abstractmethod
    def _rows(self, name: str, indices: range, start: int, numel: int, device: torch.device) -> Tensor: ...

    def direction(
        self, name: str, index: int, shape: Sequence[int], *, start: int = 0, device: torch.device | str = "cpu"
    ) -> Tensor:
        _check_index(index, self.count)
        rows = self._rows(name, range(index, index + 1), start, math.prod(shape), torch.device(device))
        return rows.reshape(tuple(shape))

    def add_(self, out: Tensor, name: str, index: int, alpha: float, *, start: int = 0) -> None:
        flat, _ = _flat(out), _float32_bits(alpha)
        _check_index(index, self.count)
        for here in _windows(flat.numel()):
            row = self._rows(name, range(index, index + 1), start + here.start, here.stop - here.start, flat.device)
            flat[here].add_(row[0].mul(alpha))  # two steps: a fused one would round the product differently

    def axpy_(self, out: Tensor, name: str, coefficients: Tensor, *, start: int = 0) -> None:
        flat = _flat(out)
        numbers, unit = _quantised(coefficients, self.count) if self.exact else _checked(coefficients, self.count)
        if unit == 0.0:
            return
        numbers = numbers.to(flat.device)
        for here in _windows(flat.numel()):
            total = torch.zeros(here.stop - here.start, dtype=torch.float64, device=flat.device)
            for indices in _groups(self.count, self.together // total.numel()):
                rows = self._rows(name, indices, start + here.start, total.numel(), flat.device)
                total += numbers[indices.start : indices.stop] @ rows.to(torch.float64)
            flat[here].add_(total.to(torch.float32), alpha=unit)

    def dot(self, x: Tensor, name: str, *, start: int = 0, scale_exponent: int | None = None) -> Tensor:
        flat, scale = _scaled(x, scale_exponent) if self.exact else (_scaled(x, None)[0], 1.0)
        total = torch.zeros(self.count, dtype=torch.float64, device=flat.device)
        for here in _windows(flat.numel()):
            values = (flat[here] * scale).round_() if self.exact else flat[here]
            for indices in _groups(self.count, self.together // values.numel()):
                rows = self._rows(name, indices, start + here.start, values.numel(), flat.device)
                total[indices.start : indices.stop] += rows.to(torch.float64) @ values.to(torch.float64)
        return total / scale


@dataclass(frozen=True)
class Rademacher(_Rows):
    """`rademacher v1`: independent signs; exact everywhere, n K random bits for every axpy_ and dot."""

    seed: int
    count: int
    exact: ClassVar[bool] = True
    together: ClassVar[int] = 1 << 19

    def __post_init__(self) -> None:
        _check_independent(self.seed, self.count)

    @cached_property
    def _keys(self) -> Tensor:
        return torch.tensor([philox.derive(self.seed, "rademacher", j) for j in range(self.count)])

    def _rows(self, name: str, indices: range, start: int, numel: int, device: torch.device) -> Tensor:
        words = _keyed_words(self._keys, name, indices, start // 128, -(-(start + numel) // 128), device)
        signs = _spread(words).bitwise_xor_(ONE_BITS).view(torch.float32)
        return signs.view(len(indices), -1)[:, start % 128 : start % 128 + numel]


@dataclass(frozen=True)
class Gaussian(_Rows):
    """`gaussian v1`: independent standard normals, at most 6.7 in size; portable to about 1e-6, slow."""

    seed: int
    count: int
    exact: ClassVar[bool] = False
    together: ClassVar[int] = 1 << 17

    def __post_init__(self) -> None:
        _check_independent(self.seed, self.count)

    @cached_property
    def _keys(self) -> Tensor:
        return torch.tensor([philox.derive(self.seed, "gaussian", j) for j in range(self.count)])

    def _rows(self, name: str, indices: range, start: int, numel: int, device: torch.device) -> Tensor:
        words = _keyed_words(self._keys, name, indices, start // 4, -(-(start + numel) // 4), device)
        unsigned = words.to(torch.int64) & philox.MASK32
        uniform = (unsigned[..., 0::2] + 1).to(torch.float32) * 2.0**-32  # in (0, 1]: its logarithm is finite
        radius = torch.sqrt(-2.0 * torch.log(uniform))
        angle = (unsigned[..., 1::2] >> 8).to(torch.float32) * (2.0 * math.pi * 2.0**-24)
        normal = torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), dim=-1)
        return normal.view(len(indices), -1)[:, start % 4 : start % 4 + numel]


@dataclass(frozen=True, eq=False)
class Table(_Rows):
    """Directions given as numbers, to check published values by hand: `vectors[name]` is floating [K, n].

    Row j, elements start .. start + n, is z_j, whatever its variance. A name that is absent raises ValueError.
    """

    vectors: Mapping[str, Tensor]
    exact: ClassVar[bool] = False
    together: ClassVar[int] = 1 << 17

    def __post_init__(self) -> None:
        shapes = [tuple(v.shape) for v in self.vectors.values()]
        if not shapes or any(len(shape) != 2 or shape[0] != shapes[0][0] for shape in shapes):
            raise ValueError(f"expected vectors of one K, each [K, n], got shapes {shapes}")

    @property
    def count(self) -> int:  # type: ignore[override]
        return next(iter(self.vectors.values())).shape[0]

    def _rows(self, name: str, indices: range, start: int, numel: int, device: torch.device) -> Tensor:
        if name not in self.vectors:
            raise ValueError(f"no directions for tensor {name!r}; known: {', '.join(sorted(self.vectors))}")
        table = self.vectors[name]
        _check_start(start)
        if start + numel > table.shape[1]:
            raise ValueError(f"directions of {name!r} have {table.shape[1]} elements, {start + numel} asked")
        rows = table[indices.start : indices.stop, start : start + numel]
        return rows.to(device=device, dtype=torch.float32, copy=True)  # a copy: the caller may write to it


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


def _walsh_row(index: int, device: torch.device) -> Tensor:
    """H[:, index] as bits, int32 [128], bit i % 32 of word i // 32: the low five bits of i choose the bit."""
    within = sum(((i & index).bit_count() & 1) << i for i in range(32))
    words = [within ^ (philox.MASK32 * ((w & index >> 5).bit_count() & 1)) for w in range(WORDS)]
    return torch.tensor(words).to(torch.int32).to(device)


def _of_window(rows: Tensor, blocks: range, start: int) -> Tensor:
    """The rows of `blocks`, where row 0 is the block that holds element `start`."""
    return rows[blocks.start - start // BLOCK :][: len(blocks)]


def _block_signs(bits: Tensor, blocks: range, start: int) -> Tensor:
    """S for all 4096 directions, int32 [4096, blocks]: the top bit is the sign, the others are arbitrary.

    `bits` [superblocks, 2048] begin with the superblock that holds element `start`.
    """
    first, last = blocks.start // SUPERBLOCK, -(-blocks.stop // SUPERBLOCK)
    base = start // _SPAN
    by_word = bits[first - base : last - base].t().contiguous()[:, None, :, None]  # two directions in each word
    signs = torch.empty((BLOCK // 2, 2, last - first, SUPERBLOCK), dtype=torch.int32, device=bits.device)
    torch.bitwise_left_shift(by_word, _shifts(bits.device).view(2, 1, SUPERBLOCK), out=signs)
    skip = blocks.start - first * SUPERBLOCK
    return signs.view(BLOCK, -1)[:, skip : skip + len(blocks)]


def _keyed_words(keys: Tensor, name: str, indices: range, first: int, last: int, device: torch.device) -> Tensor:
    """Philox blocks first .. last - 1 under each of the keys, purpose 1: int32 [indices, 4 (last - first)]."""
    _check_start(first)
    key = keys[indices.start : indices.stop, None].to(device)
    block = torch.arange(first, last, device=device)
    counter = (block & philox.MASK32, block >> 32, philox.tensor_id(name), philox.DIRECTION)
    words = torch.stack(philox.philox4x32(counter, (key & philox.MASK32, key >> 32)), dim=-1)
    return words.to(torch.int32).view(len(indices), -1)


@cache
def _shifts(device: torch.device) -> Tensor:
    """31 .. 0: how far to the left bit 0 .. 31 of a word is from the sign."""
    return torch.arange(31, -1, -1, dtype=torch.int32, device=device)


def _spread(words: Tensor) -> Tensor:
    """int32 [..., w] -> [..., 32 w]: every bit, lowest first, alone in the place of a float32's sign."""
    return (words[..., None] << _shifts(words.device)).bitwise_and_(SIGN_BIT).flatten(-2)


def _flip_(values: Tensor, bits: Tensor) -> None:
    """Negate in place the float32 `values` [blocks, 4096] whose bit in `bits` [blocks, 128] is set."""
    values.view(torch.int32).bitwise_xor_(_spread(bits))


def _walk(start: int, numel: int) -> Iterator[tuple[range, slice, slice]]:
    """Chunks of a window: the blocks that hold one, where it is in the window, where it is in those blocks."""
    for edge in range(start - start % CHUNK, start + numel, CHUNK):
        low, high = max(edge, start), min(edge + CHUNK, start + numel)
        blocks = range(low // BLOCK, -(-high // BLOCK))
        skip = blocks.start * BLOCK
        yield blocks, slice(low - start, high - start), slice(low - skip, high - skip)


def _windows(numel: int) -> Iterator[slice]:
    """Parts of 2^15 elements of a window, for families that are made row by row."""
    return (slice(at, min(at + (1 << 15), numel)) for at in range(0, numel, 1 << 15))


def _groups(count: int, size: int) -> Iterator[range]:
    """Directions 0 .. count - 1 in groups of `size`, at least one and at most 1024."""
    size = min(max(1, size), 1024)
    return (range(at, min(at + size, count)) for at in range(0, count, size))


def _flat(out: Tensor) -> Tensor:
    """`out` as a float32 vector that shares its memory."""
    if out.dtype != torch.float32 or not out.is_contiguous():
        raise ValueError(f"expected a contiguous float32 tensor, got {out.dtype} with strides {out.stride()}")
    return out.detach().view(-1)


def _check_start(start: int) -> None:
    if start < 0:
        raise ValueError(f"expected start >= 0, got {start}")


def _check_index(index: int, count: int) -> None:
    if not 0 <= index < count:
        raise ValueError(f"expected a direction in 0 .. {count - 1}, got {index}")


def _check_independent(seed: int, count: int) -> None:
    philox.split_key(seed)
    if count < 1:
        raise ValueError(f"expected count >= 1, got {count}")


def _float32_bits(alpha: float) -> int:
    """The bits of `alpha` rounded to float32, as int32."""
    if not abs(alpha) <= torch.finfo(torch.float32).max:
        raise ValueError(f"expected a finite alpha within float32, got {alpha}")
    return int(struct.unpack("<i", struct.pack("<f", alpha))[0])


def _checked(coefficients: Tensor, count: int) -> tuple[Tensor, float]:
    """(coefficients as float64, 1.0), or 0.0 instead if all are zero."""
    if coefficients.dtype not in (torch.float32, torch.float64) or coefficients.shape != (count,):
        found = f"{coefficients.dtype} {list(coefficients.shape)}"
        raise ValueError(f"expected {count} coefficients in float32 or float64, got {found}")
    numbers = coefficients.detach().to(torch.float64)
    largest = numbers.abs().max().item()
    if not largest < 2.0**96:  # beyond, the sum of 4096 could leave float32; a NaN fails too
        raise ValueError(f"expected finite coefficients below 2^96, got {largest}")
    return numbers, float(largest > 0)


def _quantised(coefficients: Tensor, count: int) -> tuple[Tensor, float]:
    """(integers below 2^19 in size as float64, unit), coefficients ~ integers * unit; unit 0.0 if all are zero."""
    numbers, some = _checked(coefficients, count)
    if not some:
        return numbers, 0.0
    _, power = math.frexp(numbers.abs().max().item())
    power = max(power - COEFFICIENT_BITS, -126)  # the unit is a normal float32
    limit = 2.0**COEFFICIENT_BITS - 1
    return (numbers * 2.0**-power).round_().clamp_(-limit, limit), 2.0**power


def _scaled(x: Tensor, scale_exponent: int | None) -> tuple[Tensor, float]:
    """(x as a vector, the power of two that makes it integers up to 2^22)."""
    if x.dtype != torch.float32 or x.numel() > MAX_ELEMENTS:
        raise ValueError(f"expected float32 with at most 2^31 elements, got {x.dtype} with {x.numel()}")
    needed = exponent(x)
    if scale_exponent is None:
        scale_exponent = needed
    if not needed <= scale_exponent <= 128:
        raise ValueError(f"expected a scale exponent in {needed} .. 128, got {scale_exponent}")
    return x.detach().reshape(-1), 2.0 ** (VALUE_BITS - scale_exponent)
