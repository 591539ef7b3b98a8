"""What the round engine asks of whatever carries its messages."""

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from fedft.errors import RejectedUpdate

Kind = Literal["query", "train", "evaluate"]

MAX_REASON = 300  # characters of a peer's text that are kept, logged and shown
SHORT_ANSWER_BYTES = 8192  # of an answer without tensors: its header has at most 4,096
OURS = ("deadline", "client_error")  # codes that the server and the transport give, and no client


@dataclass(frozen=True)
class Refused:
    """A peer's answer that carries no payload: its code and reason."""

    code: str
    reason: str


Answer = bytes | Refused | RejectedUpdate


@dataclass(frozen=True)
class Letter:
    """What goes to one client. `payload` makes its bytes, the same ones every time, so that nobody has to keep them."""

    client: str
    kind: Kind
    payload: Callable[[], bytes]
    round: int = 0
    attempt: int = 0
    max_bytes: int = SHORT_ANSWER_BYTES
    """Longest answer there may be; enough for one without tensors."""


@dataclass(frozen=True)
class Reply:
    """What came of a letter, or beside one (`ticket` of no open letter): for the audit only, then."""

    ticket: str
    client: str
    answer: Answer
    proven: bool = True
    """Whether it is certain that the client named sent it."""
    size: int = 0
    sha256: str = ""
    """Size and digest of what arrived, where it was refused before it could become an answer."""


class Post(Protocol):
    """Carries letters to clients by name."""

    def push(self, letter: Letter) -> tuple[str, int]:
        """Send, or keep until the client can be reached; (ticket, bytes of the payload)."""

    def pull(self, tickets: Collection[str]) -> Iterator[Reply]:
        """What has come, one reply in memory at a time; an answered ticket is done with. Never blocks for long."""

    def cancel(self, tickets: Collection[str]) -> None:
        """Stop waiting for these; what still comes of them is late."""

    def gone(self, client: str) -> bool:
        """Whether a client is known to be out of reach at present."""


def refused(code: object, reason: object) -> Refused:
    """A peer's refusal, its text bounded and printable. Raises RejectedUpdate for a code that is no client's."""
    code = str(code)[:32]
    if not re.fullmatch(r"[a-z_]+", code) or code in OURS:
        raise RejectedUpdate("malformed", "a refusal whose code is none of a client's")
    return Refused(code, printable(reason))


def printable(text: object) -> str:
    """A peer's text as one short printable line."""
    return "".join(c if c.isprintable() else " " for c in str(text)[:MAX_REASON])


class LinkLost(Exception):
    """The connection, or the transport's own run, is gone: all message ids are void; the next call connects anew."""


class Link(Protocol):
    """What carries bytes to the sites: Flower's SuperLink, or the tests' simulated network."""

    def nodes(self) -> Mapping[str, int]:
        """Node id by site, of those that can be reached now. Raises LinkLost."""

    def push(self, node: int, kind: str, payload: bytes, group: str) -> str:
        """Send; returns the message's id. Raises LinkLost."""

    def pull(self, ids: Collection[str], max_bytes: int) -> Iterator[tuple[str, bytes | Refused | RejectedUpdate]]:
        """Replies by the id they answer, one in memory at a time. Raises LinkLost."""

    def forget(self, ids: Collection[str]) -> None:
        """Withdraw messages; what still comes of them is dropped. Raises LinkLost."""

    def close(self) -> None:
        """Leave the network."""
