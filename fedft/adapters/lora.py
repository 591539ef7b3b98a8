"""LoRA: low-rank adapters on chosen linear modules, change of a weight [out, in] = (alpha / rank) B A.

Layers are peft's own (`peft.tuners.lora`), one adapter per shape; experts that are no layers have their own pairs
(`lora_experts`). Pairs travel in unit scale: the B that is sent is
alpha / rank times the B in the layer, so that the change is B A.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022, arXiv:2106.09685.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fedft.adapters.lora_batched import adapted
from fedft.adapters.lora_experts import MountedExperts
from fedft.arithmetic.lowrank import LowRank
from fedft.arithmetic.named_pairs import A_SUFFIX, B_SUFFIX
from fedft.arithmetic.tensors import Tensors
from fedft.contract import Kind, Layout, Mounted, Settings
from fedft.randomness import philox
from fedft.update import Shape


@dataclass(frozen=True)
class LoRA(Kind):
    """The kind (`fedft.contract.Kind`) with factors `<module>.lora_A` [rank, in] and `.lora_B` [out, rank], float32."""

    learns: tuple[str, ...] = (A_SUFFIX, B_SUFFIX)
    """Endings of the factors that learn and travel. A frozen one is drawn from the run's seed on every machine."""
    name = "lora"
    rank_free = False
    pairs = True
    experts = True

    @property
    def linear(self) -> bool:  # type: ignore[override]
        """True where one factor is frozen, and so the same on every client."""
        return len(self.learns) == 1

    def trained(self, layout: Layout, shape: Shape) -> Mapping[str, tuple[int, ...]]:
        """Shapes of the factors that learn, by name."""
        learn = {m: s for m, s in layout.modules.items() if shape.of(m) and shape.learns(m)}
        factors = {m + A_SUFFIX: (shape.of(m), i) for m, (_, i) in learn.items()}
        factors |= {m + B_SUFFIX: (o, shape.of(m)) for m, (o, _) in learn.items()}
        return {n: s for n, s in factors.items() if n.endswith(self.learns)}

    def draw(self, layout: Layout, shape: Shape, seed: int) -> dict[str, Tensor]:
        """Values at version 0 of the factors that learn: A uniform in +-1/sqrt(in) (peft's Kaiming bound), B zero.

        Every element of A is one word of the Philox stream of the run's seed and the factor's name.
        """
        return _factors(layout, shape, seed, self.learns)

    def frozen(self, layout: Layout, shape: Shape, seed: int) -> dict[str, Tensor]:
        """Values of the factors that do not learn, from the same draw; they are never sent."""
        return _factors(layout, shape, seed, tuple(s for s in (A_SUFFIX, B_SUFFIX) if s not in self.learns))

    def shape_of(self, values: Tensors) -> Shape | None:
        """The rank that most modules have, and those of the others, read off either factor; None without factors."""
        ranks = {n.removesuffix(A_SUFFIX): x.shape[0] for n, x in values.items() if n.endswith(A_SUFFIX)}
        for n, x in values.items():
            if n.endswith(B_SUFFIX):
                ranks.setdefault(n.removesuffix(B_SUFFIX), x.shape[1])
        if not ranks:
            return None
        usual = max(ranks.values(), key=list(ranks.values()).count)
        return Shape(usual, {m: r for m, r in ranks.items() if r != usual})

    def change(self, module: str, values: Tensors) -> LowRank | None:
        """The change of the module's weight, B A, as its factors in unit scale."""
        return LowRank(values[module + A_SUFFIX], values[module + B_SUFFIX])

    def several(self, model: nn.Module, layout: Layout) -> Callable[..., Mapping[nn.Module, Any]] | None:
        """(tensors, scales) -> the forward of each adapted layer for several clients, see `lora_batched`; None where
        experts are adapted.
        """
        if layout.experts:
            return None
        layers: dict[str, Any] = {m: model.get_submodule(m) for m in layout.modules}  # of rank 0 ones: as they are

        def forwards(leaves: Tensors, scales: Tensors) -> dict[nn.Module, Any]:
            return {
                layer: partial(
                    adapted, layer.base_layer, leaves[m + A_SUFFIX], leaves[m + B_SUFFIX], scales[m + B_SUFFIX]
                )
                for m, layer in layers.items()
                if m + A_SUFFIX in leaves
            }

        return forwards

    def mount(self, model: nn.Module, layout: Layout, shape: Shape, settings: Settings) -> Mounted:
        """Put a peft adapter, under the shape's own name, into the model; factors are float32 for any base.

        Where peft fails half way, the model is left as it was, and the error goes on.
        """
        name = shape.key
        there = {m: s for m, s in layout.modules.items() if shape.of(m)}
        linear = replace(layout, modules={m: s for m, s in there.items() if m not in layout.experts})

        def per_value(module: str) -> float:
            return 2.0 if settings.alpha is None else settings.alpha / shape.of(module)

        with _undone_if_it_fails(model, linear, name):
            if linear.modules and name not in getattr(model.get_submodule(next(iter(linear.modules))), "lora_A", {}):
                _inject(model, linear, shape, settings, name)
            experts = MountedExperts(model, layout.experts & there.keys(), shape, per_value)
        layers: dict[str, Any] = {m: model.get_submodule(m) for m in linear.modules}
        found = {}
        for m, layer in layers.items():
            found[m + A_SUFFIX], found[m + B_SUFFIX] = layer.lora_A[name].weight, layer.lora_B[name].weight
        for parameter in found.values():
            parameter.data = parameter.data.float()  # small steps must not be lost
        found |= experts.factors

        def switch(on: bool) -> None:
            experts.switch(on)
            for layer in layers.values():
                if on:
                    layer.set_adapter(name)
                layer.enable_adapters(on)

        def scale(tensor: str) -> float:
            return per_value(tensor.removesuffix(B_SUFFIX)) if tensor.endswith(B_SUFFIX) else 1.0

        def remove() -> None:
            experts.remove()
            for layer in layers.values():
                layer.delete_adapter(name)

        return Mounted(found, switch, scale, remove)


