"""What each group of a model is worth, by the gradients of a LoRA adapter alone (LoRAPrune's form).

    G = s (gB A + B gA - gB gA)              what one step would do to the product, s = alpha / rank
    I = (G * (W + s B A))^2                  importance of each weight [out, in]
    Ibar = beta Ibar + (1 - beta) I          over the steps
    group    the mean of Ibar over its weights, each module's Ibar divided by its mean over what is kept

gA and gB are gradients of the factors in the adapter's own scale, before they are clipped. Only sums over rows or over
columns are kept, and the matrices exist some rows at a time.

Zhang et al., "LoRAPrune: Structured Pruning Meets Low-Rank Parameter-Efficient Fine-Tuning", ACL Findings 2024,
arXiv:2305.18403; the form is from memory, the smoothing and the mean over groups are our definition.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fedft.arithmetic.named_pairs import A_SUFFIX, B_SUFFIX
from fedft.contract import Course, Learning, Turn
from fedft.models.packed_linear import PackedLinear
from fedft.pruning.groups import Groups, Side
from fedft.pruning.kept import Kept

BETA = 0.9
CHUNK = 1 << 18  # weights that are worked on at once
Rows = Callable[[int, int], Tensor]
"""(first, behind the last) -> rows of a weight [out, in], float."""


@torch.no_grad()
def importance_sums(
    rows: Rows, a: Tensor, b: Tensor, gradient_a: Tensor, gradient_b: Tensor, scale: float, side: Side
) -> Tensor:
    """The sum of I over each row of a weight [out, in], or over each column: float32 [out] or [in].

    Args:
        rows: gives rows of the weight W of the base.
        a, b: factors in the adapter's own scale, [rank, in] and [out, rank].
        gradient_a, gradient_b: their gradients, 0 for one that does not learn.
        scale: s.
        side: "rows" or "columns".
    """
    out, inputs = len(b), a.shape[1]
    left = torch.cat([scale * gradient_b, scale * b], 1)  # G = left @ right, of rank 2 r
    right = torch.cat([a - gradient_a, gradient_a])
    found = a.new_zeros(out if side == "rows" else inputs, dtype=torch.float32)
    step = max(1, CHUNK // inputs)
    for start in range(0, out, step):
        end = min(start + step, out)
        now = torch.addmm(rows(start, end).float(), b[start:end], a, alpha=scale)
        now.mul_(left[start:end] @ right).square_()
        if side == "rows":
            found[start:end] = now.sum(1)
        else:
            found += now.sum(0)
    return found


@dataclass
class Sums:
    """Ibar of a model's modules, summed over the side that is cut; it is updated in every step."""

    groups: Groups
    beta: float = BETA
    by_module: dict[str, Tensor] = field(default_factory=dict)
    """Float32 [rows or columns of the whole weight], on the device of the adapter."""

    def add(self, module: str, sums: Tensor) -> None:
        """One step's sums of I of a module, smoothed into the earlier ones."""
        before = self.by_module.get(module)
        self.by_module[module] = (1 - self.beta) * sums + (0 if before is None else self.beta * before)

    def scores(self, kept: Kept) -> Tensor:
        """The importance of every group, float64 [groups] on the CPU: 1 is a module's mean over what is kept.

        0 for a pruned one, and where no gradient has been. Groups count by their modules with adapters.
        """
        above, below = torch.zeros(2, self.groups.size, dtype=torch.float64)
        for module, sums in self.by_module.items():
            (part, place), x = self.groups.parts[module], sums.double().cpu().clone()
            x[kept.lost(module)] = 0
            if mean := float(x.sum()) / len(kept.places(module)):
                above[place] += part.sums(x) / mean
            below[place] += part.width * part.blocks
        return above / below.clamp(min=1)


@dataclass(frozen=True)
class Importance:
    """A term (`fedft.contract.Term`) that changes no gradient, and reads them all into `sums`."""

    model: nn.Module
    """With the adapter in it."""
    sums: Sums
    sliced: Kept | None = None
    """What the model's weights have been cut to; None: to nothing."""

    def begin(self, learning: Learning, turn: Turn) -> Course:
        """The term's part in one turn."""
        return _Reading(learning, self.model, self.sums, self.sliced)


class _Reading(Course):
    def __init__(self, learning: Learning, model: nn.Module, sums: Sums, sliced: Kept | None) -> None:
        self._learning, self._model, self._sums, self._sliced = learning, model, sums, sliced
        self._factors = {**learning.frozen, **learning.live}

    def step(self) -> None:
        """Add the importance by this step's gradients."""
        for module, (part, _) in self._sums.groups.parts.items():
            names = (module + A_SUFFIX, module + B_SUFFIX)
            if not self._factors.keys() >= {*names}:
                continue
            (a, ga), (b, gb) = (self._with_gradient(n) for n in names)
            layer: Any = self._model.get_submodule(module)
            rows, scale = rows_of(getattr(layer, "base_layer", layer)), self._learning.scale(names[1])
            found = importance_sums(rows, a, b, ga, gb, scale, part.side)
            if self._sliced is not None:
                whole = found.new_zeros(len(self._sliced.lost(module)))
                found = whole.index_copy_(0, self._sliced.places(module).to(found.device), found)
            self._sums.add(module, found)

    def _with_gradient(self, name: str) -> tuple[Tensor, Tensor]:
        x = self._factors[name]
        return x.detach(), torch.zeros_like(x) if x.grad is None else x.grad


def rows_of(layer: Any) -> Rows:
    """The function that gives rows of a layer's weight as [out, in]; of a packed one these alone are unpacked."""
    if isinstance(layer, PackedLinear):
        return layer.rows
    if type(layer).__name__ == "Conv1D":  # keeps it transposed
        return lambda start, end: layer.weight.detach()[:, start:end].T
    return lambda start, end: layer.weight.detach()[start:end]
