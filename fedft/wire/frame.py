"""The frame of a message: its first 13 bytes, and where header, table and body stand behind them.

    magic "FDFT" | protocol u16 | kind u8 | header length u16 | table length u32 | header | table | body

Little endian, nothing is padded. Header and table are JSON, the body is bytes. The protocol is one of
`fedft.wire.versions`.
"""

import struct
from collections.abc import Sequence
from enum import IntEnum
from typing import Any

from fedft.errors import RejectedUpdate
from fedft.wire import versions
from fedft.wire.header import json_bytes, parse_json

MAGIC = b"FDFT"
FRAME = struct.Struct("<4sHBHI")
MAX_MESSAGE_BYTES = 2**31 - 1  # the transport's messages are protobuf: signed 32-bit lengths
MAX_HEADER_BYTES = 4096  # how much JSON a peer makes us parse; ours take about 80, 32 metrics of the longest names fit
MAX_PLAN_HEADER_BYTES = 64 * 1024  # the same for a plan, which may bring ranks of a thousand modules by name


class MessageKind(IntEnum):
    """What a message is, by the number in its frame."""

    PLAN = 1
    UPDATE = 2
    JOB = 3


def pack(kind: MessageKind, header: Any, table: Any, body: Sequence[bytes | memoryview], protocol: int) -> bytes:
    """The message of a JSON header, a JSON table and a body in parts, which are copied once, in a version.

    Raises ValueError if the header is longer than a receiver accepts, or the message than MAX_MESSAGE_BYTES.
    """
    head, rows = json_bytes(header), json_bytes(table)
    size = FRAME.size + len(head) + len(rows) + sum(len(part) for part in body)
    if len(head) > _header_limit(kind) or size > MAX_MESSAGE_BYTES:
        raise ValueError(f"header of {len(head)} bytes, message of {size}: too long for one message")
    return b"".join([FRAME.pack(MAGIC, protocol, kind, len(head), len(rows)), head, rows, *body])


def unpack(data: bytes, kind: MessageKind, max_bytes: int, max_table_bytes: int) -> tuple[int, Any, Any, memoryview]:
    """(version, header, table, body) of a message: parsed JSON twice, then a view of the bytes that follow.

    Args:
        data: bytes from outside, of any kind and length.
        kind: that the message has to be of.
        max_bytes: the most that `data` may have; MAX_MESSAGE_BYTES holds in any case.
        max_table_bytes: the longest table that is parsed.
    Raises:
        RejectedUpdate: with code `too_large`, `bad_magic` or `version`.
        ValueError, struct.error, RecursionError: anything else that is wrong; lengths are checked before they are used.
    """
    if len(data) > (limit := min(max_bytes, MAX_MESSAGE_BYTES)):
        raise RejectedUpdate("too_large", f"message of {len(data)} bytes, at most {limit} allowed")
    if data[:4] != MAGIC:
        raise RejectedUpdate("bad_magic", f"message begins {bytes(data[:4])!r}, wanted {MAGIC!r}")
    _, protocol, found, head, rows = FRAME.unpack_from(data)
    if protocol not in versions.SEALS:
        which = versions.older(protocol, "this side", "the peer")
        raise RejectedUpdate("version", f"a message of protocol {protocol}, here is {versions.here()}: update {which}")
    if found != kind:
        raise ValueError(f"message of kind {found}, wanted {kind:d}")
    if head > _header_limit(kind) or rows > max_table_bytes or FRAME.size + head + rows > len(data):
        raise ValueError(f"header of {head} and table of {rows} bytes in a message of {len(data)}")
    view = memoryview(data)[FRAME.size :]
    return protocol, parse_json(view[:head]), parse_json(view[head : head + rows]), view[head + rows :]


def version_of(data: bytes) -> int:
    """The version that a message says it is in. Raises struct.error for what is shorter than a frame."""
    protocol: int = FRAME.unpack_from(data)[1]
    return protocol


def with_header(data: bytes, header: Any, protocol: int) -> bytes:
    """A message that `unpack` accepts, under another JSON header and version; table and body stay byte for byte."""
    _, _, kind, head, rows = FRAME.unpack_from(data)
    new = json_bytes(header)
    frame = FRAME.pack(MAGIC, protocol, kind, len(new), rows)
    return b"".join([frame, new, memoryview(data)[FRAME.size + head :]])


def _header_limit(kind: MessageKind) -> int:
    return MAX_PLAN_HEADER_BYTES if kind is MessageKind.PLAN else MAX_HEADER_BYTES
