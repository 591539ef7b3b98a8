"""Noise of each client on its own update, so that the server need not be believed: `[privacy] mode = "local-dp"`.

    v = clip(u, C) + z C xi          u: all float tensors that are sent, in unit scale, as one vector
    g = C 2^-30                      both are rounded to this grid: last bits of floats would tell of u

Behind it comes the codec, which costs nothing. What is hidden is the client's whole data set, from the server too: any
other could stand in its place, which moves the clipped update by up to 2 C, so a turn costs what one Gaussian of
multiplier z / 2 does. The noise on the server's mean of m updates is z C / sqrt(m). It is from the client's own key
(`Turn.private`), so a turn that is taken again has the same noise.
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from fedft.arithmetic.tensors import Tensors
from fedft.contract import Handle, Stage, Trained, Turn
from fedft.recipe import Recipe, as_it_is

UNIT = 2**30
"""The clip in steps of the grid."""
LEAST = 0.5
"""Noise multiplier below which a guarantee is not worth its name."""


@dataclass(frozen=True)
class SiteNoise:
    """The transform of uploads: clip and noise of the whole update."""

    integers: bool = False
    """Whether tensors of integers may be sent as they are, since they only say where the others belong."""
    keeps: bool = False
    stage: ClassVar[Stage] = "noise"

    def apply(self, trained: Trained, turn: Turn, handle: Handle) -> Trained:
        """The update with noise; a change that is not finite counts as none, as a refusal would tell of the rows.

        Raises RuntimeError in a turn without noise, ValueError where a tensor is of integers that may tell of rows.
        """
        if (private := turn.private) is None:
            raise RuntimeError("an update without noise: Turn.private is None")
        floats = {n: x for n, x in trained.delta.items() if x.is_floating_point()}
        if not self.integers and (others := sorted(trained.delta.keys() - floats.keys())):
            raise ValueError(f"{others[0]} is not of floats: nothing hides what it tells of the rows")
        found = on_grid(floats, private.clip)
        for name, total in found.items():
            xi = private.stream.gaussians("local", name, total.numel()).view(total.shape)
            total += torch.round(private.noise_multiplier * UNIT * xi).long()
        step = private.clip / UNIT
        return trained._replace(delta={**trained.delta, **{n: (s.double() * step).float() for n, s in found.items()}})


def on_grid(parts: Tensors, clip: float) -> dict[str, Tensor]:
    """int64 tensors: the parts as one vector, scaled down to the L2 norm `clip` if longer, in units of clip 2^-30.

    The sum of their squares is 2^60 at most, exactly. Zeros stay zeros, and parts that are not finite become zeros.
    """
    flat = [x.double().cpu() for x in parts.values()]
    largest = max((float(x.abs().max()) for x in flat if x.numel()), default=0.0)
    if not (largest and all(bool(x.isfinite().all()) for x in flat)):
        return {n: torch.zeros(x.shape, dtype=torch.int64) for n, x in parts.items()}
    whole = largest * math.sqrt(math.fsum(float((x / largest).square().sum()) for x in flat))
    bound = UNIT - math.sqrt(sum(x.numel() for x in flat)) / 2
    while True:
        factor = min(UNIT / clip, bound / whole)
        found = {n: torch.round(x * factor).long() for n, x in zip(parts, flat, strict=True)}
        if sum(int((s * s).sum()) for s in found.values()) <= UNIT**2:
            return found
        bound -= 1  # the last bits of `factor` were on the wrong side


def noisy(recipe: Recipe) -> Recipe:
    """The recipe whose clients add noise to what they send; `unfit` says which recipes that makes sense with."""
    return replace(recipe, uploads=(*recipe.uploads, SiteNoise(recipe.summand is not as_it_is)))
