"""Which layers of a model get an adapter: what `[model] targets` means, what it cannot reach, and how much it covers.

"all-linear"             every linear layer of the body; refused where a model keeps experts in other tensors
"q_proj", "attn.q_proj"  layers whose name is that or ends in it at a dot
"re:.*layers\\.[0-3]\\..*"  layers whose whole name the regular expression matches: ranges of layers
"""

import logging
import re
from collections.abc import Collection
from dataclasses import dataclass
from math import prod

from torch import nn
from torch.nn.modules.conv import _ConvNd

from fedft.contract import Layout
from fedft.errors import DataError
from fedft.models import tasks
from fedft.models.load import Base
from fedft.models.parameters import parameters_of

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
    share: float
    """Share of the body's parameters that is in their weights, 0 to 1. The body is what is no table of embeddings,
    output or head."""

    def __str__(self) -> str:
        return f"{self.layers} layers, {self.share:.1%} of the body's parameters"


def coverage(base: Base, layout: Layout) -> Coverage:
    """How many layers the layout's modules are, and what share of the body's parameters their weights are.

    Shapes are the layout's: an adapter that is in the model by now changes nothing.
    """
    output = base.model.get_output_embeddings() if tasks.of(base.task).generates else None

    def inside(parameter: str) -> bool:
        owner = base.model.get_submodule(parameter.rpartition(".")[0])
        return not isinstance(owner, nn.Embedding) and owner is not output and parameter not in layout.head

    body = sum(prod(shape) for n, shape in layout.parameters.items() if inside(n))
    return Coverage(len(layout.modules), sum(map(prod, layout.modules.values())) / body if body else 0.0)


def chosen(base: Base, layers: Collection[str], targets: str | list[str]) -> list[str]:
    """The names of `layers`, linear ones of the body, that `targets` chooses, in their order.

    Layers on which peft puts no adapter are left out, which is warned of.

    Raises DataError for a target that chooses no layer; and for "all-linear" where experts are in tensors of their own.
    """
    wanted = [targets] if isinstance(targets, str) else targets
    kind = getattr(base.model.config, "model_type", "")
    endings = {n.split(".")[-1] for n in layers}
    closed = _closed(base.model, kind, endings)
    if "all-linear" in wanted:
        _check_experts(base, endings - closed)
    matched = {t: {n for n in layers if _matches(n, t)} for t in wanted}
    for t, found in matched.items():
        if not found:
            verb = "is matched by" if t.startswith(MARK) else "ends in"
            raise DataError(f"[model] targets: no layer {verb} {t!r}; this model has {', '.join(sorted(endings))}")
        if all(n.split(".")[-1] in closed for n in found):
            there = ", ".join(sorted(endings - closed))
            raise DataError(f"[model] targets: peft puts no adapter on {t!r} of a {kind} model; there are {there}")
    every = set().union(*matched.values())
    left = {n for n in every if n.split(".")[-1] in closed}
    if left:
        names = ", ".join(sorted({n.split(".")[-1] for n in left}))
        log.warning(
            "[model] targets: %d layers (%s) are left out: peft puts no adapter on them in a %s model",
            len(left), names, kind,
        )  # fmt: skip
    return [n for n in layers if n in every - left]


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
    """Raise DataError where the body has matrices that no linear layer holds: fused experts, [experts, out, in].

    `endings` of names of layers are what can be written instead.
    """
    if not (found := [n for n, p in parameters_of(base.model).items() if _is_fused(base.model, n, tuple(p.shape))]):
        return
    names = ", ".join(f'"{e}"' for e in sorted(endings))
    raise DataError(
        f"[model] targets: 'all-linear' does not reach the experts of this {base.model.config.model_type} model: "
        f"{found[0]} and {len(found) - 1} more hold many matrices in one tensor; to adapt the other layers, write "
        f"targets = [{names}]"
    )


def _is_fused(model: nn.Module, name: str, shape: tuple[int, ...]) -> bool:
    """Whether a parameter is a stack of matrices, or a matrix of experts, in a module that is no layer of torch's."""
    *path, _ = name.split(".")
    owner = model.get_submodule(".".join(path))
    if isinstance(owner, _ConvNd | nn.Linear | nn.Embedding) or type(owner).__name__ == "Conv1D":
        return False
    return sum(n > 1 for n in shape) > 2 or ("experts" in path and len(shape) > 1)
