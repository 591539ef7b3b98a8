"""Which layers of a model get an adapter: what `[model] targets` means, what it cannot reach, and how much it covers.

"all-linear"             every linear layer of the body and every expert's matrix, see `experts`; refused where a model
                         keeps experts in another form
"q_proj", "attn.q_proj"  layers whose name is that or ends in it at a dot; the matrices of all experts of "gate_up_proj"
"re:.*layers\\.[0-3]\\..*"  layers whose whole name the regular expression matches: ranges of layers
"""

import logging
import re
from collections.abc import Collection
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from fedft.contract import Layout
from fedft.errors import DataError
from fedft.models import layer_numbers, tasks
from fedft.models.experts import unreached
from fedft.models.load import Base

log = logging.getLogger(__name__)

MARK = "re:"
"""Of a regular expression among targets."""
# peft.tuners.tuners_utils._check_lora_target_modules_mamba: fast kernels read this weight past the layer's forward
BYPASSED = "out_proj"
BYPASSING = frozenset({"falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h"})


@dataclass(frozen=True)
class Coverage:
    """How much of a model's body gets adapters."""

    layers: int
    """Layers with an adapter."""
    experts: int
    """Matrices of experts that have one."""
    share: float
    """Share of the body's parameters that is in their weights, 0 to 1. The body is what is no table of embeddings,
    output or head."""

    def __str__(self) -> str:
        experts = f" and {self.experts} matrices of experts" if self.experts else ""
        return f"{self.layers} layers{experts}, {self.share:.1%} of the body's parameters"


def coverage(base: Base, layout: Layout) -> Coverage:
    """How many layers and experts the layout's modules are, and what share of the body's parameters their weights are.

    Shapes are the layout's: an adapter that is in the model by now changes nothing.
    """
    output = base.model.get_output_embeddings() if tasks.of(base.task).generates else None

    def inside(parameter: str) -> bool:
        owner = base.model.get_submodule(parameter.rpartition(".")[0])
        return not isinstance(owner, nn.Embedding) and owner is not output and parameter not in layout.head

    body = sum(prod(shape) for n, shape in layout.parameters.items() if inside(n))
    experts = len(layout.experts)
    return Coverage(
        len(layout.modules) - experts, experts, sum(map(prod, layout.modules.values())) / body if body else 0.0
    )


def chosen(
    base: Base,
    layers: Collection[str],
    experts: Collection[str],
    targets: str | list[str],
    numbers: str | None = None,
) -> list[str]:
    """Those of the names of `layers`, linear ones of the body, and of `experts` that `targets` chooses, in their order.

    Layers on which peft puts no adapter are left out, which is warned of. `numbers`, as "0-3, 8", leaves only what is
    in the model's layers of these numbers.

    Raises DataError for a target that chooses nothing; for "all-linear" where experts are in a form that no adapter
    reaches; and for numbers of layers that there are not.
    """
    wanted = [targets] if isinstance(targets, str) else targets
    kind = getattr(base.model.config, "model_type", "")
    closed = _closed(base.model, kind, {_ending(n, ()) for n in layers})
    shut = {n for n in layers if _ending(n, ()) in closed or _gives_more(base.model.get_submodule(n))}
    names = layer_numbers.kept([*layers, *experts], base.model, numbers)
    endings = {_ending(n, experts) for n in names if n not in shut}
    if "all-linear" in wanted:
        _check_experts(base, endings)
    matched = {t: {n for n in names if _matches(n, t) or (n in experts and _matches(_stack(n), t))} for t in wanted}
    for t, found in matched.items():
        if not found:
            raise _unknown(base, t, {_ending(n, experts) for n in names}, numbers)
        if found <= shut:
            there = ", ".join(sorted(endings))
            raise DataError(f"[model] targets: peft puts no adapter on {t!r} of a {kind} model; there are {there}")
    every = set().union(*matched.values())
    if left := every & shut:
        log.warning(
            "[model] targets: %d layers (%s) are left out: peft puts no adapter on them in a %s model",
            len(left), ", ".join(sorted({_ending(n, ()) for n in left})), kind,
        )  # fmt: skip
    return [n for n in names if n in every - left]


