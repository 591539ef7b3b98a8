"""IA3: every adapted layer's output is scaled by a vector that learns, y := v * (W x + b).

Liu et al., "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning", NeurIPS 2022,
arXiv:2205.05638.
"""

import torch
from torch import nn

from fedft.contract import Kind, Mounted


class IA3(Kind):
    """One vector [out] per adapted layer, ones at first."""

    name = "ia3"

    def trained(self, layout, shape):
        """`<module>.ia3`: [out]."""
        return {m + ".ia3": (o,) for m, (o, _) in layout.modules.items()}

    def draw(self, layout, shape, seed):
        """Ones: the base as it is."""
        return {name: torch.ones(size) for name, size in self.trained(layout, shape).items()}

    def mount(self, model, layout, shape, settings):
        """A parameter and a hook in every adapted layer."""
        on, found = [True], {}
        for m, (o, _) in layout.modules.items():
            layer = model.get_submodule(m)
            layer.register_parameter("ia3", nn.Parameter(torch.ones(o, device=layer.weight.device)))
            layer.register_forward_hook(lambda layer, x, y: y * layer.ia3.to(y.dtype) if on[0] else y)
            found[m + ".ia3"] = layer.ia3
        return Mounted(found, switch=lambda wanted: on.__setitem__(0, wanted))
