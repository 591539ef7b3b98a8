"""LoRA whose modules are measured first: an adapter of triplets for probing, of pairs for all rounds behind it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from fedft.adapters.lora import LoRA
from fedft.adapters.triplet import Triplet, TripletShape
from fedft.arithmetic.lowrank import LowRank
from fedft.arithmetic.tensors import Tensors
from fedft.contract import Layout, Mounted, Settings
from fedft.update import Shape


@dataclass(frozen=True)
class ProbedPairs(LoRA):
    """LoRA of every shape but a `TripletShape`, which is one of triplets. Clients take turns: none shares a pass."""

    experts = False  # triplets are hooked on layers, and experts are none
    _triplets: ClassVar[Triplet] = Triplet()

    def trained(self, layout: Layout, shape: Shape) -> Mapping[str, tuple[int, ...]]:
        """Shapes of the tensors that learn, by name: of factors, or of triplets."""
        return self._triplets.trained(layout, shape) if _is_probe(shape) else super().trained(layout, shape)

    def draw(self, layout: Layout, shape: Shape, seed: int) -> dict[str, Tensor]:
        """Values at version 0, which leave the base as it is."""
        return self._triplets.draw(layout, shape, seed) if _is_probe(shape) else super().draw(layout, shape, seed)

    def frozen(self, layout: Layout, shape: Shape, seed: int) -> dict[str, Tensor]:
        """None of triplets; of pairs as LoRA has it."""
        return {} if _is_probe(shape) else super().frozen(layout, shape, seed)

    def shape_of(self, values: Tensors) -> Shape | None:
        """The shape of the triplets among the values, else that of the pairs."""
        return self._triplets.shape_of(values) or super().shape_of(values)

    def change(self, module: str, values: Tensors) -> LowRank | None:
        """The change of the module's weight as factors."""
        return self._triplets.change(module, values) or super().change(module, values)

    def several(self, model: nn.Module, layout: Layout) -> Callable[..., Mapping[nn.Module, Any]] | None:
        """None: triplets have no form for several clients."""
        return None

    def mount(self, model: nn.Module, layout: Layout, shape: Shape, settings: Settings) -> Mounted:
        """Put an adapter of this shape into the model; both kinds may be there at a time."""
        if _is_probe(shape):
            return self._triplets.mount(model, layout, shape, settings)
        return super().mount(model, layout, shape, settings)


def _is_probe(shape: Shape) -> bool:
    return isinstance(shape, TripletShape)
