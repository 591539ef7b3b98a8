"""A model with pruned groups switched off: what comes from them into the weight that narrows a structure is put to 0.

All else follows: rows that only feed pruned groups have gradients of exactly zero, and so have columns that only read
them. No weight is touched, since others in the process may share the base.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fedft.arithmetic.named_pairs import A_SUFFIX, B_SUFFIX
from fedft.pruning.kept import Kept


class Masks:
    """The hooks in a model that switch pruned groups off. They are put on layers as they are now, adapters included."""

    def __init__(self, model: nn.Module, kept: Kept, within: Kept | None = None) -> None:
        """Switch off in the model what is not kept. `within`: what its weights have been cut to; None: nothing was."""
        self._within = within
        layers = [model.get_submodule(s.inputs.module) for s in kept.groups.structures]
        self._masks = [_Mask(self) for _ in layers]
        self._hooks = [x.register_forward_pre_hook(mask) for x, mask in zip(layers, self._masks, strict=True)]
        self.set(kept)

    def set(self, kept: Kept) -> None:
        """Switch off what is not kept from now on, and nothing else."""
        self.kept = kept
        for mask, s in zip(self._masks, kept.groups.structures, strict=True):
            lost = kept.lost(s.inputs.module, self._within)
            mask.lost = lost if lost.any() else None

    def remove(self) -> None:
        """Take the hooks out: the model is whole again."""
        for hook in self._hooks:
            hook.remove()


class _Mask:
    """Puts the pruned features of a layer's input [..., in] to 0."""

    lost: Tensor | None = None

    def __init__(self, of: Masks) -> None:
        self.of = of

    def __call__(self, layer: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...] | None:
        x, *rest = given
        if self.lost is None:
            return None
        if self.lost.device != x.device:
            self.lost = self.lost.to(x.device)
        return (x.masked_fill(self.lost, 0), *rest)  # not a product: 0 times infinity is no 0


def kept_in(model: nn.Module) -> Kept | None:
    """What the masks in a model keep, the ones put there last; None where there are none."""
    hooks = (hook for module in model.modules() for hook in reversed(module._forward_pre_hooks.values()))
    return next((hook.of.kept for hook in hooks if isinstance(hook, _Mask)), None)


@contextmanager
def masked(model: nn.Module, kept: Kept, within: Kept | None = None) -> Iterator[Masks]:
    """Inside, what is not kept is switched off in the model; the masks may be set anew. Afterwards it is as before.

    `within`: what its weights have been cut to; None: nothing was.
    """
    masks = Masks(model, kept, within)
    try:
        yield masks
    finally:
        masks.remove()


@torch.no_grad()
def zero_pruned(adapter: Mapping[str, Tensor], kept: Kept, within: Kept | None = None) -> None:
    """Put the adapter's entries that belong to pruned groups to 0, in place: rows of B, or columns of A.

    Due at the moment of pruning, or a mask and a slice would give different updates; and behind the last step, since an
    optimiser's momentum goes on to move them.

    Args:
        adapter: factors by name, `<module>.lora_A` and `.lora_B`.
        kept: what is not pruned.
        within: what the factors have been cut to; None: nothing was.
    """
    for module, (part, _) in kept.groups.parts.items():
        name = module + (B_SUFFIX if part.side == "rows" else A_SUFFIX)
        if (x := adapter.get(name)) is not None:
            lost = kept.lost(module, within).to(x.device)
            x.masked_fill_(lost[:, None] if part.side == "rows" else lost, 0)
