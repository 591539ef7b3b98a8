"""Clip and noise: a client's change is scaled down to a norm and Gaussian noise is added before it leaves.

    delta := delta min(1, C / |delta|) + N(0, (z C)^2)

Noise comes from the operating system, never from the run's seed. No accounting: this is an example of a transform.
"""

import os
from dataclasses import dataclass
from typing import ClassVar

import torch

from fedft.arithmetic import tensors
from fedft.contract import Trained


@dataclass(frozen=True)
class ClipAndNoise:
    """Both, in one transform."""

    max_norm: float
    noise: float
    stage: ClassVar[str] = "clip"
    keeps: ClassVar[bool] = False

    def apply(self, trained, turn, handle):
        """The change, clipped and with noise."""
        norm = tensors.norm(trained.delta)
        rng = torch.Generator().manual_seed(int.from_bytes(os.urandom(8), "little") >> 1)
        scale = min(1.0, self.max_norm / norm) if norm else 1.0
        delta = {
            n: x * scale + self.noise * self.max_norm * torch.randn(x.shape, generator=rng)
            for n, x in trained.delta.items()
        }
        return Trained(delta, {**trained.metrics, "norm": norm}, trained.kept)


def clip_and_noise(*, max_norm: float = 1.0, noise: float = 0.0) -> ClipAndNoise:
    """Clip to `max_norm`, then add noise of standard deviation `noise` x `max_norm` to every entry."""
    return ClipAndNoise(max_norm, noise)
