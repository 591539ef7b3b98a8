"""Full fine-tuning: every parameter of the base is trained; values are changes since w0, so version 0 is all zeros."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from fedft.contract import Kind, Layout, Mounted, Settings
from fedft.update import Shape


@dataclass(frozen=True)
class Full(Kind):
    """Every parameter of the base."""

    along_directions: bool = False
    """Every step is a sum of shared directions: a model in half precision stays so (`Handle.weights_fixed`)."""
    name = "full"
    linear = True
    of_base = True

    def layout(self, layout: Layout) -> Layout:
        """The parameters alone: a head is among them, and no module gets an adapter."""
        return replace(layout, modules={}, head={})

    def trained(self, layout: Layout, shape: Shape) -> Mapping[str, tuple[int, ...]]:
        """Shapes of all parameters, by name."""
        return layout.parameters

    def draw(self, layout: Layout, shape: Shape, seed: int) -> dict[str, Tensor]:
        """No change of any parameter."""
        return {name: torch.zeros(size) for name, size in layout.parameters.items()}

    def mount(self, model: nn.Module, layout: Layout, shape: Shape, settings: Settings) -> Mounted:
        """The parameters that are there."""
        own = dict(model.named_parameters(remove_duplicate=False))
        return Mounted({name: own[name] for name in layout.parameters})
