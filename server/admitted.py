"""What a round has so far, and what it comes to: the updates that are durable, the next state, or nobody left."""

from dataclasses import dataclass, field
from typing import Any

from fedft.contract import State
from fedft.update import MEMORY_LOST, Update


class EverybodyLeft(Exception):
    """None of those whom a round has asked may take part any more, and no update of it counts."""


@dataclass
class Admitted:
    """The updates of a round that are durable: examples, norm and upload bytes by client."""

    examples: dict[str, int] = field(default_factory=dict)
    norms: dict[str, float] = field(default_factory=dict)
    up: dict[str, int] = field(default_factory=dict)
    began_anew: set[str] = field(default_factory=set)
    """Clients that had lost what they kept between rounds."""

    def enter(self, client: str, update: Update, norm: float, up: int) -> None:
        """Count the update of one more client: its norm, and the bytes that it took on the wire."""
        self.examples[client], self.norms[client], self.up[client] = update.num_examples, norm, up
        if MEMORY_LOST in update.metrics:
            self.began_anew.add(client)


@dataclass(frozen=True)
class Outcome:
    """A round that met its quorum. Its updates are durable, its new state is not yet."""

    after: State
    """The next state, which the gates have agreed to."""
    record: dict[str, Any]
    """The round's part of its line in metrics.jsonl."""
    norms: list[float]
    """Norms of the updates that counted, in roster order."""
    counted: list[str]
    """Clients whose updates counted, in roster order."""
    blamed: set[str]
    """Clients at fault, see `Traffic.blamed`."""
