"""Bytes <-> Flower messages, and the Grid that carries them inside one process: what knows Flower's records.

A message holds one array "payload" of raw bytes (our own `stype`, so nothing is copied through numpy's format), or, for
an answer that is no payload, a "refusal" with a code and a line of text.

The round engine speaks to a `Post`: letters to clients by name, answers as they come. `GridPost` carries them on any
Flower Grid whose nodes all stay (one process, or Ray); the server of a deployment has one of its own.
"""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol
from uuid import uuid4

from flwr.app import Array, ArrayRecord, ConfigRecord, Error, RecordDict
from flwr.app import Message as Message
from flwr.serverapp import Grid as Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fedft.errors import RejectedUpdate

Kind = Literal["query", "train", "evaluate"]
STYPE = "fedft.raw"
MAX_REASON = 300  # characters of a peer's text that we keep
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
    max_bytes: int = 8192
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


def pack(kind: Kind, payload: bytes, node: int, group: str) -> Message:
    """A message of `payload` to `node`; `group` is the round, for Flower's logs."""
    return Message(_records(payload), node, kind, group_id=group)


def pack_reply(to: Message, payload: bytes) -> Message:
    """The answer to a message."""
    return Message(_records(payload), reply_to=to)


def pack_refusal(to: Message, code: str, reason: str) -> Message:
    """An answer that says why there is no payload."""
    return Message(RecordDict({"refusal": ConfigRecord({"code": code, "reason": reason[:MAX_REASON]})}), reply_to=to)


def unpack(message: Message, max_bytes: int) -> bytes | Refused:
    """The payload of a message or reply, not larger than `max_bytes`.

    Raises RejectedUpdate (`too_large`, `malformed`). A transport error (a crashed client) is a `Refused` too.
    """
    if message.has_error():
        return Refused("client_error", _line(message.error.reason))
    try:
        if (refusal := message.content.config_records.get("refusal")) is not None:
            return refused(refusal["code"], refusal["reason"])
        array = message.content.array_records["payload"]["payload"]
        if array.stype != STYPE:
            raise RejectedUpdate("malformed", f"expected an array of type {STYPE}, got {array.stype!r}")
        if len(array.data) > max_bytes:
            raise RejectedUpdate("too_large", f"message of {len(array.data)} bytes, at most {max_bytes} allowed")
        return array.data
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise RejectedUpdate("malformed", f"not a message of ours: {e}") from e


def refused(code: object, reason: object) -> Refused:
    """A peer's refusal, its text bounded and printable. Raises RejectedUpdate for a code that is no client's."""
    code = str(code)[:32]
    if not re.fullmatch(r"[a-z_]+", code) or code in OURS:
        raise RejectedUpdate("malformed", "a refusal whose code is none of a client's")
    return Refused(code, _line(reason))


def _line(text: object) -> str:
    """A peer's text as one short printable line."""
    return "".join(c if c.isprintable() else " " for c in str(text)[:MAX_REASON])


def _records(payload: bytes) -> RecordDict:
    array = Array(dtype="uint8", shape=(len(payload),), stype=STYPE, data=payload)
    return RecordDict({"payload": ArrayRecord({"payload": array})})


class GridPost:
    """`Post` on a Flower Grid whose nodes are known and stay."""

    def __init__(self, grid: Grid, nodes: Mapping[str, int]) -> None:
        """`nodes`: node id by client."""
        self._grid, self._nodes = grid, nodes
        self._letters: dict[str, Letter] = {}
        self._late: set[str] = set()

    def push(self, letter: Letter) -> tuple[str, int]:
        """See `Post`."""
        payload = letter.payload()
        message = pack(letter.kind, payload, self._nodes[letter.client], letter.kind)
        (ticket,) = self._grid.push_messages([message])
        self._letters[ticket] = letter
        return ticket, len(payload)

    def pull(self, tickets: Collection[str]) -> Iterator[Reply]:
        """See `Post`. Answers to cancelled letters are taken out of the Grid and dropped."""
        for message in self._grid.pull_messages([*tickets, *self._late]):
            ticket = message.metadata.reply_to_message_id
            letter = self._letters.pop(ticket, None)
            if ticket in self._late or letter is None:
                self._late.discard(ticket)
                continue
            try:
                yield Reply(ticket, letter.client, unpack(message, letter.max_bytes))
            except RejectedUpdate as e:
                yield Reply(ticket, letter.client, e)

    def cancel(self, tickets: Collection[str]) -> None:
        """See `Post`; only those cancelled last are still fetched."""
        for old in self._late:
            self._letters.pop(old, None)
        self._late = set(tickets)

    def gone(self, client: str) -> bool:
        """Never: nodes stay."""
        return False


class LocalGrid(Grid):
    """Flower's Grid without a network: messages are answered in this process, one at a time, when pulled.

    Pulling answers at most one waiting message, so the caller's deadline, quorum and memory behave as over a network.
    An answer that raises becomes an error reply, as Flower does it; KeyboardInterrupt passes.

    With `begin`, the first `together` of the waiting messages that ask for training are begun at once, in their order;
    what it gives makes their answers, each when it is pulled.
    """

    def __init__(
        self,
        nodes: Iterable[int],
        answer: Callable[[int, Message], Message],
        begin: Callable[[list[Message]], list[Callable[[], Message]]] | None = None,
        together: int = 1,
    ) -> None:
        self._nodes, self._answer, self._begin, self._together = list(nodes), answer, begin, together
        self._waiting: dict[str, Message] = {}
        self._begun: dict[str, Callable[[], Message]] = {}
        self._run = Run.create_empty(run_id=1)
        TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1  # what Message() reads

    def set_run(self, run: Run) -> None:
        """Use `run` as the current run."""
        self._run = run

    @property
    def run(self) -> Run:
        """An empty run: there is no SuperLink."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """A message; Flower keeps this for older apps."""
        return Message(content, dst_node_id, message_type, group_id=group_id, ttl=ttl)

    def get_node_ids(self) -> list[int]:
        """All nodes: they never go away."""
        return self._nodes

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Queue messages; returns their ids."""
        ids = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = mid = uuid4().hex
            self._waiting[mid] = message
            ids.append(mid)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """The reply to the first of these messages still waiting, or nothing."""
        waiting = [m for m in message_ids if m in self._waiting]
        if not waiting:
            return []
        message = self._waiting[waiting[0]]
        try:
            begun = self._take_begun(waiting)
            reply = begun() if begun else self._answer(message.metadata.dst_node_id, message)
        except Exception as e:
            reply = Message(Error(code=2, reason=f"{type(e).__name__}: {e}"), reply_to=message)
        finally:
            del self._waiting[waiting[0]]
        reply.metadata.__dict__["_message_id"] = uuid4().hex
        return [reply]

    def _take_begun(self, waiting: list[str]) -> Callable[[], Message] | None:
        """What makes the answer to the first of these, if it is one to be begun with others."""
        if self._begin and waiting[0] not in self._begun:
            train = [m for m in waiting if self._waiting[m].metadata.message_type == "train" and m not in self._begun]
            group = train[: self._together] if waiting[0] in train[:1] else []
            if len(group) > 1:
                self._begun |= zip(group, self._begin([self._waiting[m] for m in group]), strict=True)
        return self._begun.pop(waiting[0], None)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Push, then pull until all have answered."""
        ids = self.push_messages(messages)
        return [reply for _ in ids for reply in self.pull_messages(ids)]
