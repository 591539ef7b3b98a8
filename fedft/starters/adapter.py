"""example: a vector that learns is added to what every adapted layer gives, y := W x + b + v.

Say here what the adapter computes, and which paper it is from.
"""

import torch
from torch import Tensor, nn

from fedft.contract import Kind, Layout, Mounted, Settings
from fedft.update import Shape


class Example(Kind):
    """One vector [out] per adapted layer, zeros at first."""

    name = "example"

    def trained(self, layout: Layout, shape: Shape) -> dict[str, tuple[int, ...]]:
        """`<module>.example`: [out]."""
        return {f"{m}.example": (o,) for m, (o, _) in layout.modules.items()}

    def draw(self, layout: Layout, shape: Shape, seed: int) -> dict[str, Tensor]:
        """Zeros: the base as it is."""
        return {name: torch.zeros(size) for name, size in self.trained(layout, shape).items()}

    def mount(self, model: nn.Module, layout: Layout, shape: Shape, settings: Settings) -> Mounted:
        """A parameter and a hook in every adapted layer."""
        switch, found = [True], dict[str, nn.Parameter]()
        for m, (o, _) in layout.modules.items():
            layer = model.get_submodule(m)
            weight = layer.get_parameter("weight")
            v = nn.Parameter(torch.zeros(o, device=weight.device))
            layer.register_parameter("example", v)

            def added(layer: nn.Module, x: tuple[Tensor, ...], y: Tensor, v: nn.Parameter = v) -> Tensor:
                return y + v.to(y.dtype) if switch[0] else y

            layer.register_forward_hook(added)
            found[f"{m}.example"] = v
        return Mounted(found, switch=lambda wanted: switch.__setitem__(0, wanted))
