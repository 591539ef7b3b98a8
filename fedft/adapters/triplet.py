"""Triplets on linear modules, change of a weight [out, in] = P diag(lam) Q: what AdaLoRA scores, without its allocator.

    y := W x + P (lam * (Q x))          P [out, rank], lam [rank], Q [rank, in]; lam = 0 at version 0

Columns of P and rows of Q begin with a length of about one, so that a triplet's lam is of the size of a singular value.
A triplet's scale is 1 at every rank, and it has no dropout: it is there to be measured. peft's `SVDLinear` has the same
parts and is not used: it divides by rank + 1e-5, cannot be made without a schedule of the allocator's, and wraps a
layer that may have LoRA's already. A forward hook goes on either.

Zhang et al., "AdaLoRA: Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning", ICLR 2023, arXiv:2303.10512.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from fedft.arithmetic.lowrank import LowRank
from fedft.arithmetic.tensors import Tensors
from fedft.contract import Kind, Layout, Mounted, Settings
from fedft.randomness import philox
from fedft.update import Shape

P_SUFFIX, LAM_SUFFIX, Q_SUFFIX = ".P", ".lam", ".Q"


@dataclass(frozen=True)
class TripletShape(Shape):
    """The shape of an adapter of triplets, which is never taken for that of an adapter of pairs."""

    @property
    def key(self) -> str:
        """A short text, equal for equal ranks of triplets and no other shapes.

        >>> TripletShape(4).key
        'triplet-r4'
        """
        return f"triplet-{super().key}"


@dataclass(frozen=True)
class Triplet(Kind):
    """The kind (`fedft.contract.Kind`) with `<module>.P` [out, rank], `.lam` [rank] and `.Q` [rank, in], float32."""

    name = "triplet"
    rank_free = False

    def trained(self, layout: Layout, shape: Shape) -> Mapping[str, tuple[int, ...]]:
        """Shapes of all three parts of every module that has a rank, by name."""
        found: dict[str, tuple[int, ...]] = {}
        for m, (o, i) in layout.modules.items():
            if r := shape.of(m):
                found |= {m + P_SUFFIX: (o, r), m + LAM_SUFFIX: (r,), m + Q_SUFFIX: (r, i)}
        return found

    def draw(self, layout: Layout, shape: Shape, seed: int) -> dict[str, Tensor]:
        """Values at version 0: lam zero, P and Q uniform with entries of variance 1 / out and 1 / in.

        Every element is one word of the Philox stream of the run's seed and the tensor's name.
        """
        found = {}
        for n, size in self.trained(layout, shape).items():
            long = size[0] if n.endswith(P_SUFFIX) else size[-1]
            uniform = n.endswith((P_SUFFIX, Q_SUFFIX))
            u = philox.uniform(seed, philox.LORA_INIT, n, size) if uniform else torch.full(size, 0.5)
            found[n] = (2 * u - 1) * (3 / long) ** 0.5
        return found

    def shape_of(self, values: Tensors) -> Shape | None:
        """The rank by module, read off lam; None without triplets."""
        ranks = {n.removesuffix(LAM_SUFFIX): len(x) for n, x in values.items() if n.endswith(LAM_SUFFIX)}
        if not ranks:
            return None
        usual = max(ranks.values(), key=list(ranks.values()).count)
        return TripletShape(usual, {m: r for m, r in ranks.items() if r != usual})

    def change(self, module: str, values: Tensors) -> LowRank | None:
        """The change of the module's weight, P diag(lam) Q, as factors; None of a module without a triplet."""
        if module + LAM_SUFFIX not in values:
            return None
        return LowRank(values[module + LAM_SUFFIX][:, None] * values[module + Q_SUFFIX], values[module + P_SUFFIX])

    def mount(self, model: nn.Module, layout: Layout, shape: Shape, settings: Settings) -> Mounted:
        """Hook a triplet behind every module that has a rank; its tensors are float32 for any base."""
        on, found, removals = [True], dict[str, nn.Parameter](), []
        for m, (o, i) in layout.modules.items():
            if r := shape.of(m):
                names = {p: f"{p}_{shape.key.replace('-', '_')}" for p in (P_SUFFIX[1:], LAM_SUFFIX[1:], Q_SUFFIX[1:])}
                parts, remove = _hooked(model.get_submodule(m), names, (o, r, i), on)
                found |= {f"{m}.{p}": x for p, x in parts.items()}
                removals.append(remove)

        def remove_all() -> None:
            for remove in removals:
                remove()

        return Mounted(found, lambda wanted: on.__setitem__(0, wanted), remove=remove_all)


def _hooked(layer: Any, names: Mapping[str, str], sizes: tuple[int, int, int], on: list[bool]) -> tuple[Any, Any]:
    """(parameters of the layer by part, what takes them and the hook away).

    Args:
        layer: any module that maps [..., in] to [..., out].
        names: of the parameters inside the layer, by part.
        sizes: out, rank, in.
        on: its only element says whether the triplet works.
    """
    o, r, i = sizes
    device = next(chain(layer.parameters(), layer.buffers())).device  # a packed layer may have buffers only
    for part, size in (("P", (o, r)), ("lam", (r,)), ("Q", (r, i))):
        layer.register_parameter(names[part], nn.Parameter(torch.zeros(size, device=device)))

    def added(layer: Any, x: tuple[Tensor, ...], y: Tensor) -> Tensor:
        if not on[0]:
            return y
        p, lam, q = (layer.get_parameter(names[part]) for part in ("P", "lam", "Q"))
        change: Tensor = (x[0].to(q.dtype) @ q.T * lam) @ p.T
        return y + change.to(y.dtype)

    hook = layer.register_forward_hook(added)

    def remove() -> None:
        hook.remove()
        for name in names.values():
            delattr(layer, name)

    return {part: layer.get_parameter(name) for part, name in names.items()}, remove
