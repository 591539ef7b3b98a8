"""Base weights that act as w0 + change: a promise about what modules compute, not about how weights are stored.

float weight     written: w0 + change, summed in float32 and rounded once; w0 is kept in float32
packed weight    left as it is (4 and 8 bits cannot be written exactly); its module gives  y + B (A x)  instead
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fedft.arithmetic import lowrank
from fedft.arithmetic.lowrank import LowRank
from fedft.contract import Layout


class BaseChange:
    """The low-rank change that the adapted modules of one model stand at."""

    def __init__(self, model: nn.Module, layout: Layout, w0: dict[str, Tensor]) -> None:
        """Stand at no change; `w0` is filled with float32 originals of the weights that are written."""
        self.change: dict[str, LowRank] = {}
        """What modules differ from w0 by; those left out do not."""
        self._layout, self._w0, self._key = layout, w0, ""
        self._modules: dict[str, Any] = {m: model.get_submodule(m) for m in layout.modules}
        self._transposed = {m: type(module).__name__ == "Conv1D" for m, module in self._modules.items()}
        self._factors: dict[str, tuple[Tensor, Tensor]] = {}
        self._hooks: dict[str, Any] = {}

    def set(self, change: Mapping[str, LowRank], key: str) -> None:
        """Stand at w0 + change; nothing is done if `key` names the change that the model stands at already."""
        if key == self._key:
            return
        with torch.no_grad():
            for m in change.keys() | self.change.keys():
                if (m in change and change[m].rank) or m in self.change:
                    d = change.get(m) or lowrank.zero(*self._layout.modules[m])
                    (self._add_to_output if self._packed(m) else self._write)(m, d)
        self.change = {m: d for m, d in change.items() if d.rank}
        self._key = key

    def _packed(self, m: str) -> bool:
        """Whether the weight is not a float matrix [out, in] (or its transpose) that can be written."""
        weight, (o, i) = self._modules[m].weight, self._layout.modules[m]
        return not weight.is_floating_point() or tuple(weight.shape) not in ((o, i), (i, o))

    def _write(self, m: str, d: LowRank) -> None:
        weight, dense = self._modules[m].weight, d.dense()
        w0 = self._w0.setdefault(m + ".weight", weight.detach().float().clone())
        weight.copy_(w0 + (dense.T if self._transposed[m] else dense).to(w0.device))

    def _add_to_output(self, m: str, d: LowRank) -> None:
        device = self._modules[m].weight.device
        self._factors[m] = d.A.to(device), d.B.to(device)
        if m not in self._hooks:
            self._hooks[m] = self._modules[m].register_forward_hook(lambda _, x, y, m=m: self._added(m, x[0], y))

    def _added(self, m: str, x: Tensor, y: Tensor) -> Tensor:
        a, b = self._factors[m]
        return y + ((x.to(a.dtype) @ a.T) @ b.T).to(y.dtype) if len(a) else y
