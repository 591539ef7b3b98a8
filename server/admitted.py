"""What a round has so far, and what it comes to: the updates that are durable, the next state, or nobody left."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from fedft.arithmetic import tensors
from fedft.arithmetic.tensors_in_file import LARGE
from fedft.contract import Seen, State
from fedft.server import admission
from fedft.server.buffered import OpenTurn
from fedft.server.traffic import Traffic
from fedft.update import MEMORY_LOST, Update

HELD_BYTES = 2**28  # of updates that wait in memory for the end of their round; of more, all are read again


class EverybodyLeft(Exception):
    """None of those whom a round has asked may take part any more, and no update of it counts."""


class Waiting(NamedTuple):
    """An admitted update as it waits for the end of its round."""

    update: Update
    """Without its tensors where they are LARGE: it is read again."""
    size: int
    """Bytes of its tensors."""


def waiting(update: Update) -> Waiting:
    """The update as it waits for the end of its round."""
    size = tensors.nbytes(update.delta)
    return Waiting(update if size < LARGE else replace(update, delta={}), size)


@dataclass
class Admitted:
    """The updates of a round that are durable: examples, norm and upload bytes by client."""

    examples: dict[str, int] = field(default_factory=dict)
    norms: dict[str, float] = field(default_factory=dict)
    up: dict[str, int] = field(default_factory=dict)
    began_anew: set[str] = field(default_factory=set)
    """Clients that had lost what they kept between rounds."""
    _updates: dict[str, Update] = field(default_factory=dict)
    """By client, as they were admitted: all of the round, or none where they do not fit HELD_BYTES."""
    _bytes: int = 0
    """Of all tensors that were admitted; more than HELD_BYTES with one update that is too long to wait."""

    def enter(self, client: str, waits: Waiting, norm: float, up: int) -> None:
        """Count the update of one more client: its norm, and the bytes that it took on the wire."""
        update, size = waits
        self._bytes += size if size < LARGE else HELD_BYTES + 1
        if self._bytes <= HELD_BYTES:
            self._updates[client] = update
        else:
            self._updates.clear()
        self.examples[client], self.norms[client], self.up[client] = update.num_examples, norm, up
        if MEMORY_LOST in update.metrics:
            self.began_anew.add(client)

    def take(self, client: str) -> Update | None:
        """The client's update, which is then not held any more; None where there was no room for it."""
        return self._updates.pop(client, None)

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
            **{name: x for name, x in measured.items() if not math.isnan(x)},  # clients that tell no loss have none
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
    counted: dict[str, int]
    """By client whose update counted, in roster order: the round that it was asked in."""
    blamed: set[str]
    """Clients at fault, see `Traffic.blamed`."""
    turns: Mapping[str, OpenTurn] = field(default_factory=dict)
    """What goes on behind the round, by client."""
    seen: Mapping[str, tuple[Seen, ...]] = field(default_factory=dict)
    """What was seen of each client until now, where somebody plans by it."""
