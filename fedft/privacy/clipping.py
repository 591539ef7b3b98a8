"""A client's part of a sum, cut to a norm and put on a grid of integers: as it is summed there, no part is too long.

    g     = C 2^-30                                        the grid, d numbers in all
    u'_k  = u_k min(1, C' / |u_k|),  C' = C - g sqrt(d)/2  |0| = 0: factor 1
    s_k   = round(u'_k / g)                                |s_k| <= 2^30, exactly: g |s_k| <= C

Rounding adds g sqrt(d)/2 to a norm at most, hence C'. Sums of floats would tell of their parts by their last bits
(Mironov, "On significance of the least significant bits for differential privacy", CCS 2012); those of integers are the
same in any order.
"""

import math

import numpy as np
import torch
from torch import Tensor

from fedft.arithmetic.tensors import Tensors

GRID_BITS = 30
UNIT = 2**GRID_BITS
"""The clip in units of the grid."""


def length(parts: Tensors) -> float:
    """The L2 norm of all numbers of the tensors, as one vector; the same on every machine of a kind, whatever threads.

    Numbers whose squares are beyond float64 are no trouble; a norm that is itself beyond comes out infinite.
    """
    flat = [parts[n].double().numpy().ravel() for n in sorted(parts)]
    largest = max((float(np.abs(x).max()) for x in flat if x.size), default=0.0)
    if largest == 0.0:
        return 0.0
    return largest * math.sqrt(math.fsum(float(np.add.reduce(np.square(x / largest))) for x in flat))


def on_grid(parts: Tensors, clip: float) -> dict[str, Tensor]:
    """int64 tensors: the parts, scaled down to the norm `clip` where they are above, in units of clip 2^-30.

    The sum of their squares is 2^60 at most, without any error. Raises ValueError where a tensor is not of floats.
    """
    if others := sorted(n for n, x in parts.items() if not x.is_floating_point()):
        raise ValueError(f"{others[0]} is not of floats: nothing bounds what it tells")
    whole, bound = length(parts), UNIT - math.sqrt(sum(x.numel() for x in parts.values())) / 2
    while True:
        factor = min(UNIT / clip, bound / whole) if whole else 0.0
        found = {n: torch.round(x.double() * factor).long() for n, x in parts.items()}
        if sum(int((s * s).sum()) for s in found.values()) <= UNIT**2:
            return found
        bound -= 1  # the last bits of `factor` were on the wrong side


def off_grid(total: Tensors, clip: float, parts: float) -> dict[str, Tensor]:
    """float32 tensors: the mean of so many `parts` whose sum in units of clip 2^-30 is `total` (int64)."""
    return {n: (s.double() * (clip / UNIT / parts)).float() for n, s in total.items()}
