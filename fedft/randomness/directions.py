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

    def add_into(self, out: Tensor, x: Tensor, name: str, index: int, alpha: float, *, start: int = 0) -> None:
        """out = x + alpha * z_index, rounded as `add_` rounds; `x` is like `out`, or is `out` itself."""

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


def exponent(x: Tensor) -> int:
    """The smallest e >= -104 such that every |x| < 2^e; ValueError where x is not finite. See `Directions.dot`."""
    low, high = torch.aminmax(x.detach()) if x.numel() else (torch.zeros(()), torch.zeros(()))
    largest = max(-low.item(), high.item())
    if not math.isfinite(high.item() - low.item()):  # float64: only a NaN or an infinity in x does this
        raise ValueError("expected finite values, got a NaN or an infinity")
    return max(math.frexp(largest)[1], -104) if largest else -104  # below, 2^(22 - e) is no float32


def check_out(out: Tensor) -> None:
    if out.dtype != torch.float32 or not out.is_contiguous():
        raise ValueError(f"expected a contiguous float32 tensor, got {out.dtype} with strides {out.stride()}")


def flat(out: Tensor) -> Tensor:
    """`out` as a float32 vector that shares its memory."""
    check_out(out)
    return out.detach().view(-1)


def check_start(start: int) -> None:
    if start < 0:
        raise ValueError(f"expected start >= 0, got {start}")


def check_index(index: int, count: int) -> None:
    if not 0 <= index < count:
        raise ValueError(f"expected a direction in 0 .. {count - 1}, got {index}")


def check_alpha(alpha: float) -> None:
    if not abs(alpha) <= LARGEST:
        raise ValueError(f"expected a finite alpha within float32, got {alpha}")


def float32_bits(alpha: float) -> int:
    """The bits of `alpha` rounded to float32, as int32."""
    check_alpha(alpha)
    return int(struct.unpack("<i", struct.pack("<f", alpha))[0])


def checked(coefficients: Tensor, count: int) -> tuple[Tensor, float]:
    """(coefficients as float64, 1.0), or 0.0 instead if all are zero."""
    if coefficients.dtype not in (torch.float32, torch.float64) or coefficients.shape != (count,):
        found = f"{coefficients.dtype} {list(coefficients.shape)}"
        raise ValueError(f"expected {count} coefficients in float32 or float64, got {found}")
    numbers = coefficients.detach().to(torch.float64)
    largest = numbers.abs().max().item()
    if not largest < 2.0**96:  # beyond, the sum of 4096 could leave float32; a NaN fails too
        raise ValueError(f"expected finite coefficients below 2^96, got {largest}")
    return numbers, float(largest > 0)


def quantised(coefficients: Tensor, count: int) -> tuple[Tensor, float]:
    """(integers below 2^19 in size as float64, unit), coefficients ~ integers * unit; unit 0.0 if all are zero."""
    numbers, some = checked(coefficients, count)
    if not some:
        return numbers, 0.0
    _, power = math.frexp(numbers.abs().max().item())
    power = max(power - COEFFICIENT_BITS, -126)  # the unit is a normal float32
    limit = 2.0**COEFFICIENT_BITS - 1
    return (numbers * 2.0**-power).round_().clamp_(-limit, limit), 2.0**power


def scaled(x: Tensor, scale_exponent: int | None) -> tuple[Tensor, float]:
    """(x as a vector, the power of two that makes it integers up to 2^22)."""
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
    """31 .. 0: how far to the left bit 0 .. 31 of a word is from the sign."""
    return torch.arange(31, -1, -1, dtype=torch.int32, device=device)


def spread(words: Tensor) -> Tensor:
    """int32 [..., w] -> [..., 32 w]: every bit, lowest first, alone in the place of a float32's sign."""
    return (words[..., None] << shifts(words.device)).bitwise_and_(SIGN_BIT).flatten(-2)
