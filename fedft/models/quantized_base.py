"""A base model whose frozen weights are kept in 4 or 8 bits (`[model] base_bits`).

Packed are the linear layers of the body, torch's own and GPT-2's Conv1D. The rest stays as it was loaded: embeddings,
norms, the output, what is trained whole, experts that lie in one parameter, and a model's own kinds of linear layers,
whose code may read the weight itself.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from fedft.models import tasks
from fedft.models.base_repair import repair
from fedft.models.load import Base
from fedft.models.packed_linear import FORMS, Bits, PackedLinear
from fedft.models.parameters import shared_names
from fedft.models.whole_modules import inside, whole_modules

log = logging.getLogger(__name__)


def packed(
    base: Base,
    bits: Bits,
    modules_to_save: Sequence[str] = (),
    repair_rank: int = 0,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> Base:
    """The base with its linear layers in so many bits, changed in place, one layer at a time.

    Each matrix is freed before the next one is packed, on the device it goes to. The digest stays that of the weights
    as they were. What goes beside packed weights is in `base.merged`, and stands there after `below_adapters`.

    Args:
        base: as loaded, with what adapters of it have changed merged in; nothing is mounted on it.
        bits: 4 or 8.
        modules_to_save: endings of modules that are trained whole, see `whole_modules`: they stay as they are.
        repair_rank: of the pair beside each packed weight, see `base_repair`; 0: none.
        device, dtype: of the base from then on; None: as they were.
    Raises:
        DataError: as `whole_modules` does.
    """
    every = sum(p.numel() for p in base.model.parameters())
    weights, repairs = 0, {}
    for names in packable(base, modules_to_save):
        layer: Any = base.model.get_submodule(names[0])
        weight = _out_in(layer).detach().to(device)
        small = PackedLinear(weight.contiguous(), layer.bias, bits, dtype).train(layer.training)
        if repair_rank:
            repairs[names[0]] = repair(weight.float() - small.weight.float(), repair_rank, names[0])
        for n in names:
            base.model.set_submodule(n, small)
        weights += weight.numel()
    log.info("[model] base_bits = %d: %.1f%% of the base's weights are packed", bits, 100 * weights / every)
    base.model.to(device)
    for p in base.model.parameters() if dtype is not None else ():
        p.data = p.data.to(dtype)
    return replace(base, bits=bits, merged={**base.merged, **repairs})


def below_adapters(base: Base, bits: Bits, repair_rank: int = 0) -> Base:
    """The base, packed before adapters came to it, with the changes of `base.merged` beside its packed weights.

    peft has merged those of adapters into the others.
    """
    for n, layer in base.model.named_modules():
        if isinstance(layer, PackedLinear) and n in base.merged:
            layer.stand_beside(base.merged[n])
    return replace(base, bits=bits, repair_rank=repair_rank)


def rounded(base: Base, bits: Bits, modules_to_save: Sequence[str] = (), repair_rank: int = 0) -> Base:
    """The base with the weights that `packed` ones stand for, as floats, changed in place; arguments as there."""
    form = FORMS[bits]
    for name, *_ in packable(base, modules_to_save):
        layer: Any = base.model.get_submodule(name)
        weight = _out_in(layer).detach()
        kept = form.unpack(form.pack(weight), weight.numel()).view(weight.shape)
        if repair_rank:
            kept += repair(weight.float() - kept, repair_rank, name).dense().to(kept.device)
        weight.copy_(kept)
    return replace(base, bits=bits)


def packable(base: Base, modules_to_save: Sequence[str] = ()) -> list[list[str]]:
    """All names of each layer that is packed; a layer that shares its weight with another one is not."""
    model = base.model
    left = whole_modules(base, modules_to_save)
    output = model.get_output_embeddings() if tasks.of(base.task).generates else None
    shared = {n.rpartition(".")[0] for of in shared_names(model) for n in of}
    found: dict[int, list[str]] = {}
    for n, m in model.named_modules(remove_duplicate=False):
        if m is not output and _is_plain(m) and not inside(n, left):
            found.setdefault(id(m), []).append(n)
    return [names for names in found.values() if len(names) > 1 or names[0] not in shared]


def _is_plain(module: nn.Module) -> bool:
    """Whether a module is a linear layer that nobody looks into: of a class of its own, it may be more than that."""
    return type(module) is nn.Linear or type(module).__name__ == "Conv1D"


def _out_in(layer: Any) -> torch.Tensor:
    """The layer's weight as [out, in]: of a Conv1D a view of what it keeps."""
    weight: torch.Tensor = layer.weight
    return weight if isinstance(layer, nn.Linear) else weight.T