def _factors(layout: Layout, shape: Shape, seed: int, suffixes: tuple[str, ...]) -> dict[str, Tensor]:
    """Values at version 0 of the factors with these endings."""
    found = {}
    for m, (o, i) in layout.modules.items():
        if not shape.of(m):
            continue
        if A_SUFFIX in suffixes:
            u = philox.uniform(seed, philox.LORA_INIT, m + A_SUFFIX, (shape.of(m), i))
            found[m + A_SUFFIX] = (2 * u - 1) / i**0.5
        if B_SUFFIX in suffixes:
            found[m + B_SUFFIX] = torch.zeros(o, shape.of(m))
    return found


@contextmanager
def _undone_if_it_fails(model: nn.Module, layout: Layout, name: str) -> Iterator[None]:
    """Inside, the adapter called `name` is put in; an error takes it out of the layers that have it, and goes on.

    A model that is left half adapted would look adapted to the next one who asks.
    """
    before: dict[str, Any] = {m: model.get_submodule(m) for m in layout.modules}
    had = {m for m, layer in before.items() if name in getattr(layer, "lora_A", {})}
    asking = [(p, p.requires_grad) for p in model.parameters()]
    configs: Any = dict(getattr(model, "peft_config", {}))
    try:
        yield
    except BaseException:
        for m, layer in before.items():
            if model.get_submodule(m) is not layer:
                model.set_submodule(m, layer)
            elif m not in had and name in getattr(layer, "lora_A", {}):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # that another adapter is the active one now
                    before[m].delete_adapter(name)
        if configs:
            model.peft_config = configs
        elif hasattr(model, "peft_config"):
            delattr(model, "peft_config")
        for p, asks in asking:
            p.requires_grad = asks
        raise


def _inject(model: nn.Module, layout: Layout, shape: Shape, settings: Settings, name: str) -> None:
    """Put peft's layers around the modules, in the model's mode; their values are overwritten by `Handle.write`."""
    from peft import LoraConfig, inject_adapter_in_model

    def alpha(rank: int) -> float:
        return 2 * rank if settings.alpha is None else settings.alpha

    ranks = {m: r for m, r in shape.ranks.items() if m in layout.modules}  # peft warns of others
    transposed = [type(model.get_submodule(m)).__name__ == "Conv1D" for m in layout.modules]
    config = LoraConfig(
        r=shape.rank,
        lora_alpha=alpha(shape.rank),  # type: ignore[arg-type]
        rank_pattern=ranks,
        alpha_pattern={m: alpha(r) for m, r in ranks.items()},
        lora_dropout=settings.dropout,
        target_modules=list(layout.modules),
        fan_in_fan_out=any(transposed),
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # peft draws initial values, which are overwritten, and warns of a second adapter, which we want
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")
        # where Conv1D and Linear are mixed: peft corrects it for each layer
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to True")
        inject_adapter_in_model(config, model, name)
    model.train(model.training)  # the new layers too
