"""Zeroth-order estimates: slopes of the loss along shared directions, from forward passes only.

    g = (L(w + eps z) - L(w - eps z)) / (2 eps)                                   two-sided; exact on a quadratic

The weights never move: `Handle.perturbed` lets forward passes see w + eps z, so a step of learning rate zero leaves
every bit where it was, in any dtype. Losses are compared in float64 on the same batch with dropout off.

Malladi et al., "Fine-Tuning Language Models with Just Forward Passes", NeurIPS 2023, arXiv:2305.17333.
"""

import torch

from fedft.directions import Directions
from fedft.recipe import Batch, Handle


def two_point(handle: Handle, batch: Batch, z: Directions, index: int, epsilon: float) -> tuple[float, float]:
    """(slope g along z_index, mean of the two losses) on one batch; either may be non-finite if a loss is."""
    with torch.no_grad():
        with handle.perturbed(z, index, epsilon):
            above = float(handle.loss(batch))
        with handle.perturbed(z, index, -epsilon):
            below = float(handle.loss(batch))
    return (above - below) / (2 * epsilon), (above + below) / 2


def step(handle: Handle, z: Directions, index: int, distance: float) -> None:
    """w += distance * z_index in place, on every trained parameter."""
    for name, parameter in handle.parameters().items():
        z.add_(parameter.data, name, index, distance)
