"""Full fine-tuning: every parameter of the base is trained; values are changes since w0, all zeros at version 0."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from fedft.contract import Kind, Layout, Mounted, Settings
from fedft.update import Shape


@dataclass(frozen=True)
class Full(Kind):
    """The kind (`fedft.contract.Kind`) whose trained tensors are the base's own parameters."""

    along_directions: bool = False
    """Promises that every step is a sum of shared directions. A model in half precision then stays so, see
    `Handle.weights_fixed`; without the promise the model is turned into float32."""
    name = "full"
    linear = True
    of_base = True

    def layout(self, layout: Layout) -> Layout:
        """The layout with its parameters alone: a head is among them, and no module gets an adapter."""
        return replace(layout, modules={}, head={}, experts=frozenset(), whole=frozenset())

    def trained(self, layout: Layout, shape: Shape) -> Mapping[str, tuple[int, ...]]:
        """Shapes of the parameters that learn, by canonical name."""
        return {n: s for n, s in layout.parameters.items() if shape.learns(n)}

    def draw(self, layout: Layout, shape: Shape, seed: int) -> dict[str, Tensor]:
        """Zeros, float32, for every parameter: no change since w0."""
        return {name: torch.zeros(size) for name, size in layout.parameters.items()}

    def mount(self, model: nn.Module, layout: Layout, shape: Shape, settings: Settings) -> Mounted:
        """The model's own parameters; nothing is put into it."""
        own = dict(model.named_parameters(remove_duplicate=False))
        return Mounted({name: own[name] for name in layout.parameters})