def _unknown(base: Base, target: str, endings: Collection[str], numbers: str | None) -> DataError:
    """The error that a target chooses nothing: of modules that can be trained whole it says so."""
    where = "" if numbers is None else f" in layers {numbers}"
    if target == "all-linear":
        return DataError(f"[model] targets: {target!r} finds no linear layer{where} beside what is trained whole")
    output = base.model.get_output_embeddings() if tasks.of(base.task).generates else None
    every = [(n, m) for n, m in base.model.named_modules(remove_duplicate=False) if m._parameters]
    if whole := [n for n, m in every if _matches(n, target) and (m is output or not isinstance(m, nn.Linear))]:
        return DataError(
            f"[model] targets: {target!r}: {whole[0]} is no linear layer of the body; to train it whole, write "
            f'modules_to_save = ["{whole[0]}"]'
        )
    verb = "is matched by" if target.startswith(MARK) else "ends in"
    return DataError(
        f"[model] targets: no layer{where} {verb} {target!r}; this model has {', '.join(sorted(endings))}{where}"
    )


def _gives_more(layer: Any) -> bool:
    """Whether a model's own kind of linear layer gives something else than its product: routers of experts, layers in
    groups. peft adds B A x to what a layer gives.
    """
    kind = type(layer)
    if not kind.__module__.startswith("transformers.models.") or kind.forward is nn.Linear.forward:
        return False
    weight = layer.weight
    try:
        with torch.no_grad():
            y = layer(torch.zeros(1, weight.shape[1], dtype=weight.dtype, device=weight.device))
    except Exception:  # it wants another input
        return True
    return not isinstance(y, Tensor) or y.shape != (1, weight.shape[0])


def _stack(expert: str) -> str:
    """What holds an expert's matrix and those of the others, by name."""
    return expert.rpartition(".")[0]


def _ending(name: str, experts: Collection[str]) -> str:
    """The last part of a layer's name; of an expert's, that of what holds it: its own is a number."""
    return (_stack(name) if name in experts else name).split(".")[-1]


def _closed(model: nn.Module, kind: str, endings: Collection[str]) -> set[str]:
    """Those of the endings of names on which peft puts no adapter in models of this kind.

    Mamba's output, and layers that are called as experts once were: peft then adapts the experts' tensors instead.
    """
    closed = {BYPASSED} & set(endings) if kind in BYPASSING else set()
    try:
        from peft import LoraConfig
        from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
    except ImportError:  # a peft that does not do so yet
        return closed
    for ending in endings:
        config = LoraConfig(target_modules=[ending])
        try:
            convert_peft_config_for_transformers(config, model, None)
        except ValueError:  # a part of what were the experts' names
            closed.add(ending)
        else:
            closed |= {ending} - set(config.target_modules or ())
    return closed


def _matches(name: str, target: str) -> bool:
    """Whether a target chooses the layer of this name."""
    if target == "all-linear":
        return True
    if target.startswith(MARK):
        return re.fullmatch(target.removeprefix(MARK), name) is not None
    return f".{name}".endswith(f".{target}")


def _check_experts(base: Base, endings: Collection[str]) -> None:
    """Raise DataError where the body has matrices that are neither a linear layer's nor one expert's.

    `endings` of names of layers and experts are what can be written instead.
    """
    if not (found := unreached(base.model)):
        return
    names = ", ".join(f'"{e}"' for e in sorted(endings))
    raise DataError(
        f"[model] targets: 'all-linear' does not reach the experts of this {base.model.config.model_type} model: "
        f"{found[0]} and {len(found) - 1} more hold many matrices in one tensor; to adapt the other layers, write "
        f"targets = [{names}]"
    )
