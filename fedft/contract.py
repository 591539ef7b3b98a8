"""What a strategy is made of and what it sees: state, turn, layout, model, kinds of adapters, local steps, uploads.

Values and protocols only. A plug-in author reads this file and `fedft.recipe`.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from fedft.arithmetic import tensors
from fedft.arithmetic.lowrank import LowRank
from fedft.arithmetic.tensors import Tensors
from fedft.config import Local
from fedft.randomness.directions import Directions
from fedft.update import Plan, Scalar, Shape, TensorSpec

Batch = Mapping[str, Tensor]
Metrics = dict[str, float]
Drawers = Mapping[str, Tensors]
"""Tensors by owner: a part of a recipe reads and writes under its own name, and sees no other's."""
NOTHING: Mapping[Any, Any] = MappingProxyType({})


@dataclass(frozen=True)
class State:
    """The server's whole memory after `version` committed rounds: what may travel, and what never does."""

    version: int
    tensors: Tensors
    """The shared drawer, by name: what `downlink` chooses from."""
    own: Drawers = field(default_factory=dict)
    """The server's own drawer, by owner: optimiser moments, what a codec lost, ledgers. Durable, never sent."""

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the shared tensors and, where there are any, of the server's own; hexadecimal."""
        shared = tensors.digest(self.tensors)
        if not any(self.own.values()):
            return shared
        own = {f"{owner}/{n}": x for owner, drawer in self.own.items() for n, x in drawer.items()}
        return tensors.digest_of_texts([shared, tensors.digest(own)])

    @property
    def label(self) -> str:
        """The first 8 digits of the digest: they tell two states of one version apart."""
        return self.digest[:8]

    def drawer(self, owner: str) -> Tensors:
        """The server's own tensors of this owner; none if it has kept nothing yet."""
        return self.own.get(owner, NOTHING)


class Next(NamedTuple):
    """What a server step gives that keeps something for itself: the shared tensors, and one drawer of its own."""

    tensors: Tensors
    own: Drawers
    """The drawers that change, by owner; those left out stay as they are."""


@dataclass(frozen=True)
class Turn:
    """One client's turn in one round: all that its training may depend on besides the model and its data."""

    plan: Plan
    held: Tensors
    """The state as this client holds it."""
    held_digest: str
    """`tensors.digest` of `held`: the key of anything derived from it."""
    local: Local
    """The run's `[local]` table."""
    run_seed: int
    """The same on every machine: shared directions, frozen factors."""
    seed: int
    """This client's own in this round: order of batches, draws nobody else needs."""
    kept: Drawers = field(default_factory=dict)
    """What this client kept, by owner, in the last round in which its update counted; nothing before that."""

    def drawer(self, owner: str) -> Tensors:
        """What this owner kept on this client."""
        return self.kept.get(owner, NOTHING)


