"""The server's memory between rounds, and what decides whether it is committed."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any, NamedTuple

from fedft.arithmetic import tensors
from fedft.arithmetic.tensors import Tensors

Drawers = Mapping[str, Tensors]
"""Tensors by owner: a part of a recipe reads and writes under its own name, and sees no other's."""
NOTHING: Mapping[Any, Any] = MappingProxyType({})
"""An empty mapping that nobody can write to: the default of drawers."""


@dataclass(frozen=True)
class State:
    """The server's whole memory after `version` committed rounds: what may travel, and what never does."""

    version: int
    """How many rounds were committed; 0 before the first."""
    tensors: Tensors
    """The shared drawer, by name: what `downlink` chooses from."""
    own: Drawers = field(default_factory=dict)
    """The server's own drawer, by owner: optimiser moments, what a codec lost, ledgers. Durable, never sent."""

    @cached_property
    def shared_digest(self) -> str:
        """SHA-256 of the shared tensors; hexadecimal."""
        return tensors.digest(self.tensors)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the shared tensors and, where there are any, of the server's own; hexadecimal."""
        shared = self.shared_digest
        if not any(self.own.values()):
            return shared
        own = {f"{owner}/{n}": x for owner, drawer in self.own.items() for n, x in drawer.items()}
        return tensors.digest_of_texts([shared, tensors.digest(own)])

    @property
    def label(self) -> str:
        """The first 8 digits of the digest: they tell two states of one version apart."""
        return self.digest[:8]

    def drawer(self, owner: str) -> Tensors:
        """The server's own tensors that `owner` has kept; none before it keeps something."""
        return self.own.get(owner, NOTHING)

    def followed_by(self, made: "Tensors | Next") -> "State":
        """The state of the next version that a server step has made; drawers that it does not name stay as they are."""
        if isinstance(made, Next):
            return State(self.version + 1, made.tensors, {**self.own, **made.own})
        return State(self.version + 1, made, self.own)


class Next(NamedTuple):
    """What a server step gives that keeps something for itself: the shared tensors, and drawers of its own."""

    tensors: Tensors
    """The shared tensors of the next version."""
    own: Drawers
    """The drawers that change, by owner; those left out stay as they are."""


Measured = Mapping[str, Any]
"""What is known of a round: train_loss, the updates' norms by client, aggregation_error where it was measured."""
Gate = Callable[[State, State, Measured], State]
"""(state, candidate, measured) -> the candidate or another state of its version; or raises `GateRefused`."""
