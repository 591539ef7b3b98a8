"""Random directions z_1 .. z_K shared by seed: one at a time, weighted sums of all, inner products with all.

    z = make("hadamard", seed=7, count=4096)
    z.add_(weight, "layers.0.q.weight", 12, 1e-3)      weight += 1e-3 z_12

Entries have mean 0 and variance 1, and E[z z^T] = I. A direction is keyed by the tensor's canonical name and by the
position in that tensor flattened row-major, so neither other tensors nor the way a tensor is cut changes it.

The families are wire formats, frozen: `hadamard v1` in `hadamard.py`, `rademacher v1` and `gaussian v1` in
`independent.py`. Here is what every family promises, and the arithmetic by which sign families keep it exactly: bits as
signs of float32, coefficients and values as integers whose sums do not round.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from functools import cache
from typing import Protocol

import torch
from torch import Tensor

COEFFICIENT_BITS = 19  # 4096 coefficients below 2^19 sum to less than 2^31: int32 is exact
VALUE_BITS = 22  # 2^31 values up to 2^22 sum to at most 2^53: fp64 is exact
MAX_ELEMENTS = 1 << 31
SIGN_BIT = -(1 << 31)  # as int32
ONE_BITS = 0x3F800000  # float32 1.0
LARGEST = torch.finfo(torch.float32).max


class Directions(Protocol):
    """K random directions z_0 .. z_{K-1} for every tensor, found by the tensor's canonical name.

    In every method tensors are float32 of any shape, and element 0 of the tensor given is element `start`, counted
    row-major, of the tensor called `name`: so a large tensor may be worked through in chunks of any size. Wrong
    arguments raise ValueError: an index outside 0 .. count - 1, a dtype other than the one promised, an `out` that is
    not contiguous, numbers that are not finite.
    """

    @property
    def count(self) -> int:
        """K, the number of directions that there are for each tensor."""

    def direction(
        self, name: str, index: int, shape: Sequence[int], *, start: int = 0, device: torch.device | str = "cpu"
    ) -> Tensor:
        """Direction number `index` of tensor `name`, z_index: float32 of `shape` on `device`, in new memory."""

    def add_(self, out: Tensor, name: str, index: int, alpha: float, *, start: int = 0) -> None:
        """Add alpha * z_index to `out` in place, one rounding per element (alpha is rounded to float32 first)."""

    def add_into(self, out: Tensor, x: Tensor, name: str, index: int, alpha: float, *, start: int = 0) -> None:
        """Set out = x + alpha * z_index, rounded as `add_` rounds.

        `x` has the shape, dtype and device of `out`, or is `out` itself.
        """

    def axpy_(self, out: Tensor, name: str, coefficients: Tensor, *, start: int = 0) -> None:
        """Add sum_j coefficients[j] z_j to `out` in place; `coefficients` is float32 or float64 [K], below 2^96.

        Sign families: coefficients become integers of 19 bits times u = 2^(e - 19), where 2^e is the smallest power
        of two above max|coefficients| (from the whole vector, never from a chunk; e >= -107). Their sum is exact, is
        rounded to float32 and added: bit-identical for any chunks, threads and device. Before the last addition the
        error of an element is at most K u plus 2^-24 of the sum, typically sqrt(K / 12) u: a coefficient is rounded
        to nearest, but held at 2^19 - 1. If all coefficients are zero, `out` keeps every bit.
        """

    def dot(self, x: Tensor, name: str, *, start: int = 0, scale_exponent: int | None = None) -> Tensor:
        """The inner products <x, z_j> with all K directions: float64 [K]. `x` has at most 2^31 elements.

        Sign families: x is rounded to multiples of u = 2^(e - 22), e = `scale_exponent` or else `exponent(x)`, and
        the sums are exact: bit-identical for any threads and device, and sums over the chunks of one tensor are too
        if every chunk is given the `exponent` of the whole. Error at most n u / 2, typically sqrt(n / 12) u.
        The other families are accumulated in float64 and ignore `scale_exponent`.
        """


def exponent(x: Tensor) -> int:
    """The smallest integer e >= -104 such that every entry of `x` is below 2^e in size; x floating, any shape.

    It is the scale of a whole tensor that `Directions.dot` is given chunk by chunk. Raises ValueError where `x` holds a
    NaN or an infinity.

    >>> exponent(torch.tensor([0.5, -3.0]))
    2
    """
    low, high = torch.aminmax(x.detach()) if x.numel() else (torch.zeros(()), torch.zeros(()))
    largest = max(-low.item(), high.item())
    if not math.isfinite(high.item() - low.item()):  # float64: only a NaN or an infinity in x does this
        raise ValueError("expected finite values, got a NaN or an infinity")
    return max(math.frexp(largest)[1], -104) if largest else -104  # below, 2^(22 - e) is no float32


def check_out(out: Tensor) -> None:
    """Raise ValueError unless `out` is a contiguous float32 tensor."""
    if out.dtype != torch.float32 or not out.is_contiguous():
        raise ValueError(f"expected a contiguous float32 tensor, got {out.dtype} with strides {out.stride()}")


def flat(out: Tensor) -> Tensor:
    """A vector that shares the memory of `out`; ValueError unless that is a contiguous float32 tensor."""
    check_out(out)
    return out.detach().view(-1)


def check_start(start: int) -> None:
    """Raise ValueError for a negative position in a tensor."""
    if start < 0:
        raise ValueError(f"expected start >= 0, got {start}")


def check_index(index: int, count: int) -> None:
    """Raise ValueError unless `index` is the number of one of `count` directions."""
    if not 0 <= index < count:
        raise ValueError(f"expected a direction in 0 .. {count - 1}, got {index}")


def check_alpha(alpha: float) -> None:
    """Raise ValueError for a step `alpha` that is not finite or beyond the largest float32."""
    if not abs(alpha) <= LARGEST:
        raise ValueError(f"expected a finite alpha within float32, got {alpha}")


def float32_bits(alpha: float) -> int:
    """The bits of `alpha` rounded to float32, read as an int32; ValueError where it is not finite in float32.

    >>> float32_bits(1.0) == ONE_BITS
    True
    """
    check_alpha(alpha)
    return int(struct.unpack("<i", struct.pack("<f", alpha))[0])


def checked(coefficients: Tensor, count: int) -> tuple[Tensor, float]:
    """(coefficients in float64, unit): unit is 1.0, or 0.0 if all coefficients are zero.

    Raises ValueError unless they are `count` numbers in float32 or float64, finite and below 2^96 in size.
    """
    if coefficients.dtype not in (torch.float32, torch.float64) or coefficients.shape != (count,):
        found = f"{coefficients.dtype} {list(coefficients.shape)}"
        raise ValueError(f"expected {count} coefficients in float32 or float64, got {found}")
    numbers = coefficients.detach().to(torch.float64)
    largest = numbers.abs().max().item()
    if not largest < 2.0**96:  # beyond, the sum of 4096 could leave float32; a NaN fails too
        raise ValueError(f"expected finite coefficients below 2^96, got {largest}")
    return numbers, float(largest > 0)


def quantised(coefficients: Tensor, count: int) -> tuple[Tensor, float]:
    """(integers, unit) with coefficients ~ integers * unit; unit is 0.0 if all coefficients are zero.

    The integers stand in float64 [count] and are below 2^19 in size; the unit is a power of two, the smallest for which
    they are, and at least 2^-126. Raises ValueError as `checked` does.

    >>> quantised(torch.tensor([1.0, -0.25]), 2)
    (tensor([262144., -65536.], dtype=torch.float64), 3.814697265625e-06)
    """
    numbers, some = checked(coefficients, count)
    if not some:
        return numbers, 0.0
    _, power = math.frexp(numbers.abs().max().item())
    power = max(power - COEFFICIENT_BITS, -126)  # the unit is a normal float32
    limit = 2.0**COEFFICIENT_BITS - 1
    return (numbers * 2.0**-power).round_().clamp_(-limit, limit), 2.0**power


def scaled(x: Tensor, scale_exponent: int | None) -> tuple[Tensor, float]:
    """(x as a vector, factor): the power of two by which every entry of `x` becomes a number of at most 2^22.

    Args:
        x: float32 of at most 2^31 elements, any shape.
        scale_exponent: the `exponent` of the whole tensor where `x` is a chunk of it; None is that of `x`.
    Raises:
        ValueError: another dtype, more elements, a NaN or infinity, or an exponent too small for `x` or above 128.
    """
    if x.dtype != torch.float32 or x.numel() > MAX_ELEMENTS:
        raise ValueError(f"expected float32 with at most 2^31 elements, got {x.dtype} with {x.numel()}")
    needed = exponent(x)
    if scale_exponent is None:
        scale_exponent = needed
    if not needed <= scale_exponent <= 128:
        raise ValueError(f"expected a scale exponent in {needed} .. 128, got {scale_exponent}")
    return x.detach().reshape(-1), 2.0 ** (VALUE_BITS - scale_exponent)


@cache
def shifts(device: torch.device) -> Tensor:
    """int32 [32] on `device`, 31 .. 0: by how much bit 0 .. 31 of a word is shifted left to be its sign bit."""
    return torch.arange(31, -1, -1, dtype=torch.int32, device=device)


def spread(words: Tensor) -> Tensor:
    """Every bit of int32 words [..., w], lowest first, alone at the place of a float32's sign: int32 [..., 32 w].

    >>> (spread(torch.tensor([5], dtype=torch.int32))[:4] ^ ONE_BITS).view(torch.float32).tolist()
    [-1.0, 1.0, -1.0, 1.0]
    """
    return (words[..., None] << shifts(words.device)).bitwise_and_(SIGN_BIT).flatten(-2)
