"""Kinds of adapters: what a base model offers to training, and what a kind makes of that."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from fedft.arithmetic.lowrank import LowRank
from fedft.arithmetic.tensors import Tensors
from fedft.pruning.groups import Groups
from fedft.update import Shape, TensorSpec


@dataclass(frozen=True)
class Layout:
    """What a base model offers to training: shapes by canonical name, tied parameters once."""

    modules: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Adapted linear layers: name -> (out, in), whatever the orientation in memory."""
    head: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Parameters trained beside the adapter (a classification head, `[model] modules_to_save`); averaged whatever the
    adapter's rule."""
    parameters: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Every parameter of the base, for full fine-tuning."""
    order: tuple[str, ...] = ()
    """Names of all parameters as the model defines them, one after the other; empty where nobody asked."""
    experts: frozenset[str] = frozenset()
    """Those of `modules` that are no layer but a matrix in a parameter of several, see `fedft.models.experts`."""
    whole: frozenset[str] = frozenset()
    """Modules that are trained and saved whole: `head` are their parameters."""
    groups: Groups | None = None
    """What of the base can be pruned, see `fedft.pruning`; None where that is not known of this type of model."""


@dataclass(frozen=True)
class Settings:
    """What the run file's [model] table says of every adapter."""

    alpha: float | None = None
    """Scale of a pair is alpha / rank; None: alpha = 2 rank, scale 2 at every rank."""
    dropout: float = 0.0
    """Share of the adapter's inputs that is dropped in training."""


class Mounted(NamedTuple):
    """An adapter of one shape inside a model."""

    parameters: Mapping[str, nn.Parameter]
    """Every tensor of the adapter, trained or frozen, by canonical name."""
    switch: Callable[[bool], None] = lambda on: None
    """(on) turns the adapter's effect on or off; one that cannot be turned off is the only adapter of its model."""
    scale: Callable[[str], float] = lambda name: 1.0
    """(name) -> unit-scale value per own value of a tensor."""
    remove: Callable[[], None] = lambda: None
    """Takes the adapter out of the model for good."""


class Kind(Protocol):
    """A kind of adapter, as a stateless value: what it can train in a model, and what that does to a weight.

    Names of tensors are `<module>.<part>`, where parts are the kind's own; values at version 0 come from the run's
    seed and nothing else. A kind writes `trained`, `draw` and `mount`; the rest has plain defaults.
    """

    name: str
    linear: bool = False
    """The change of a weight is linear in the trained tensors, so the change of a mean is the mean of the changes."""
    rank_free: bool = True
    """Shapes do not depend on a rank."""
    pairs: bool = False
    """Every change of a weight is a pair of factors that learn, `<module>.lora_A` and `.lora_B`."""
    of_base: bool = False
    """The trained tensors are the base's own parameters; values are changes since w0."""
    experts: bool = False
    """Can be mounted on `Layout.experts` too; a model that has some is refused otherwise."""

    def layout(self, layout: Layout) -> Layout:
        """The part of a base's layout that this kind of adapter works on."""
        return layout

    def trained(self, layout: Layout, shape: Shape) -> Mapping[str, tuple[int, ...]]:
        """Shapes of an adapter's float32 tensors that learn, by name; a head is not among them."""

    def draw(self, layout: Layout, shape: Shape, seed: int) -> dict[str, Tensor]:
        """Values at version 0 of an adapter's tensors that learn: float32, unit scale, from the run's seed alone."""

    def frozen(self, layout: Layout, shape: Shape, seed: int) -> dict[str, Tensor]:
        """Values of an adapter's tensors that never learn, drawn from the run's seed on every machine: none travels."""
        return {}

    def mount(self, model: nn.Module, layout: Layout, shape: Shape, settings: Settings) -> Mounted:
        """Put an adapter of this shape into the model, switched on; its values are written afterwards."""

    def shape_of(self, values: Tensors) -> Shape | None:
        """The shape of the adapter that has these values; None where they do not say it."""
        return None

    def change(self, module: str, values: Tensors) -> "LowRank | Tensor | None":
        """The change of the module's weight [out, in] under these values (unit scale); None: it is no such matrix."""
        return None

    def several(
        self, model: nn.Module, layout: Layout
    ) -> "Callable[[Tensors, Tensors], Mapping[nn.Module, Callable[[Tensor], Tensor]]] | None":
        """How adapted modules work for several clients in one pass; None: clients of this kind train one at a time.

        The function is given every tensor of the adapter as [clients, ...] in own scale, and unit scale per own scale
        as [clients, 1, 1], and gives each adapted module's forward, whose input is [clients x rows, ...].
        """
        return None

    def spec(self, layout: Layout, shape: Shape | int) -> dict[str, TensorSpec]:
        """Shapes and dtypes of what a client uploads from an adapter of this shape: what learns, and the head."""
        of_adapter = self.trained(layout, as_shape(shape))
        return {n: TensorSpec(tuple(s)) for n, s in (dict(of_adapter) | dict(layout.head)).items()}

    def start(self, layout: Layout, shape: Shape | int, seed: int) -> dict[str, Tensor]:
        """Values at version 0 of all that a client uploads: what learns, and a head that has not changed."""
        return {n: torch.zeros(s) for n, s in layout.head.items()} | self.draw(layout, as_shape(shape), seed)

    def initial(self, layout: Layout, shape: Shape | int, seed: int) -> dict[str, Tensor]:
        """Values at version 0 of an adapter's whole: what learns, a head that has not changed, and what is frozen."""
        return self.start(layout, shape, seed) | self.frozen(layout, as_shape(shape), seed)


def as_shape(shape: Shape | int) -> Shape:
    """The shape itself, or the shape whose every module has the given rank."""
    return Shape(shape) if isinstance(shape, int) else shape
