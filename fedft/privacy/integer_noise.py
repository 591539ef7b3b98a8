"""Gaussian noise on a grid of integers, for sums of `fedft.privacy.clipping`: Z = round(z 2^30 xi)."""

from collections.abc import Mapping

import torch
from torch import Size, Tensor

from fedft.privacy.clipping import UNIT
from fedft.privacy.keyed_stream import Stream

PURPOSE = "central"


def noise(stream: Stream, shapes: Mapping[str, Size], multiplier: float, purpose: str = PURPOSE) -> dict[str, Tensor]:
    """int64 tensors of these shapes by name, of standard deviation `multiplier` times the clip, in units of the grid.

    `multiplier` is `fedft.privacy.tables.MOST_NOISE` at most.
    """
    drawn = {n: stream.gaussians(purpose, n, shape.numel()).reshape(shape) for n, shape in shapes.items()}
    return {n: torch.round(multiplier * UNIT * xi).long() for n, xi in drawn.items()}


def noisy(stream: Stream, purpose: str, value: float, deviation: float) -> float:
    """A number, which is a multiple of 2^-30, with noise of this standard deviation that is one, too."""
    xi = float(stream.gaussians(purpose, "", 1)[0])
    return value + round(deviation * UNIT * xi) / UNIT
