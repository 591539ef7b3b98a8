"""A model whose pruned rows and columns are cut away, so that its steps take less time and less memory.

Cut are the matrices, the biases of rows, the numbers by which a module knows its width, and of adapters B's rows or A's
columns. What a model computes is what it computes under masks, to rounding.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fedft.errors import ConfigError
from fedft.pruning.groups import Side
from fedft.pruning.kept import Kept


@contextmanager
def sliced(model: nn.Module, kept: Kept) -> Iterator[None]:
    """Inside, the model is cut to what is kept, adapters included; afterwards it is whole, bit for bit.

    Parameters stay the same objects and have smaller values inside, so an optimiser is made there. An adapter's kept
    entries are afterwards what they were made inside, its pruned ones what they were before. The whole weights stay in
    memory meanwhile (`slice_for_good` lets them go). A change of the base is to be set outside.

    Raises ConfigError for weights that are packed, which masks can switch off.
    """
    _check_floats(model, kept)
    undo = _Undo()
    try:
        _cut(model, kept, None, undo)
        yield
    finally:
        undo.all()


def slice_for_good(model: nn.Module, kept: Kept, before: Kept | None = None) -> None:
    """Cut the model to what is kept; the rest is gone. Errors as of `sliced`, ValueError where that is gone already.

    `before`: what the model has been cut to; None: nothing was cut yet.
    """
    if before is not None and not kept <= before:
        raise ValueError("some of what is to be kept has been cut away")
    _check_floats(model, kept)
    _cut(model, kept, before, None)


@torch.no_grad()
def put_to_zero(model: nn.Module, kept: Kept) -> None:
    """Put every weight, and bias of a row, that belongs to a pruned group to 0, in place: what masks compute.

    The model has no adapters.
    """
    for module, (part, _) in kept.groups.parts.items():
        layer: Any = model.get_submodule(module)
        lost = kept.lost(module).to(layer.weight.device)
        weight = layer.weight.T if type(layer).__name__ == "Conv1D" else layer.weight
        weight.masked_fill_(lost[:, None] if part.side == "rows" else lost, 0)
        if part.side == "rows" and layer.bias is not None:
            layer.bias.masked_fill_(lost, 0)


class _Undo:
    """What leads back from a cut model to the whole one."""

    def __init__(self) -> None:
        self._tensors = list[tuple[nn.Parameter, Tensor, int, Tensor, bool]]()
        self._numbers = list[tuple[Any, str, int]]()

    def tensor(self, p: nn.Parameter, axis: int, index: Tensor, learns: bool) -> None:
        """Keep the values of a parameter; of one that `learns` what it has at `index` in the end goes into them."""
        self._tensors.append((p, p.data, axis, index, learns))

    def number(self, owner: Any, name: str) -> None:
        """Keep an attribute."""
        self._numbers.append((owner, name, getattr(owner, name)))

    def all(self) -> None:
        """Put everything back."""
        for p, whole, axis, index, learns in reversed(self._tensors):
            if learns:
                whole.index_copy_(axis, index, p.data)
            p.data, p.grad = whole, None
        for owner, name, value in reversed(self._numbers):
            setattr(owner, name, value)


def _cut(model: nn.Module, kept: Kept, before: Kept | None, undo: _Undo | None) -> None:
    """Cut every layer of the groups, and the numbers that follow."""
    for module, (part, _) in kept.groups.parts.items():
        _cut_layer(model.get_submodule(module), part.side, kept.places(module, before), undo)
    for s, place in kept.groups.each():
        for count in s.counts:
            _set(
                model.get_submodule(count.module), count.attribute, int(kept.bits[place].sum()) * count.per_group, undo
            )


def _cut_layer(layer: Any, side: Side, index: Tensor, undo: _Undo | None) -> None:
    """Cut a linear layer and the adapters that peft has put around it."""
    base = getattr(layer, "base_layer", layer)
    transposed = type(base).__name__ == "Conv1D"
    axis = 0 if side == "rows" else 1
    _select(base.weight, 1 - axis if transposed else axis, index, undo)
    if side == "rows" and base.bias is not None:
        _select(base.bias, 0, index, undo)
    width = "out_features" if side == "rows" else "in_features"
    names = {"out_features": "nf", "in_features": "nx"} if transposed else {}
    _set(base, names.get(width, width), len(index), undo)
    if base is layer:
        return
    _set(layer, width, len(index), undo)
    for factor in (layer.lora_B if side == "rows" else layer.lora_A).values():
        _select(factor.weight, axis, index, undo, learns=True)
        _set(factor, width, len(index), undo)


def _select(p: nn.Parameter, axis: int, index: Tensor, undo: _Undo | None, *, learns: bool = False) -> None:
    """Let a parameter be what it has at the index along an axis."""
    index = index.to(p.device)
    if undo is not None:
        undo.tensor(p, axis, index, learns)
    p.data, p.grad = p.data.index_select(axis, index), None


def _set(owner: Any, name: str, value: int, undo: _Undo | None) -> None:
    """Let an attribute have a value."""
    if undo is not None:
        undo.number(owner, name)
    setattr(owner, name, value)


def _check_floats(model: nn.Module, kept: Kept) -> None:
    """Raise ConfigError where a weight is no float matrix: in 4 or 8 bits, rows share scales."""
    for module in kept.groups.parts:
        layer: Any = model.get_submodule(module)
        base = getattr(layer, "base_layer", layer)
        if (
            not isinstance(base.__dict__["_parameters"].get("weight"), nn.Parameter)
            or not base.weight.is_floating_point()
        ):
            raise ConfigError(
                f"[model] base_bits: the weight of {module} is packed, and only floats can be sliced; masks switch off "
                f"what is pruned of packed ones"
            )
