"""Who does how much in a round: what a planner knows of the clients, and what it asks of each."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from fedft.arithmetic.tensors import Tensors
from fedft.contract.state import State
from fedft.update import Plan, Scalar, Shape


@dataclass(frozen=True)
class Seen:
    """What the server saw of one client in one round in which it was asked."""

    round: int
    rank: int
    """As are `steps`, `batch`, `bits` and `extra`: of the plan that the client was sent."""
    steps: int
    batch: int = 0
    bits: int = 0
    extra: Mapping[str, Scalar] = field(default_factory=dict)
    seconds: float | None = None
    """From the letter to the answer, by the run's clock; None: no answer, or no clock that a run can be repeated by."""
    up: int = 0
    """Bytes of the answer."""
    down: int = 0
    """Bytes of what was sent for it."""
    loss: float | None = None
    """The mean over the client's local steps, as it says."""
    norm: float | None = None
    """`Recipe.norm` of the update."""
    admitted: bool = False
    """Whether the update counted; what was refused has neither loss nor norm."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Other numbers that the client said of its round, by name."""
    shape: Shape | None = None
    """Of the plan; of a client's last round only, since it may name many modules. None: of an earlier one."""


@dataclass(frozen=True)
class Member:
    """One client as a planner sees it."""

    rank: int
    """The rank that the run file gives the client."""
    profile: Mapping[str, float] = field(default_factory=dict)
    """What the client said of itself when it enrolled: numbers by name, coarse and optional. "rows", "held_out";
    "memory" in bytes; "flops" per second; "up", "down" in bytes per second, these four within 1/64 to 64 times the
    median of all who said theirs, where three or more did."""
    seen: tuple[Seen, ...] = ()
    """The last rounds in which the client was asked, oldest first, see `Recipe.remembers`."""


class Forecast(NamedTuple):
    """What a round's work takes at a client."""

    memory: float
    """Bytes at the peak of a step, base included."""
    flops: float
    """Operations of all steps of the round."""
    up: int
    """Bytes of the update."""
    down: int
    """Bytes of what is sent for it."""


def no_forecast(work: "Work") -> Forecast:
    """The forecast where nobody knows the base: nothing is known to take anything."""
    return Forecast(0.0, 0.0, 0, 0)


@dataclass(frozen=True)
class Roster(Mapping[str, Member]):
    """All members of a run by name, and what else a plan may depend on: no clock, no generator."""

    members: Mapping[str, Member]
    round: int = 0
    seed: int = 0
    """The run's: draws are `philox.derive(seed, "plan", client, round)`."""
    asked: tuple[str, ...] = ()
    """Whom the round asks, bytewise by name; their plans are the ones that count."""
    forecast: "Callable[[Work], Forecast]" = no_forecast
    """What a work takes; what a work leaves open is as in the run file."""

    def __getitem__(self, client: str) -> Member:
        return self.members[client]

    def __iter__(self) -> Iterator[str]:
        return iter(self.members)

    def __len__(self) -> int:
        return len(self.members)


@dataclass(frozen=True)
class Work:
    """What one client does in one round; None: as the run file says."""

    shape: Shape | None = None
    """How large its adapter is."""
    steps: int | None = None
    """Local optimiser steps."""
    learning_rate: float | None = None
    """Of the local optimiser."""
    batch: int | None = None
    """Records per step."""
    bits: int | None = None
    """Precision of the base that the client is to train on: 16, 8 or 4 bits of each frozen weight."""
    extra: Mapping[str, Scalar] = field(default_factory=dict)
    """Numbers and texts for the strategy's own client side, in `Plan.extra`."""
    tensors: Tensors = field(default_factory=dict)
    """What the strategy's client side is told in tensors, beside what `downlink` sends: in `Plan.tensors`, and durable
    with the plan."""

    def planned(self, bare: Plan, rank: int) -> Plan:
        """The plan `bare` with this work in it, for a client to whom the run file gives `rank`."""
        shape = self.shape or Shape(rank)
        return replace(
            bare,
            rank=shape.rank,
            ranks=shape.ranks,
            chosen=shape.chosen,
            batch=self.batch or bare.batch,
            bits=self.bits or bare.bits,
            steps=bare.steps if self.steps is None else self.steps,
            learning_rate=bare.learning_rate if self.learning_rate is None else self.learning_rate,
            extra={**bare.extra, **self.extra},
            tensors={**bare.tensors, **self.tensors},
        )


Planner = Callable[[State, Roster], Mapping[str, Work]]
"""(state, all clients by name) -> work of those who do other than the run file says; pure."""
