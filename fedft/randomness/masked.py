"""Sparse directions: a random fraction of every direction's entries is zero, the same ones in all of them.

    kept(e) = u_e >= rho,    u_e uniform in [0, 1), one Philox word per element (purpose MASK)

So probes and steps have one support, and inner products and replays know it too. rho is exact in expectation.
The published code compares a normal draw with rho, and thus zeroes the fraction Phi(rho): 0.54 for 0.1, 0.82 for 0.9.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from fedft import check
from fedft.randomness import directions, philox
from fedft.randomness.directions import Directions

CHUNK = 1 << 18  # elements: what `hadamard` works on at once, so its windows stay the same


def fraction(rho: float, variant: Literal["exact", "reference"]) -> float:
    """The share of a direction's entries that is zeroed: rho, or Phi(rho) as in the published code ("reference").

    >>> fraction(0.9, "exact"), round(fraction(0.9, "reference"), 2)
    (0.9, 0.82)
    """
    return rho if variant == "exact" else (1 + math.erf(rho / math.sqrt(2))) / 2


@dataclass(frozen=True)
class Masked:
    """The directions of `inner` with a random share `zeroed` of their entries zeroed, the same ones in all K.

    The mask of a tensor is a function of `seed` and the tensor's name. Masks stay in memory, a byte per element, for as
    long as the instance lives. Raises ValueError unless 0 <= zeroed <= 1 and the seed is in 0 .. 2^64 - 1.

    >>> from fedft.randomness.families import make
    >>> z = Masked(make("rademacher", seed=7, count=2), seed=3, zeroed=0.5)
    >>> z.direction("w", 0, (6,)).abs().tolist() == z.direction("w", 1, (6,)).abs().tolist()  # one support
    True
    """

    inner: Directions
    seed: int
    zeroed: float
    _kept: dict[tuple[str, int, int, torch.device], Tensor] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        check.between(0, 1, zeroed=self.zeroed)
        philox.split_key(self.seed)

    @property
    def count(self) -> int:
        """K, the number of directions; that of `inner`."""
        return self.inner.count

    def kept(self, name: str, start: int, numel: int, device: torch.device | str = "cpu") -> Tensor:
        """The mask of elements start .. start + numel of tensor `name`: bool [numel], false where zeroed."""
        key = (name, start, numel, torch.device(device))
        if key not in self._kept:
            directions.check_start(start)
            first, last = start // 4, -(-(start + numel) // 4)
            words = philox.words(self.seed, philox.MASK, philox.tensor_id(name), first, last - first, device)
            u = (words.flatten()[start % 4 :][:numel] >> 8).to(torch.float64) * 2.0**-24
            self._kept[key] = u >= self.zeroed
        return self._kept[key]

    def direction(
        self, name: str, index: int, shape: Sequence[int], *, start: int = 0, device: torch.device | str = "cpu"
    ) -> Tensor:
        """Direction z_index of tensor `name`, zeros included: float32 of `shape`. See `Directions`."""
        out = self.inner.direction(name, index, shape, start=start, device=device)
        for here, kept in self._chunks(name, start, out):
            out.view(-1)[here] *= kept
        return out

    def add_(self, out: Tensor, name: str, index: int, alpha: float, *, start: int = 0) -> None:
        """Add alpha * z_index to `out` in place; where the mask is false, `out` keeps every bit."""
        flat = directions.flat(out)
        for here, kept in self._chunks(name, start, flat):
            moved = flat[here].clone()
            self.inner.add_(moved, name, index, alpha, start=start + here.start)
            flat[here] = torch.where(kept, moved, flat[here])

    def add_into(self, out: Tensor, x: Tensor, name: str, index: int, alpha: float, *, start: int = 0) -> None:
        """Set out = x + alpha * z_index; `x` is a tensor like `out`, or `out` itself."""
        out.copy_(x)
        self.add_(out, name, index, alpha, start=start)

    def axpy_(self, out: Tensor, name: str, coefficients: Tensor, *, start: int = 0) -> None:
        """Add sum_j coefficients[j] z_j to `out` in place; where the mask is false, `out` keeps every bit."""
        flat = directions.flat(out)
        for here, kept in self._chunks(name, start, flat):
            moved = flat[here].clone()
            self.inner.axpy_(moved, name, coefficients, start=start + here.start)
            flat[here] = torch.where(kept, moved, flat[here])

    def dot(self, x: Tensor, name: str, *, start: int = 0, scale_exponent: int | None = None) -> Tensor:
        """The inner products of `x` with all directions, over the entries that are not zeroed: float64 [K]."""
        seen = x.detach().reshape(-1).clone()
        for here, kept in self._chunks(name, start, seen):
            seen[here] *= kept
        return self.inner.dot(seen, name, start=start, scale_exponent=scale_exponent)

    def _chunks(self, name: str, start: int, x: Tensor) -> Iterator[tuple[slice, Tensor]]:
        for at in range(0, x.numel(), CHUNK):
            here = slice(at, min(at + CHUNK, x.numel()))
            yield here, self.kept(name, start + at, here.stop - at, x.device)
