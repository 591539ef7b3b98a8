"""Slopes of single records along random directions, clipped, summed and with noise: one number for each direction.

    batch    every row with probability q                                     Poisson sampling; it may be empty
    g_i      (l_i(w + eps z) - l_i(w - eps z)) / (2 eps)                      slope of row i's own loss; z is public
    gt       (sum_{i in S} clip(g_i, C) + zeta C xi) / B                      B: the expected size
    then     the rule moves w along z by gt, as it does without noise         all that follows costs nothing

With several directions a step, or one slope for each layer, a row's slopes are one vector, clipped to C in L2, and each
entry of the sum has noise of its own: one release a step. A row with a slope that is not finite counts as 0, and no
step is left out. `scalar_clip` of a rule bounds gt, behind the noise.

Zhang et al., "DPZero: Private Fine-Tuning of Language Models without Backpropagation", ICML 2024, arXiv:2310.09639;
Tang et al., "Private Fine-tuning of Large Language Models with Zeroth-order Optimization", 2024, arXiv:2401.04343.
"""

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from fedft.contract import Batch, Handle, Private
from fedft.data.examples import IGNORED
from fedft.randomness.directions import Directions
from fedft.training.zeroth_rules import Walk


def estimate(
    handle: Handle, batch: Batch | None, how: Walk, z: Directions, draws: Sequence[int],
    parts: Sequence[Collection[str] | None], private: Private, step: int, batch_size: int,
) -> Tensor:  # fmt: skip
    """gt, one for each part and drawn direction: float64 [parts, draws].

    Args:
        handle: the model; not moved.
        batch: the rows of the step; None: there are none.
        how, z, draws: the rule's constants, and the numbers of the directions that are probed.
        parts: names of the tensors that are seen moved together, for each slope; None: all that are trained.
        private: C, zeta and the noise.
        step: the step's number, from 0.
        batch_size: the expected number of rows.
    """
    count = len(parts) * len(draws)
    noise = private.noise_of_step(str(step), count)
    total = torch.zeros(count, dtype=torch.float64)
    if batch is not None:
        total = clipped_sum(slopes(handle, batch, how, z, draws, parts), private.clip)
    return ((total + noise) / batch_size).view(len(parts), len(draws))


def clipped_sum(rows: Tensor, clip: float) -> Tensor:
    """sum_i g_i min(1, C / |g_i|) of slopes, float64 [rows, n]; a row that is not finite counts as 0."""
    size = rows.norm(dim=1)
    fine = torch.isfinite(size)
    factors = (clip / size[fine]).clamp(max=1.0)
    return factors @ rows[fine]


def slopes(
    handle: Handle, batch: Batch, how: Walk, z: Directions, draws: Sequence[int],
    parts: Sequence[Collection[str] | None],
) -> Tensor:  # fmt: skip
    """The slopes of every row, float64 [rows, parts x draws], part by part; arguments as of `estimate`."""
    here = _measured(handle, batch, how) if how.estimate == "one_sided" else None
    return torch.stack([_along(handle, batch, how, z, j, only, here) for only in parts for j in draws], dim=1)


def _along(
    handle: Handle, batch: Batch, how: Walk, z: Directions, j: int, only: Collection[str] | None, here: Tensor | None
) -> Tensor:
    """The slope of every row along z_j, float64 [rows]; `here`: what is minimised at w, of a one-sided estimate."""
    if how.estimate == "forward":
        return handle.directional_derivatives(batch, z, j, only=only)[0].double().cpu()
    with handle.perturbed(z, j, how.epsilon, only=only):
        above = _measured(handle, batch, how)
    if here is not None:
        return (above - here) / how.epsilon
    with handle.perturbed(z, j, -how.epsilon, only=only):
        return (above - _measured(handle, batch, how)) / (2 * how.epsilon)


def _measured(handle: Any, batch: Batch, how: Walk) -> Tensor:
    """What is minimised, of every row: its loss, or 1 - its accuracy; float64 [rows]."""
    if how.objective == "loss":
        with torch.no_grad():
            found: Tensor = handle.losses(batch).double().cpu()
        return found
    guess, wanted = handle.predictions(batch)
    learned = (wanted != IGNORED).reshape(len(wanted), -1)
    wrong = (guess != wanted).reshape(len(wanted), -1) & learned
    return wrong.sum(1).double() / learned.sum(1).clamp(min=1)
