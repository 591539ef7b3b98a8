"""Bytes <-> Flower messages: what knows Flower's records.

A message holds one array "payload" of raw bytes (our own `stype`, so nothing is copied through numpy's format), or, for
an answer that is no payload, a "refusal" with a code and a line of text.
"""

from flwr.app import Array, ArrayRecord, Message, RecordDict

from fedft.carriers.interface import Kind, Refused, printable, refused
from fedft.errors import RejectedUpdate

STYPE = "fedft.raw"


def pack(kind: Kind, payload: bytes, node: int, group: str) -> Message:
    """A message of `payload` to `node`; `group` is the round, for Flower's logs."""
    return Message(_records(payload), node, kind, group_id=group)


def pack_reply(to: Message, payload: bytes) -> Message:
    """The answer to a message."""
    return Message(_records(payload), reply_to=to)


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
