"""What stands between the admitted updates of a round and the change that they make: nothing, as here; noise, masks, or
weights that a few dishonest clients cannot move.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from fedft.contract import Layout, State
from fedft.recipe import Recipe
from fedft.update import Plan, Update


@dataclass(frozen=True)
class Sum:
    """A round whose quorum is met: what is to be summed."""

    recipe: Recipe
    layout: Layout
    """Of the base model."""
    state: State
    """That the round began from."""
    asked: Sequence[str]
    """Who was asked, in roster order."""
    weights: Mapping[str, int]
    """Weight by client whose update counts, in roster order."""
    plans: Mapping[str, Plan]
    """By client, without tensors."""
    updates: Callable[[], Iterator[Update]]
    """Reads the updates that count, in roster order, each with its weight as `num_examples`; one in memory at a time.
    May be called again, which reads the disk for what memory does not hold."""
    plan: Plan = field(default_factory=lambda: Plan("", 0, 0))
    """Of one who was asked, or of a member where nobody was: names and shapes of the parts of a sum are the same."""
    digests: Mapping[str, str] = field(default_factory=dict)
    """SHA-256, 64 hexadecimal digits, of the bytes of each update that counts, by client in roster order; where noise
    depends on it."""
    roster: int = 0
    """How many members the run has."""


class SumLost(Exception):
    """What a round needs for its secure sum is lost: its updates are dropped, and it begins anew."""


class BudgetSpent(Exception):
    """A release would cost more than `[privacy] max_epsilon` leaves; nothing of it has left."""


class Summed(NamedTuple):
    """What a guard made of the updates of a round."""

    change: dict[str, Tensor]
    """As `Recipe.aggregate` gives it."""
    record: Mapping[str, Any] = MappingProxyType({})
    """What the round's line in metrics.jsonl says of it."""


class Guard(Protocol):
    """How a run sums the updates of its rounds. One value per run, used by one thread."""

    def sum(self, of: Sum) -> Summed:
        """The change that the updates of a round make, and what the round's line says of how."""


class Unguarded:
    """The recipe's own aggregate of the updates as they are."""

    def sum(self, of: Sum) -> Summed:
        """`Recipe.aggregate` of the updates."""
        return Summed(of.recipe.aggregate(of.updates()))
