"""LoRA on experts that lie in one parameter: in a forward pass the parameter is seen with every expert's B A added.

    W_e + s_e B_e A_e        all experts of the parameter in one batched product, summed in float32 and rounded once

The parameter itself never moves, and keeps its name: the changed one stands before it while its owner runs. peft does
the same with one pair for all experts of a parameter (`peft.tuners.lora.layer.ParamWrapper`), which could not have a
rank for each; what is exported is peft's form.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedft.arithmetic.named_pairs import A_SUFFIX, B_SUFFIX
from fedft.models import experts
from fedft.models.experts import Expert
from fedft.update import Shape


class Pairs(nn.Module):
    """The factors of the adapted experts of one parameter, float32; called with the parameter it gives the sum."""

    def __init__(self, of: Mapping[str, Expert], shape: Shape, scale: Callable[[str], float]) -> None:
        """Factors of zeros for each of the experts, all of one parameter; `scale`(module) is alpha / rank."""
        super().__init__()
        one = next(iter(of.values()))
        self._count, self._transposed = one.count, one.transposed
        self._indices = {expert.index: m for m, expert in of.items()}
        self._rank = max(shape.of(m) for m in of)
        self._scales = {expert.index: scale(m) for m, expert in of.items()}
        self.on = True
        """Whether the owner computes with the sum."""
        self.hooks: list[Any] = []
        """On the owner, by which it does."""
        self.factors: dict[str, nn.Parameter] = {}
        """By canonical name, `<module>.lora_A` [rank, in] and `.lora_B` [out, rank]."""
        for m, expert in of.items():
            (o, i), r = expert.out_in, shape.of(m)
            for suffix, size in ((A_SUFFIX, (r, i)), (B_SUFFIX, (o, r))):
                values = torch.zeros(size, device=expert.weight.device)
                self.factors[m + suffix] = nn.Parameter(values)
                # its own, not a list's: what perturbs parameters does so while the module that owns them runs
                self.register_parameter(f"{suffix.strip('.')}_{expert.index}", self.factors[m + suffix])

    def forward(self, weight: Tensor) -> Tensor:
        """The parameter [experts, ., .] with the scaled products added, in its dtype."""
        a = torch.stack([self._padded("lora_A", e, weight) for e in range(self._count)])
        b = torch.stack([self._padded("lora_B", e, weight) for e in range(self._count)])
        first, second = (a.mT, b.mT) if self._transposed else (b, a)
        return torch.baddbmm(weight.float(), first, second).to(weight.dtype)

    def _padded(self, factor: str, e: int, weight: Tensor) -> Tensor:
        """A factor of the expert `e` filled up with zeros to the largest rank, B scaled; zeros of one not adapted."""
        of_a = factor == "lora_A"
        if e not in self._indices:
            size = weight.shape[1 if of_a == self._transposed else 2]
            return torch.zeros((self._rank, size) if of_a else (size, self._rank), device=weight.device)
        x = getattr(self, f"{factor}_{e}")
        more = self._rank - x.shape[0 if of_a else 1]
        x = functional.pad(x, (0, 0, 0, more) if of_a else (0, more)) if more else x
        return x if of_a else x * self._scales[e]


class MountedExperts:
    """The pairs of all adapted experts of a model in one shape, put in and switched on."""

    def __init__(self, model: nn.Module, names: Collection[str], shape: Shape, scale: Callable[[str], float]) -> None:
        """Put pairs into the model for those of `names` that are experts; see `Pairs` for the rest."""
        self.factors: dict[str, nn.Parameter] = {}
        """As in `Pairs`, of all parameters."""
        self._mounted: list[tuple[Pairs, nn.Module, str]] = []
        for of in experts.by_parameter(experts.among(model, names)).values():
            one = next(iter(of.values()))
            name = f"{one.attribute}_{shape.key}"
            pairs = getattr(one.owner, name, None) or Pairs(of, shape, scale)  # of another handle on this model
            self._mounted.append((pairs, one.owner, name))
            self.factors |= pairs.factors
        for pairs, owner, name in self._mounted:  # nothing is in the model before all are made
            if name not in owner._modules:
                owner.add_module(name, pairs)
                _show(pairs, owner, name.removesuffix(f"_{shape.key}"), name)

    def switch(self, on: bool) -> None:
        """Turn the change on or off."""
        for pairs, _, _ in self._mounted:
            pairs.on = on

    def remove(self) -> None:
        """Take the pairs out of the model for good."""
        for pairs, owner, name in self._mounted:
            for hook in pairs.hooks:
                hook.remove()
            delattr(owner, name)


def _show(pairs: Pairs, owner: nn.Module, attribute: str, name: str) -> None:
    """From now on let `owner`, while it runs, see in the place of its parameter what the pairs in it make of it.

    Hooks look for the pairs, called `name`, in the module that runs, which may be a copy of `owner`.
    """

    def show(module: nn.Module, *_: Any) -> None:
        inside: Any = module._modules[name]
        if inside.on:  # an attribute of the instance is found before its parameters
            module.__dict__[attribute] = inside(module._parameters[attribute])

    def hide(module: nn.Module, *_: Any) -> None:
        module.__dict__.pop(attribute, None)

    pairs.hooks += [owner.register_forward_pre_hook(show), owner.register_forward_hook(hide, always_call=True)]