@dataclass(frozen=True)
class Layout:
    """What a base model offers to training: shapes by canonical name, tied parameters once."""

    modules: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Adapted linear layers: name -> (out, in), whatever the orientation in memory."""
    head: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Parameters trained beside the adapter (a classification head); averaged whatever the adapter's rule."""
    parameters: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Every parameter of the base, for full fine-tuning."""


class Handle(Protocol):
    """A resident model as a strategy sees it. Values are unit-scale, float32, on the CPU; `w0` is the base."""

    layout: Layout
    kind: "Kind"

    def parameters(self) -> Mapping[str, nn.Parameter]:
        """The live parameters that are trained, by canonical name, in the adapter's own scale."""

    def adapter(self) -> Mapping[str, nn.Parameter]:
        """Every tensor of the adapter that is switched on, trained or frozen, in its own scale."""

    def read(self) -> dict[str, Tensor]:
        """Copies of the trained tensors: the adapter's in unit scale, any other parameter as its change since w0."""

    def write(self, values: Tensors) -> None:
        """Set tensors of the adapter and changes of parameters since w0; names left out stay as they are."""

    def reset(self) -> None:
        """Put every parameter that is trained itself back to w0, bit for bit."""

    def set_base_change(self, change: Mapping[str, LowRank], key: str) -> None:
        """Make every adapted base weight act as w0 + change, a module that is left out as w0.

        A float weight is written, summed in float32 and rounded once; a packed one (4 or 8 bits) stays as it is and the
        change is added to what the module gives. `key` names the change: a call with the last one's returns at once.
        """

    def scale(self, name: str) -> float:
        """Unit-scale value of a tensor per value that the adapter holds: LoRA's B has alpha / rank, others 1."""

    @property
    def weights_fixed(self) -> bool:
        """True for full fine-tuning in half precision: parameters stay at w0, forward passes add the summed offset.

        Steps go through `shift_along` then; writing `parameter.data` is an error.
        """

    def shift_along(self, z: Directions, coefficients: Tensor, keep: float = 1.0) -> None:
        """Where `weights_fixed`: offset := keep (w0 + offset) - w0 + sum_j coefficients[j] z_j.

        Summed in float32 and rounded once when a forward pass reads it. coefficients: float64 [K].
        Raises ValueError for other directions than since the last `reset`, or where weights are not fixed.
        """

    def loss(self, batch: Batch) -> Tensor:
        """The run's objective on one batch: a float32 scalar, with a graph unless gradients are off."""

    def predictions(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(most likely class of every row, or token of every place; what should be there, IGNORED: not learned)."""

    def perturbed(
        self, directions: Directions, index: int, epsilon: float, *, only: Collection[str] | None = None
    ) -> AbstractContextManager[None]:
        """Inside, forward passes see trained parameters + epsilon z_index; the parameters themselves never move.

        `only`: names of those that are seen moved; the others stay where they are.
        """

    def directional_derivative(
        self, batch: Batch, directions: Directions, index: int, *, only: Collection[str] | None = None
    ) -> tuple[float, float]:
        """(<gradient of the loss, z_index>, loss) by forward-mode differentiation: exact, no graph, dropout off."""


class Mounted(NamedTuple):
    """An adapter of one shape inside a model."""

    parameters: Mapping[str, nn.Parameter]
    """Every tensor of it, trained or frozen, by canonical name."""
    switch: Callable[[bool], None] = lambda on: None
    """Turn its effect on or off; one that cannot be turned off is the only adapter of its model."""
    scale: Callable[[str], float] = lambda name: 1.0
    """Unit-scale value per own value of a tensor."""
    remove: Callable[[], None] = lambda: None
    """Take it out of the model for good."""


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

    def layout(self, layout: Layout) -> Layout:
        """The part of a base's layout that this kind works on."""
        return layout

    def trained(self, layout: Layout, shape: Shape) -> Mapping[str, tuple[int, ...]]:
        """Shapes of the float32 tensors that learn, by name; a head is not among them."""

    def draw(self, layout: Layout, shape: Shape, seed: int) -> dict[str, Tensor]:
        """Values at version 0 of the tensors that learn."""

    def frozen(self, layout: Layout, shape: Shape, seed: int) -> dict[str, Tensor]:
        """Values of tensors that never learn: drawn from the run's seed on every machine, so that none travels."""
        return {}

    def mount(self, model: nn.Module, layout: Layout, shape: Shape, settings: "Settings") -> Mounted:
        """Put an adapter of this shape into the model, switched on; its values are written afterwards."""

    def shape_of(self, values: Tensors) -> Shape | None:
        """The shape that values are of; None where they do not say it."""
        return None

    def change(self, module: str, values: Tensors) -> "LowRank | Tensor | None":
        """What these values (unit scale) change the module's weight [out, in] by; None: no such matrix exists."""
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
        """What a client uploads that trains an adapter of this shape: what learns, and the head."""
        of_adapter = self.trained(layout, as_shape(shape))
        return {n: TensorSpec(tuple(s)) for n, s in (dict(of_adapter) | dict(layout.head)).items()}

    def start(self, layout: Layout, shape: Shape | int, seed: int) -> dict[str, Tensor]:
        """Values at version 0 of all that a client uploads: what learns, and a head that has not changed."""
        return {n: torch.zeros(s) for n, s in layout.head.items()} | self.draw(layout, as_shape(shape), seed)

    def initial(self, layout: Layout, shape: Shape | int, seed: int) -> dict[str, Tensor]:
        """Those values, and the frozen ones."""
        return self.start(layout, shape, seed) | self.frozen(layout, as_shape(shape), seed)


def as_shape(shape: Shape | int) -> Shape:
    """One rank for all modules, as a shape."""
    return Shape(shape) if isinstance(shape, int) else shape


@dataclass(frozen=True)
class Settings:
    """What a run file says of the adapter in every model."""

    alpha: float | None = None
    """Scale of a pair is alpha / rank; None: alpha = 2 rank, scale 2 at every rank."""
    dropout: float = 0.0
    """In training, before the adapter."""


class Objective(Protocol):
    """What is learned from a batch: the form of a batch belongs to it (one sequence, a pair of them, a class)."""

    def encode(self, record: Mapping[str, Any], base: Any, config: Any, where: str) -> Any:
        """One row of data as this objective trains on it. Raises DataError naming `where`."""

    def collate(self, examples: Sequence[Any], pad_id: int) -> Batch:
        """Rows as one batch of tensors."""

    def loss(self, handle: Any, batch: Batch) -> Tensor:
        """The mean loss of a batch: a scalar with a graph, unless gradients are off."""

    def measure(self, handle: Any, batch: Batch) -> Mapping[str, tuple[float, float]]:
        """(sum, weight) of every metric on one batch of held-out rows; "loss" is among them. Gradients are off."""


class Trained(NamedTuple):
    """What local steps, or a transform of their result, give."""

    delta: dict[str, Tensor]
    """`Update.delta`."""
    metrics: Metrics
    """Of the local steps: loss, steps."""
    kept: Drawers = NOTHING
    """What stays with this client and never travels, by owner. Its next turn has it if this update counted."""


class Data(Protocol):
    """A client's own training rows, and how batches are made of them."""

    @property
    def rows(self) -> Sequence[Any]:
        """Every row, encoded as the run's objective trains on it."""

    def batch(self, rows: Sequence[Any]) -> Batch:
        """These rows as one batch of tensors."""

    def batches(self, turn: Turn) -> Iterator[Batch]:
        """`turn.plan.steps` batches of the run's size, in an order drawn from the turn's seed."""


class LocalStep(Protocol):
    """A client's training between download and upload."""

    def __call__(self, handle: Handle, data: Data, turn: Turn) -> Trained:
        """Take `turn.plan.steps` steps on the client's rows from where `handle` stands."""


@dataclass(frozen=True)
class Learning:
    """The tensors of one client in its local steps, in the adapter's own scale."""

    live: Mapping[str, nn.Parameter]
    """Those that learn; `.grad` is filled in every step."""
    frozen: Mapping[str, Tensor]
    """The rest of the adapter."""
    scale: Callable[[str], float]
    """As `Handle.scale`."""


@runtime_checkable
class Term(Protocol):
    """Something that takes part in every gradient step of a turn: a proximal pull, a control variate, a penalty."""

    def begin(self, learning: Learning, turn: Turn) -> "Course":
        """The beginning of one client's turn."""


class Course:
    """A term's part in one turn. Both methods do nothing unless they are overridden."""

    def step(self) -> None:
        """Change the gradients in place, after back-propagation and before they are clipped."""

    def finish(self, trained: Trained, handle: Handle) -> Trained:
        """The turn's result with what this term adds to it; `handle` stands where the steps ended."""
        return trained


Stage = Literal["clip", "noise", "code", "mask"]


class Transform(Protocol):
    """Something that happens to a client's result on its way out. `apply` runs in order of `stage`, then as listed."""

    stage: ClassVar[Stage]
    keeps: bool
    """It keeps something on the client between rounds, under a name of its own in `Trained.kept`."""

    def apply(self, trained: Trained, turn: Turn, handle: Handle) -> Trained:
        """The result as it goes on. `handle` stands where the local steps ended."""


STAGES = ("clip", "noise", "code", "mask")


@dataclass(frozen=True)
class Member:
    """One client as a planner sees it."""

    rank: int
    """The rank that the run file gives it."""
    profile: Mapping[str, float] = field(default_factory=dict)
    """What it said of itself when it enrolled: numbers by name, coarse and optional ("rows", "held_out")."""


@dataclass(frozen=True)
class Work:
    """What one client does in one round; None: as the run file says."""

    shape: Shape | None = None
    steps: int | None = None
    learning_rate: float | None = None
    extra: Mapping[str, Scalar] = field(default_factory=dict)


Measured = Mapping[str, Any]
"""What is known of a round: train_loss, the updates' norms by client, aggregation_error where it was measured."""
Gate = Callable[[State, State, Measured], State]
"""(state, candidate, measured) -> the candidate or another state of its version; or raises `GateRefused`."""
