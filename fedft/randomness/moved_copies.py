"""Copies of weights as they are seen where random directions have taken them; the weights themselves stay.

    out = round(keep w0 + sum_j a_j z_j + e z'_i)         (`Offset`, and a `Step` beside it)

Every operation is rounded in float32, as `Directions.axpy_` and `add_` round, and the last result to the precision of
`out`, each time anew from the bits of w0: nothing is ever added in half precision, so no step is too small to count and
none leaves a trace when it is taken back. Compiled kernels make a copy in one pass over its tensor; torch, and families
that they do not know, sum in a float32 of 2^18 elements, piece by piece, with the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fedft.randomness import directions, hadamard_kernels, philox
from fedft.randomness.directions import Directions
from fedft.randomness.hadamard import Hadamard

CHUNK = 1 << 18  # elements summed in float32 at a time, as `hadamard` and `masked` cut what they keep
COST = 12  # additions that an element costs torch

Step = tuple[Directions, int, float]
"""(z, index, epsilon): moved by epsilon z_index."""


@dataclass(frozen=True)
class Offset:
    """Where forward passes see weights that are fixed at w0: at keep w0 + sum_j coefficients[j] z_j."""

    z: Directions
    """K directions."""
    coefficients: Tensor
    """float64 [K]; never written to, since what is made of them is kept."""
    keep: float = 1.0
    """Factor of w0; weight decay makes it less than 1."""

    def moved(self, z: Directions, coefficients: Tensor, keep: float) -> Offset:
        """The offset after a step: `keep` times this one, plus sum_j coefficients[j] z_j.

        `coefficients` is float64 [K]. Raises ValueError unless `z` are the directions of this offset.
        """
        if z is not self.z and z != self.z:
            raise ValueError("expected the directions that the weights are already moved along, got others")
        return Offset(z, keep * self.coefficients + coefficients, keep * self.keep)

    @cached_property
    def quantised(self) -> tuple[Tensor, float]:
        """(integers, unit) of the coefficients for `Hadamard.add_sum_`, made once for all tensors."""
        return directions.quantised(self.coefficients, self.z.count)

    @cached_property
    def _padded(self) -> dict[torch.device, Tensor]:
        """int32 [4096] by device: the integers as kernels take them."""
        return {}

    def integers(self, device: torch.device) -> Tensor:
        """The integers of `quantised` as int32 [4096] on a device, zeros behind them; copied there once."""
        if device not in self._padded:
            self._padded[device] = hadamard_kernels.padded(self.quantised[0], device)
        return self._padded[device]


def fill(out: Tensor, x: Tensor, name: str, offset: Offset | None, step: Step | None) -> None:
    """Set `out` to a tensor's values at an offset and a step from there.

    Args:
        out: contiguous, of the shape and device of `x` and apart from it; any floating dtype.
        x: the tensor's values w0, contiguous, in any floating dtype; not modified.
        name: its canonical name.
        offset: where weights are seen; None: at w0.
        step: a direction beside it; None: none.
    """
    if (
        hadamard_kernels.precisions(out, x)
        and _known(offset, step)
        and (kernels := hadamard_kernels.copying(out, COST))
    ):
        kernels.copy_moved(out, x, philox.tensor_id(name), *_as_numbers(offset, step, out.device))
        torch.autograd.graph.increment_version(out)
    else:
        _in_pieces(out.view(-1), x.view(-1), name, offset, step)


def _known(offset: Offset | None, step: Step | None) -> bool:
    """Whether compiled kernels have the directions of both."""
    return all(z is None or isinstance(z, Hadamard) for z in (offset and offset.z, step and step[0]))


def _as_numbers(
    offset: Offset | None, step: Step | None, device: torch.device
) -> tuple[float, tuple[int, Tensor, float] | None, tuple[int, int, float] | None]:
    """(keep, sum, step) as `copy_moved` of the kernels takes them, of directions that are all `Hadamard`."""
    summed = along = None
    if offset is not None and isinstance(offset.z, Hadamard) and (unit := offset.quantised[1]):
        summed = (offset.z.seed, offset.integers(device), unit)
    if step is not None and isinstance(z := step[0], Hadamard):
        directions.check_index(step[1], z.count)
        directions.check_alpha(step[2])
        along = (z.seed, *step[1:])
    return 1.0 if offset is None else offset.keep, summed, along


def _in_pieces(out: Tensor, x: Tensor, name: str, offset: Offset | None, step: Step | None) -> None:
    """`fill` of two vectors, by torch or by what the directions themselves have."""
    room = torch.empty(min(CHUNK, len(x)), dtype=torch.float32, device=x.device)
    for at in range(0, len(x), CHUNK):
        here = slice(at, min(at + CHUNK, len(x)))
        part = room[: here.stop - at].copy_(x[here])
        if offset is not None:
            if offset.keep != 1.0:
                part.mul_(offset.keep)
            if isinstance(offset.z, Hadamard):
                offset.z.add_sum_(part, name, *offset.quantised, start=at)
            else:
                offset.z.axpy_(part, name, offset.coefficients, start=at)
        if step is not None:
            step[0].add_(part, name, step[1], step[2], start=at)
        out[here] = part
