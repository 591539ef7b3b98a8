"""Directions whose entries are drawn one by one, or given as numbers: every one of the K costs a pass of its own.

`rademacher v1` and `gaussian v1` are wire formats, frozen; their bits are those of Philox-4x32-10 (`philox.py`).

`rademacher v1`: key = derive(seed, "rademacher", j), purpose 1, element e is bit e % 32 of word (e // 32) % 4 of block
e // 128. `gaussian v1`: key = derive(seed, "gaussian", j), purpose 1, elements 4c .. 4c + 3 are two Box-Muller pairs
made of block c in fp32; log, cos and sin differ by library, so it is portable to about 1e-6, not bitwise.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from fedft.randomness import directions, philox


class _Rows(ABC):
    """`Directions` of which any rows can be made over any window: float32 [indices, numel]."""

    count: int
    exact: ClassVar[bool]  # entries are +-1, so that integers stay integers
    together: ClassVar[int]  # entries made at once: enough to hide call overhead, few enough for caches (measured)

    @abstractmethod
    def _rows(self, name: str, indices: range, start: int, numel: int, device: torch.device) -> Tensor:
        """Elements start .. start + numel of the directions `indices` of tensor `name`: float32 [indices, numel]."""

    def direction(
        self, name: str, index: int, shape: Sequence[int], *, start: int = 0, device: torch.device | str = "cpu"
    ) -> Tensor:
        """Direction z_index of tensor `name`: float32 of `shape`. See `Directions`."""
        directions.check_index(index, self.count)
        rows = self._rows(name, range(index, index + 1), start, math.prod(shape), torch.device(device))
        return rows.reshape(tuple(shape))

    def add_(self, out: Tensor, name: str, index: int, alpha: float, *, start: int = 0) -> None:
        """Add alpha * z_index to the contiguous float32 tensor `out`, in place. See `Directions.add_`."""
        flat, _ = directions.flat(out), directions.float32_bits(alpha)
        directions.check_index(index, self.count)
        for here in _windows(flat.numel()):
            row = self._rows(name, range(index, index + 1), start + here.start, here.stop - here.start, flat.device)
            flat[here].add_(row[0].mul(alpha))  # two steps: a fused one would round the product differently

    def add_into(self, out: Tensor, x: Tensor, name: str, index: int, alpha: float, *, start: int = 0) -> None:
        """Set out = x + alpha * z_index; `x` is a tensor like `out`, or `out` itself."""
        out.copy_(x)
        self.add_(out, name, index, alpha, start=start)

    def axpy_(self, out: Tensor, name: str, coefficients: Tensor, *, start: int = 0) -> None:
        """Add sum_j coefficients[j] z_j to `out` in place, in passes over all K directions. See `Directions.axpy_`."""
        flat = directions.flat(out)
        read = directions.quantised if self.exact else directions.checked
        numbers, unit = read(coefficients, self.count)
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
        """The inner products of `x` with all directions: float64 [K]. See `Directions.dot`."""
        flat, scale = directions.scaled(x, scale_exponent) if self.exact else (directions.scaled(x, None)[0], 1.0)
        total = torch.zeros(self.count, dtype=torch.float64, device=flat.device)
        for here in _windows(flat.numel()):
            values = (flat[here] * scale).round_() if self.exact else flat[here]
            for indices in _groups(self.count, self.together // values.numel()):
                rows = self._rows(name, indices, start + here.start, values.numel(), flat.device)
                total[indices.start : indices.stop] += rows.to(torch.float64) @ values.to(torch.float64)
        return total / scale


@dataclass(frozen=True)
class Rademacher(_Rows):
    """The directions of `rademacher v1`: independent signs, exact on every device. See `Directions`.

    Slow: `axpy_` and `dot` draw n K random bits for a tensor of n elements. Raises ValueError for a seed outside
    0 .. 2^64 - 1 or a count below 1.
    """

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
        signs = directions.spread(words).bitwise_xor_(directions.ONE_BITS).view(torch.float32)
        return signs.view(len(indices), -1)[:, start % 128 : start % 128 + numel]


@dataclass(frozen=True)
class Gaussian(_Rows):
    """The directions of `gaussian v1`: independent standard normal entries, at most 6.7 in size. See `Directions`.

    Equal to about 1e-6 from one device to another, not bit for bit, and slower than signs. Raises ValueError for a seed
    outside 0 .. 2^64 - 1 or a count below 1.
    """

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
    """Directions given as numbers, to check published values by hand: row j of `vectors[name]`, [K, n], is z_j.

    The entries are floating, of any variance. Raises ValueError for vectors of different K; a tensor whose name is not
    among them, or that has more than n elements, raises ValueError when its directions are asked for.

    >>> z = Table({"w": torch.tensor([[1.0, 1.0], [1.0, -1.0]])})
    >>> z.dot(torch.tensor([3.0, 1.0]), "w").tolist()
    [4.0, 2.0]
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
        """K, the number of rows that every table has."""
        return next(iter(self.vectors.values())).shape[0]

    def _rows(self, name: str, indices: range, start: int, numel: int, device: torch.device) -> Tensor:
        if name not in self.vectors:
            raise ValueError(f"no directions for tensor {name!r}; known: {', '.join(sorted(self.vectors))}")
        table = self.vectors[name]
        directions.check_start(start)
        if start + numel > table.shape[1]:
            raise ValueError(f"directions of {name!r} have {table.shape[1]} elements, {start + numel} asked")
        rows = table[indices.start : indices.stop, start : start + numel]
        return rows.to(device=device, dtype=torch.float32, copy=True)  # a copy: the caller may write to it


def _keyed_words(keys: Tensor, name: str, indices: range, first: int, last: int, device: torch.device) -> Tensor:
    """Philox blocks first .. last - 1 under each of the keys, purpose 1: int32 [indices, 4 (last - first)]."""
    directions.check_start(first)
    key = keys[indices.start : indices.stop, None].to(device)
    block = torch.arange(first, last, device=device)
    counter = (block & philox.MASK32, block >> 32, philox.tensor_id(name), philox.DIRECTION)
    words = torch.stack(philox.philox4x32(counter, (key & philox.MASK32, key >> 32)), dim=-1)
    return words.to(torch.int32).view(len(indices), -1)


def _windows(numel: int) -> Iterator[slice]:
    """Parts of 2^15 elements of a window, for families that are made row by row."""
    return (slice(at, min(at + (1 << 15), numel)) for at in range(0, numel, 1 << 15))


def _groups(count: int, size: int) -> Iterator[range]:
    """Directions 0 .. count - 1 in groups of `size`, at least one and at most 1024."""
    size = min(max(1, size), 1024)
    return (range(at, min(at + size, count)) for at in range(0, count, size))


def _check_independent(seed: int, count: int) -> None:
    philox.split_key(seed)
    if count < 1:
        raise ValueError(f"expected count >= 1, got {count}")
