"""What the round engine asks of whatever carries its messages: `Post` by names of clients, `Link` by numbers of nodes.

    ticket, size = post.push(Letter("clinic-1", "train", lambda: payload))
    for reply in post.pull([ticket]): ...        Reply(ticket, "clinic-1", answer)

A post and a link are used by one thread, and no call of theirs waits for a client.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from fedft.errors import RejectedUpdate
from fedft.update import Plan

Kind = Literal["query", "train", "evaluate", "secagg"]
Handle = Callable[[str, bytes, Callable[[bytes], None]], None]
"""A site's: takes (kind, payload, reply) of a message; `reply(answer)` sends the answer."""

MAX_REASON = 300  # characters of a peer's text that are kept, logged and shown
SHORT_ANSWER_BYTES = 8192  # of an answer without tensors: its header has at most 4,096
OURS = ("deadline", "client_error")  # codes that the server and the transport give: no client may claim them


@dataclass(frozen=True)
class Refused:
    """A peer's answer that carries no payload: a code of lower-case letters, and a reason of one printable line."""

    code: str
    reason: str


Answer = bytes | Refused | RejectedUpdate
"""A payload; the client's refusal, or a transport's in its name; or why what came is neither."""


@dataclass
class Begun:
    """When a turn was first asked for, which may be before this process started."""

    sent: float
    """By the run's clock."""
    down: int | None = None
    """Bytes that its client needed for it, where a post reckons with them: that one fills them in, the first time."""


@dataclass(frozen=True)
class Letter:
    """A message to one client: a job ("query"), a plan ("train", "evaluate"), or a step of a secure sum ("secagg")."""

    client: str
    """The client's name."""
    kind: Kind
    payload: Callable[[], bytes]
    """Makes the bytes, the same ones every time, so that nobody has to keep them."""
    round: int = 0
    attempt: int = 0
    """Of the round: an answer counts for the attempt that it was asked in."""
    max_bytes: int = SHORT_ANSWER_BYTES
    """Longest answer there may be: no client decides how much memory it takes. The default fits one without tensors."""
    plan: Plan | None = None
    """What is asked, without tensors, for posts that reckon with it; None for a job."""
    begun: Begun | None = None
    """Of a turn that may go on over several rounds; None: it begins with the first letter of its round."""
    tensors: Mapping[str, Any] = field(default_factory=dict, compare=False)
    """Of the state that a plan leads to: clients in this process may hold them in the place of equal ones."""


@dataclass(frozen=True)
class Reply:
    """The answer to a letter. If `ticket` matches no open letter the reply is late or forged, and is only told of."""

    ticket: str
    """Of the letter, as `Post.push` gave it."""
    client: str
    """Whose answer it is, or is said to be."""
    answer: Answer
    proven: bool = True
    """Whether the client named certainly sent the answer."""
    size: int = 0
    """Bytes of what arrived, where it was refused before it could become an answer."""
    sha256: str = ""
    """SHA-256 of the same, in hexadecimal digits."""


class Post(Protocol):
    """Carries letters to clients by name. Nothing in a post is durable: after a crash the engine asks again."""

    def push(self, letter: Letter) -> tuple[str, int]:
        """Send a letter, or keep it until its client can be reached; (ticket, bytes of the payload)."""

    def pull(self, tickets: Collection[str]) -> Iterator[Reply]:
        """The replies that have come to these letters, one in memory at a time; ends when there are no more at present.

        A ticket that is answered is done with. Replies with other tickets may come too, see `Reply`.
        """

    def cancel(self, tickets: Collection[str]) -> None:
        """Stop waiting for the answers to these letters; an answer that still comes is late."""

    def gone(self, client: str) -> bool:
        """Whether a client is known to be out of reach at present."""


def refused(code: object, reason: object) -> Refused:
    """A peer's refusal, its text bounded and printable. Raises RejectedUpdate for a code that no client may give."""
    code = str(code)[:32]
    if not re.fullmatch(r"[a-z_]+", code) or code in OURS:
        raise RejectedUpdate("malformed", "a refusal whose code is none of a client's")
    return Refused(code, printable(reason))


def printable(text: object) -> str:
    """A peer's text as one printable line of at most MAX_REASON characters."""
    return "".join(c if c.isprintable() else " " for c in str(text)[:MAX_REASON])


class LinkLost(Exception):
    """The connection, or the transport's own run, is gone: all message ids are void; the next call connects anew."""


class Link(Protocol):
    """Carries bytes to the sites: our carrier, Flower's SuperLink, or the tests' network. Trusted with nothing."""

    def nodes(self) -> Mapping[str, int]:
        """Node id by site, of those that can be reached now. Raises LinkLost."""

    def speaks(self, node: int) -> int:
        """The version of the protocol (`fedft.wire.versions`) to be spoken with a node that `nodes` gave."""

    def push(self, node: int, kind: str, payload: Sequence[bytes], group: str) -> str:
        """Send a payload to a node; returns the message's id. Raises LinkLost.

        The payload comes in parts, and arrives in one: a part that many nodes are sent is in memory once. `kind` and
        `group` (the round) are for the transport's own records.
        """

    def pull(self, ids: Collection[str], max_bytes: int) -> Iterator[tuple[str, bytes | Refused | RejectedUpdate]]:
        """(id of the message that is answered, answer) of new replies, one in memory at a time. Raises LinkLost.

        An answer above `max_bytes` comes as RejectedUpdate, and a message that is lost as Refused.
        """

    def forget(self, ids: Collection[str]) -> None:
        """Withdraw messages; an answer that still comes to one is dropped. Raises LinkLost."""

    def close(self) -> None:
        """Leave the network."""
