"""Low-rank changes by module as the tensors of a PEFT folder, and back: layers, and experts of one parameter together.

    of a layer       <layer>.lora_A.weight [r, in], .lora_B.weight [out, r]
    of E experts     <their module>.lora_A.weight [E r, in], .lora_B.weight [out, r E]; row e r + k of A and column
                     k E + e of B are pair k of expert e (`peft.tuners.lora.layer.ParamWrapper`)

A module with several such parameters is wrapped once for each: the last one's wrapper is outermost, and each that is
further in has one more `base_layer` in its name.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fedft.arithmetic.lowrank import LowRank
from fedft.models import experts
from fedft.models.experts import Expert

INNER = "base_model.model."
"""What peft puts before a module's own name."""
Stacks = dict[str, dict[str, Expert]]
"""The experts that are adapted, by parameter and name."""


def stacked(pairs: Mapping[str, LowRank], stacks: Stacks) -> dict[str, LowRank]:
    """Each parameter's changes as one pair of peft's factors; ranks below the largest, and experts without a change,
    are filled up with zeros. Parameters without any change are left out.
    """
    found = {}
    for parameter, of in stacks.items():
        if not (here := {expert.index: pairs[m] for m, expert in of.items() if m in pairs}):
            continue
        one = next(iter(of.values()))
        (o, i), count, rank = one.out_in, one.count, max(d.rank for d in here.values())
        a, b = torch.zeros(count, rank, i), torch.zeros(o, rank, count)
        for e, d in here.items():
            a[e, : d.rank], b[:, : d.rank, e] = d.A, d.B
        found[parameter] = LowRank(a.reshape(count * rank, i), b.reshape(o, rank * count))
    return found


def unstacked(name: str, a: Tensor, b: Tensor, count: int) -> Iterator[tuple[str, LowRank]]:
    """(name, change) of each of the `count` experts of a parameter `name`, from peft's factors in unit scale."""
    a, b = a.reshape(count, -1, a.shape[1]), b.reshape(b.shape[0], -1, count)
    for e in range(count):
        yield f"{name.removesuffix('.weight')}.{e}", LowRank(a[e], b[:, :, e].contiguous())


def wrapper(model: nn.Module, parameter: str, stacks: Stacks) -> str:
    """What peft calls the wrapper of a parameter, if those of `stacks` are wrapped, as its tensors' names begin."""
    path, _, attribute = parameter.rpartition(".")
    order = [n for n, _ in model.get_submodule(path).named_parameters(recurse=False) if f"{path}.{n}" in stacks]
    return path + ".base_layer" * (len(order) - 1 - order.index(attribute))


def changes_of(model: nn.Module) -> dict[str, LowRank]:
    """The change of every layer and expert by the one LoRA that peft has put into a model: unit scale, float32, CPU.

    Raises ValueError for an embedding, and for a parameter [out, in] of a module that is neither a layer nor experts.
    """
    from peft.tuners.lora import LoraLayer
    from peft.tuners.lora.layer import ParamWrapper

    found: dict[str, LowRank] = {}
    layers: list[tuple[str, Any]] = [(n, m) for n, m in model.named_modules() if isinstance(m, LoraLayer)]
    for n, m in layers:
        if not m.lora_A:
            raise ValueError(f"{n.removeprefix(INNER)} is an embedding; wanted LoRA of linear layers")
        (adapter,) = m.lora_A
        a, b = (factor[adapter].weight.detach().float().cpu() for factor in (m.lora_A, m.lora_B))
        own, layer = n.removeprefix(INNER), LowRank(a, m.scaling[adapter] * b)
        if not isinstance(m, ParamWrapper):
            found[own] = layer
            continue
        own = f"{own.replace('.base_layer', '')}.{m.parameter_name}"
        if m.num_experts == 1:
            raise ValueError(f"{own} is the weight of no layer, and of no experts")
        found.update(unstacked(own, layer.A, layer.B, m.num_experts))
    return found


def stacks_of(model: nn.Module, names: Collection[str]) -> Stacks:
    """Those of the names that are experts of the model, by parameter."""
    return experts.by_parameter(experts.among(model, names))
