"""What a round has so far, and what it comes to: the updates that are durable, the next state, or nobody left."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fedft.contract import Seen, State
from fedft.server import admission
from fedft.server.traffic import Traffic
from fedft.update import MEMORY_LOST, Update

HELD_BYTES = 2**28  # of updates that wait in memory for the end of their round; the others are read again


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
    _updates: dict[str, Update] = field(default_factory=dict)
    """By client, as they were admitted: of at most HELD_BYTES in all."""
    _held: int = 0
    """Bytes of their tensors."""

    def enter(self, client: str, update: Update, norm: float, up: int) -> None:
        """Count the update of one more client: its norm, and the bytes that it took on the wire."""
        size = sum(t.nbytes for t in update.delta.values())
        if self._held + size <= HELD_BYTES:
            self._updates[client], self._held = update, self._held + size
        self.examples[client], self.norms[client], self.up[client] = update.num_examples, norm, up
        if MEMORY_LOST in update.metrics:
            self.began_anew.add(client)

    def take(self, client: str) -> Update | None:
        """The client's update, which is then not held any more; None where there was no room for it."""
        update = self._updates.pop(client, None)
        if update is not None:
            self._held -= sum(t.nbytes for t in update.delta.values())
        return update

    def record(
        self,
        number: int,
        asked: Sequence[str],
        weights: Mapping[str, int],
        traffic: Traffic,
        measured: Mapping[str, float],
        seconds: Mapping[str, float],
    ) -> dict[str, Any]:
        """The part of round `number` in its line in metrics.jsonl; `weights` are of those who count."""
        up = traffic.up | self.up
        return {
            "round": number,
            "participants": list(weights),
            "weights": dict(weights),
            **({"cut_weights": cut} if (cut := admission.cut_shares(self.examples, weights)) else {}),
            **({MEMORY_LOST: lost} if (lost := sorted(self.began_anew & weights.keys())) else {}),
            "refused": traffic.refused,
            **measured,
            "bytes": {
                c: {"up": up.get(c, 0), "down": traffic.down.get(c, 0), "needed": traffic.needed.get(c, 0)}
                for c in asked
            },
            "seconds": seconds,
        }


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
    seen: Mapping[str, tuple[Seen, ...]] = field(default_factory=dict)
    """What was seen of each client until now, where somebody plans by it."""
