"""The weighted sum of `tensors.weighted_mean`, compiled: every term is read once, with no float64 copy of it.

Product, sum and quotient are rounded to float64 one by one and the mean once more to float32, as in torch, so the
results are its results bit for bit.
"""

import numpy as np
from torch import Tensor

from fedft.arithmetic.compiled import Array, compiled


@compiled
def _begin(total: Array, term: Array, weight: float) -> None:
    for i in range(total.size):
        total[i] = weight * np.float64(term[i])


@compiled
def _add(total: Array, term: Array, weight: float) -> None:
    for i in range(total.size):
        total[i] += weight * np.float64(term[i])


@compiled
def _divide(out: Array, total: Array, by: float) -> None:
    for i in range(out.size):
        out[i] = total[i] / by


def begin(total: Tensor, term: Tensor, weight: float) -> None:
    """Set total = weight * term, in place. `total` is float64 and `term` float32: contiguous, alike, on the CPU."""
    _begin(_flat(total), _flat(term), weight)


def add(total: Tensor, term: Tensor, weight: float) -> None:
    """Add weight * term to `total`, in place. `total` is float64, `term` float32: contiguous, alike, on the CPU."""
    _add(_flat(total), _flat(term), weight)


def divide(out: Tensor, total: Tensor, by: float) -> None:
    """Set out = total / by, rounded once. `out` is float32, `total` float64: contiguous, alike, on the CPU."""
    _divide(_flat(out), _flat(total), by)


def _flat(t: Tensor) -> Array:
    return t.detach().numpy().reshape(-1)
