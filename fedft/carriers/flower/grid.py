"""Bytes <-> Flower messages, and the post on a Flower Grid: what knows Flower's records.

A message holds one array "payload" of raw bytes (our own `stype`, so nothing is copied through numpy's format), or, for
an answer that is no payload, a "refusal" with a code and a line of text.

The round engine speaks to a `Post`: letters to clients by name, answers as they come. `GridPost` carries them on any
Flower Grid whose nodes all stay (its simulation engine on Ray); the server of a deployment has one of its own.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import cast

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from flwr.app import Message as Message
from flwr.serverapp import Grid as Grid

from fedft.carriers.interface import MAX_REASON, Kind, Letter, Refused, Reply, printable, refused
from fedft.errors import RejectedUpdate

STYPE = "fedft.raw"


def pack(kind: Kind, payload: bytes, node: int, group: str) -> Message:
    """A message of `payload` to `node`; `group` is the round, for Flower's logs."""
    return Message(_records(payload), node, kind, group_id=group)


def pack_reply(to: Message, payload: bytes) -> Message:
    """The answer to a message."""
    return Message(_records(payload), reply_to=to)


def pack_refusal(to: Message, code: str, reason: str) -> Message:
    """An answer that says why there is no payload."""
    return Message(RecordDict({"refusal": ConfigRecord({"code": code, "reason": reason[:MAX_REASON]})}), reply_to=to)


def answered(message: Message, answer: Callable[[Kind, bytes], bytes | Refused], max_bytes: int) -> Message:
    """The reply to a server's message: what `answer` gives for its kind and payload, of at most `max_bytes`."""
    try:
        payload = unpack(message, max_bytes)
    except RejectedUpdate as e:
        return pack_refusal(message, e.code, str(e))
    if isinstance(payload, Refused):
        return pack_refusal(message, "malformed", "a server's message is never a refusal")
    said = answer(cast(Kind, message.metadata.message_type), payload)
    return pack_refusal(message, said.code, said.reason) if isinstance(said, Refused) else pack_reply(message, said)


def unpack(message: Message, max_bytes: int) -> bytes | Refused:
    """The payload of a message or reply, of at most `max_bytes`, or the refusal that it carries instead.

    A transport's error, such as a crashed client, is a refusal `client_error`. Raises RejectedUpdate (`too_large`,
    `malformed`) for anything else.
    """
    if message.has_error():
        return Refused("client_error", printable(message.error.reason))
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


def _records(payload: bytes) -> RecordDict:
    array = Array(dtype="uint8", shape=(len(payload),), stype=STYPE, data=payload)
    return RecordDict({"payload": ArrayRecord({"payload": array})})


class GridPost:
    """`Post` on a Flower Grid whose nodes are known and stay."""

    def __init__(self, grid: Grid, nodes: Mapping[str, int]) -> None:
        """`nodes`: Flower's node id by client."""
        self._grid, self._nodes = grid, nodes
        self._letters: dict[str, Letter] = {}
        self._late: set[str] = set()

    def push(self, letter: Letter) -> tuple[str, int]:
        """Send a letter to its client's node; (ticket, bytes of the payload). The ticket is Flower's message id."""
        payload = letter.payload()
        message = pack(letter.kind, payload, self._nodes[letter.client], letter.kind)
        (ticket,) = self._grid.push_messages([message])
        self._letters[ticket] = letter
        return ticket, len(payload)

    def pull(self, tickets: Collection[str]) -> Iterator[Reply]:
        """The replies that have come, one at a time. Answers to cancelled letters are taken out and dropped.

        Bytes that are no answer of ours, or too many, come as a reply whose answer is RejectedUpdate.
        """
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
        """Stop waiting for the answers to these letters; only those of the last call are still fetched and dropped."""
        for old in self._late:
            self._letters.pop(old, None)
        self._late = set(tickets)

    def gone(self, client: str) -> bool:
        """False: the nodes of a Grid stay."""
        return False
