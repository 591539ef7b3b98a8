"""Values of trained tensors as they travel, read from a resident model and written to it.

    tensor of an adapter      in unit scale: alpha / rank times what the layer holds, where the kind says so
    parameter of the base     its change since w0

All are float32 on the CPU. Those of an adapter come and go in one copy each way (`transfers`); parameters of the base,
which are large and may be tied or lie in a file, one by one where they are no small ones.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fedft.arithmetic import weight_changes
from fedft.arithmetic.lowrank import LowRank
from fedft.arithmetic.tensors import Tensors
from fedft.arithmetic.weight_changes import Change
from fedft.contract import Kind, Layout
from fedft.models import transfers
from fedft.models.mounted_adapters import MountedAdapters
from fedft.models.originals import Originals


class TrainedValues:
    """The values of a model's trained tensors, whichever adapter is live."""

    def __init__(
        self, kind: Kind, base: Mapping[str, nn.Parameter], originals: Originals, adapters: MountedAdapters
    ) -> None:
        """`base`: every parameter of the base by canonical name; `originals`: w0 of those that have been moved."""
        self._kind, self._base, self._originals, self._adapters = kind, base, originals, adapters

    def read(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copies of these trained tensors, in their order, as they travel: contiguous float32 on the CPU."""
        inside = {n: p.detach() for n, p in tensors.items() if n not in self._base}
        found = transfers.to_cpu(inside)
        by_scale: dict[float, list[Tensor]] = {}
        for n, x in found.items():
            by_scale.setdefault(self._adapters.live.scale(n), []).append(x)
        for scale, xs in by_scale.items():
            if scale != 1.0:
                torch._foreach_mul_(xs, scale)
        for n, p in tensors.items():
            if n in self._base:
                found[n] = self._originals.change(n, p).contiguous()
        return {n: found[n] for n in tensors}

    def write(self, values: Tensors) -> None:
        """Set tensors of the live adapter, and parameters of the base as change since w0; others stay as they are.

        Raises KeyError for a name that the model does not have.
        """
        mounted = {} if self._kind.of_base else self._adapters.live.parameters
        inside = {n: values[n] for n in values if n in mounted}
        scales = {n: self._adapters.live.scale(n) for n in inside}
        own = [x if scales[n] == 1.0 else x / scales[n] for n, x in inside.items()]
        with torch.no_grad():
            transfers.to_device(own, [mounted[n] for n in inside])
            for n in values:
                if n not in inside:
                    self._originals.move_to(n, self._base[n], values)

    def change(self, before: Mapping[str, Change], layout: Layout) -> dict[str, Change]:
        """The change [out, in] of each adapted weight since w0: that `before`, of base weights, and the live adapter's.

        Modules whose change is none, or no matrix, are left out.
        """
        found: dict[str, Change] = dict(before)
        unit = {} if self._kind.of_base else self.read(self._adapters.live.parameters)
        for m in layout.modules if unit else ():
            d = self._kind.change(m, unit)
            if d is None or (isinstance(d, LowRank) and not d.B.any()):
                continue
            found[m] = weight_changes.plus(found[m], d) if m in found else d
        return found
