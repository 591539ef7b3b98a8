"""Base weights that act as w0 + change: a promise about what modules compute, not about how weights are stored.

float weight     written: w0 + change, multiplied out and summed in float32 on the weight's device and rounded once; w0
                 is known as it was loaded (`Originals`); that of an expert is a part of a parameter
packed weight    left as it is (4 and 8 bits cannot be written exactly); its module gives  y + B (A x)  instead, or
                 y + D x where the change D comes multiplied out (no longer than its factors, which is when it does)
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fedft.arithmetic import lowrank
from fedft.arithmetic.lowrank import LowRank
from fedft.arithmetic.weight_changes import Change
from fedft.contract import Layout
from fedft.models import experts
from fedft.models.originals import Originals
from fedft.models.packed_linear import PackedLinear


class Beside:
    """The change that a module with a packed weight adds to its output."""

    def __init__(self) -> None:
        self.change: Change | None = None

    def add(self, module: nn.Module, given: tuple[Tensor, ...], y: Tensor) -> Tensor:
        """The module's output y [..., out] with the change's product with the x [..., in] that it was given added."""
        d, x = self.change, given[0]
        if d is None:
            return y
        if isinstance(d, Tensor):
            return y + (x.to(d.dtype) @ d.T).to(y.dtype)
        return y + ((x.to(d.A.dtype) @ d.A.T) @ d.B.T).to(y.dtype)


class BaseChange:
    """The change since w0 of a model's adapted modules, and how each module is made to act so."""

    def __init__(self, model: nn.Module, layout: Layout, originals: Originals) -> None:
        """Begin with no change; `originals` keeps the weights that are written, as `<module>.weight`."""
        self.change: dict[str, Change] = {}
        """By how much each adapted weight differs from w0; modules left out do not."""
        self._layout, self._originals = layout, originals
        self.key = ""
        """Of the last change that was set."""
        inside: dict[str, Any] = dict(experts.among(model, layout.experts))
        self._modules = inside | {m: model.get_submodule(m) for m in layout.modules if m not in inside}
        self._transposed = {
            m: module.transposed if m in inside else type(module).__name__ == "Conv1D"
            for m, module in self._modules.items()
        }
        # before anything is compiled: torch looks for hooks when it traces a layer, and never again
        self._beside = {m: Beside() for m in self._modules if self._packed(m)}
        for m, beside in self._beside.items():
            self._modules[m].register_forward_hook(beside.add)

    def set(self, change: Mapping[str, Change], key: str) -> None:
        """Make every adapted weight act as w0 + change, a module that is left out as w0.

        `key` identifies the change: the call returns at once if it equals the last call's.
        """
        if key == self.key:
            return
        with torch.no_grad():
            moved = {m: d for m, d in change.items() if not _is_zero(d)}
            for m in moved.keys() | self.change.keys():
                d = moved[m] if m in moved else lowrank.zero(*self._layout.modules[m])
                (self._add_to_output if m in self._beside else self._write)(m, d)
        self.change = moved
        self.key = key

    @contextmanager
    def undone(self) -> Iterator[None]:
        """Inside, every adapted weight acts as w0, bit for bit, and behind it as before.

        Weights of layers change places with w0, without a copy; the matrix of an expert, a part of a parameter, is
        copied.
        """
        beside = {b: b.change for b in self._beside.values()}
        written = {m: self._modules[m].weight for m in self.change if m not in self._beside}
        moved = {m: weight.clone() if m in self._layout.experts else weight.data for m, weight in written.items()}
        try:
            for b in beside:
                b.change = None
            for m, weight in written.items():
                self._put(m, weight, self._originals.original(m + ".weight", weight))
            yield
        finally:
            for b, change in beside.items():
                b.change = change
            for m, weight in written.items():
                self._put(m, weight, moved[m])

    def _put(self, m: str, weight: Tensor, values: Tensor) -> None:
        """Let the module's weight have these values."""
        if m in self._layout.experts:
            weight.copy_(values)
        else:
            weight.data = values

    def _packed(self, m: str) -> bool:
        """Whether the module's weight is no float matrix [out, in], or transpose of one, that could be written."""
        if isinstance(self._modules[m], PackedLinear):
            return True
        weight, (o, i) = self._modules[m].weight, self._layout.modules[m]
        return not weight.is_floating_point() or tuple(weight.shape) not in ((o, i), (i, o))

    def _write(self, m: str, d: Change) -> None:
        """Set the module's weight, in its own orientation, to w0 + change."""
        weight = self._modules[m].weight
        dense = _multiplied_out(_on(weight.device, d))
        self._originals.move(m + ".weight", weight, dense.T if self._transposed[m] else dense)

    def _add_to_output(self, m: str, d: Change) -> None:
        """Let the module add the change to its output from now on."""
        module = self._modules[m]
        weight: Tensor = module.packed[0] if isinstance(module, PackedLinear) else module.weight
        self._beside[m].change = None if _is_zero(d) else _on(weight.device, d)


def _is_zero(d: Change) -> bool:
    """Whether a change is none by its shape: factors of no rows."""
    return isinstance(d, LowRank) and not d.rank


def _on(device: torch.device, d: Change) -> Change:
    """The change on a device; factors move as factors."""
    return d.to(device) if isinstance(d, Tensor) else LowRank(d.A.to(device), d.B.to(device))


def _multiplied_out(d: Change) -> Tensor:
    """The change as a matrix [out, in], its factors multiplied in full float32 where the changes are."""
    if isinstance(d, Tensor):
        return d
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")  # a weight of 10-bit products would be another one on every device
    try:
        return d.dense()
    finally:
        torch.set_float32_matmul_precision(before)
