"""Noise of each client on its own update, so that the server need not be believed: `[privacy] mode = "local-dp"`.

    v = clip(u, C) + z C xi          u: all float tensors that are sent, in unit scale, as one vector
    on the grid of `fedft.privacy.clipping`, since last bits of floats would tell of u

Behind it comes the codec, which costs nothing. What is hidden is the client's whole data set, from the server too: any
other could stand in its place, which moves the clipped update by up to 2 C, so a turn costs what one Gaussian of
multiplier z / 2 does. The noise on the server's mean of m updates is z C / sqrt(m). It is from the client's own key
(`Turn.private`), so a turn that is taken again has the same noise.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from fedft.arithmetic.tensors import Tensors
from fedft.contract import Handle, Stage, Trained, Turn
from fedft.privacy.clipping import off_grid, on_grid
from fedft.privacy.integer_noise import noise
from fedft.recipe import Recipe, as_it_is
from fedft.update import Plan

LEAST = 0.5
"""Noise multiplier below which a guarantee is not worth its name."""


@dataclass(frozen=True)
class SiteNoise:
    """The transform of uploads: clip and noise of the whole update."""

    integers: bool = False
    """Whether tensors of integers may be sent as they are, since they only say where the others belong."""
    stage: ClassVar[Stage] = "noise"
    keeps = False

    def apply(self, trained: Trained, turn: Turn, handle: Handle) -> Trained:
        """The update with noise; a change that is not finite counts as none, as a refusal would tell of the rows.

        Raises RuntimeError in a turn without noise, ValueError where a tensor is of integers that may tell of rows.
        """
        if (private := turn.private) is None:
            raise RuntimeError("an update without noise: Turn.private is None")
        floats = {n: x.cpu() for n, x in trained.delta.items() if x.is_floating_point()}
        if not self.integers and (others := sorted(trained.delta.keys() - floats.keys())):
            raise ValueError(f"{others[0]} is not of floats: nothing hides what it tells of the rows")
        if not all(bool(x.isfinite().all()) for x in floats.values()):
            floats = {n: torch.zeros_like(x) for n, x in floats.items()}
        found = on_grid(floats, private.clip)
        xi = noise(private.stream, {n: s.shape for n, s in found.items()}, private.noise_multiplier, "local")
        sent = off_grid({n: s + xi[n] for n, s in found.items()}, private.clip, 1)
        return trained._replace(delta={**trained.delta, **sent})


def noisy(recipe: Recipe) -> Recipe:
    """The recipe whose clients add noise to what they send; `unfit` says which recipes that makes sense with.

    A strategy's own bound on its numbers is one of honest steps, which noise exceeds: of floats beside places it is
    asked for no more. `[limits]` bounds them, as other strategies' changes.
    """
    numbers = recipe.summand is not as_it_is

    def admit(delta: Tensors, plan: Plan) -> None:
        recipe.admit({n: torch.zeros_like(x) if x.is_floating_point() else x for n, x in delta.items()}, plan)

    admitted = admit if numbers else recipe.admit
    return replace(recipe, uploads=(*recipe.uploads, SiteNoise(numbers)), admit=admitted)
