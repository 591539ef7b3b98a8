"""Full fine-tuning."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fedft.contract import Layout
from fedft.update import TensorSpec


@dataclass(frozen=True)
class Full:
    """Every parameter of the base; values are changes since w0, so version 0 is all zeros."""

    trained: tuple[str, ...] = ("",)
    kind: Literal["full"] = "full"
    still: bool = False
    """Every step is a sum of shared directions: weights in half precision stay so, and stand still (`Handle.move`)."""

    def initial(self, layout: Layout, rank: int, seed: int) -> dict[str, Tensor]:
        """Zeros."""
        return {name: torch.zeros(shape) for name, shape in layout.parameters.items()}

    def spec(self, layout: Layout, rank: int) -> dict[str, TensorSpec]:
        """Every parameter."""
        return {name: TensorSpec(shape) for name, shape in layout.parameters.items()}
