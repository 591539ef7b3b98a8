"""The nouns of a strategy: state, turn, layout, the model as a strategy sees it, what a turn gives."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from fedft.arithmetic import tensors
from fedft.arithmetic.lowrank import LowRank
from fedft.arithmetic.tensors import Tensors
from fedft.randomness.directions import Directions
from fedft.update import Plan, TensorSpec

Batch = Mapping[str, Tensor]

Metrics = dict[str, float]


@dataclass(frozen=True)
class State:
    """The server's whole memory: named tensors after `version` committed rounds."""

    version: int
    tensors: Tensors

    @cached_property
    def digest(self) -> str:
        """Of the tensors."""
        return tensors.digest(self.tensors)

    @property
    def label(self) -> str:
        """What tells it from another state of its version: a damaged generation can make a round run again."""
        return self.digest[:8]


@dataclass(frozen=True)
class Turn:
    """One client's turn in one round: all that its training may depend on besides the model and its data."""

    plan: Plan
    held: Tensors
    """The state as this client holds it."""
    held_digest: str
    """`tensors.digest` of `held`: the key of anything derived from it."""
    local: Any
    """The run's `[local]` table."""
    run_seed: int
    """The same on every machine: shared directions, frozen factors."""
    seed: int
    """This client's own in this round: order of batches, draws nobody else needs."""
    kept: Tensors = field(default_factory=dict)
    """What this client kept (`Trained.kept`) in the last round in which its update counted; nothing before that."""


@dataclass(frozen=True)
class Layout:
    """What a base model offers to training: shapes by canonical name, tied parameters once."""

    modules: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Adapted linear layers: name -> (out, in), whatever the orientation in memory."""
    head: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Parameters trained beside the adapter (a classification head); averaged whatever the LoRA rule."""
    parameters: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Every parameter of the base, for full fine-tuning."""


class Handle(Protocol):
    """A resident model as a strategy sees it. Values are unit-scale, float32, on the CPU; `w0` is the base."""

    layout: Layout

    def parameters(self) -> Mapping[str, torch.nn.Parameter]:
        """The live trained parameters by canonical name (in the adapter's own scale)."""

    def read(self) -> dict[str, Tensor]:
        """The trained tensors: factors in unit scale, any other parameter as its change since w0. Copies."""

    def write(self, values: Tensors) -> None:
        """Set factors and changes since w0; names left out stay as they are. Needs not be trained ones."""

    def reset(self) -> None:
        """Full space: every parameter back to w0, bit for bit."""

    def stand(self, change: Mapping[str, LowRank], key: str) -> None:
        """Base weights := w0 + change, summed in float32; skipped when `key` names what they already are."""

    def scale(self) -> float:
        """Unit-scale B per B as the adapter holds it (alpha / rank); 1 where there is no adapter."""

    @property
    def still(self) -> bool:
        """Full space in half precision: parameters are never written, forward passes see w0 and what it was moved by.

        In any other case they are float32, and whoever trains them writes them.
        """

    def move(self, z: Directions, coefficients: Tensor, keep: float = 1.0) -> None:
        """Where weights stand still: what is seen of all := keep x it + sum_j coefficients[j] z_j, one rounding.

        `coefficients` is float64 [K]. Raises ValueError along other directions than since the last `reset`.
        """

    def loss(self, batch: Batch) -> Tensor:
        """Mean loss over the batch's learned tokens (or rows); float32 scalar with a graph unless grad is off."""

    def predictions(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(most likely class of every row, or token of every place; what should be there, -100: not learned)."""

    def perturbed(
        self, directions: Directions, index: int, epsilon: float, *, only: Collection[str] | None = None
    ) -> AbstractContextManager[None]:
        """Inside, forward passes see trained parameters + epsilon z_index; the parameters themselves never move.

        `only`: names of those that are seen moved; the others stay where they are.
        """

    def slope(
        self, batch: Batch, directions: Directions, index: int, *, only: Collection[str] | None = None
    ) -> tuple[float, float]:
        """(<gradient of the loss, z_index>, loss) by forward-mode differentiation: exact, no graph, dropout off."""


class Space(Protocol):
    """Which parameters are trained and exchanged."""

    @property
    def kind(self) -> Literal["lora", "full"]:
        """Adapters on modules, or the parameters themselves."""

    @property
    def trained(self) -> tuple[str, ...]:
        """Endings of the names that learn."""

    def initial(self, layout: Layout, rank: int, seed: int) -> dict[str, Tensor]:
        """The trained and frozen tensors of version 0, drawn from `seed`."""

    def spec(self, layout: Layout, rank: int) -> dict[str, TensorSpec]:
        """What a client uploads that trained in this space at `rank`."""


class Trained(NamedTuple):
    """What a client's turn gives."""

    delta: dict[str, Tensor]
    """`Update.delta`."""
    metrics: Metrics
    """Of the local steps: loss, steps."""
    kept: Tensors = MappingProxyType({})
    """What stays with this client and never travels: private factors, control variates, what was not sent. Its next
    turn has it if the update counted. Only where the recipe `keeps`."""


class LocalStep(Protocol):
    """A client's training between download and upload."""

    def __call__(self, handle: Handle, batches: Iterator[Batch], turn: Turn) -> Trained:
        """Take `turn.plan.steps` steps from where `handle` stands."""
