"""The eight messages of fedft-secagg/1 as bytes: written, and read with suspicion.

    "FDSA" | u16 version 1 | u8 step | u8 slot | u32 block | u16 n | body                     little endian

    step       from     body
    1 open     server   roster digest 32 | u16 t | spec JSON
    2 keys     site i   17 X25519 keys of 32, one per slot and one for boxes | Ed25519 signature 64 over
                        TAG | "keys" | ctx | u16 i | the keys
    3 book     server   for each site that sent keys, indices rising: u16 i | its keys | its signature        610 each
    4 shares   site i   for each other site of the book, in its order: a box of 1,040 bytes
    5 deliver  server   bitmap of the dealers | for each other dealer, in order: its box for i
    6 ready    site i   -
    7 unmask   server   bitmap of the survivors
    8 opened   site i   for each dealer, in order: u256 share, above 0 and below p

A box holds, for every slot, a share of a (32 bytes) and one of b (32). Bit i - 1 of a bitmap, from the lowest of its
first byte on, is the site of index i; it has ceil(n / 8) bytes, and those left over are 0. The slot is that of steps 7
and 8, and 0 elsewhere.

Whatever the bytes: a message of the step that was expected, or a refusal with one of the codes `bad_magic`, `version`,
`malformed` and, where the message is of another block, slot or number of members, `secagg_context`. Every length is
known before a body is read.
"""

import struct
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from enum import IntEnum

from fedft.errors import Refusal
from fedft.privacy.secure_sum import derived_keys, shamir
from fedft.privacy.secure_sum.context import MOST, SLOTS, TAG, Context

MAGIC, VERSION = b"FDSA", 1
_FRAME = struct.Struct("<4sHBBIH")
FRAME_BYTES = _FRAME.size
"""Before a body."""
KEY_BYTES, SIGNATURE_BYTES = 32, 64
KEYS = SLOTS + 1
_KEYS_BYTES = KEYS * KEY_BYTES
ENTRY_BYTES = 2 + _KEYS_BYTES + SIGNATURE_BYTES
PAIR_BYTES = 2 * shamir.SHARE_BYTES
BOX_BYTES = SLOTS * PAIR_BYTES + derived_keys.TAG_BYTES
MAX_SPEC_BYTES = 1 << 20  # a tensor's name and shape take about 80

Refuse = Callable[[str, str], Refusal]
"""What is raised, of a code and a text: PlanRefused at a site, RejectedUpdate at the server."""


class Step(IntEnum):
    """The messages in their order; odd ones are the server's."""

    OPEN = 1
    KEYS = 2
    BOOK = 3
    SHARES = 4
    DELIVER = 5
    READY = 6
    UNMASK = 7
    OPENED = 8


@dataclass(frozen=True)
class Message:
    """A message whose frame is sound; the body is still to be read."""

    slot: int
    block: int
    n: int
    body: bytes


@dataclass(frozen=True)
class Entry:
    """A site's public keys of a block."""

    index: int
    keys: tuple[bytes, ...]
    """One per slot, and the one for boxes."""
    signature: bytes

    def body(self) -> bytes:
        """As in message 2."""
        return b"".join(self.keys) + self.signature


def write(step: Step, context: Context, body: bytes = b"", slot: int = 0) -> bytes:
    """A message of `context`'s block."""
    return _FRAME.pack(MAGIC, VERSION, step, slot, context.block, context.n) + body


def read(data: bytes, step: Step, refuse: Refuse, context: Context | None = None) -> Message:
    """The message of a step in `data`; of this `context`'s block, if one is given.

    Raises what `refuse` makes, for any other bytes.
    """
    if data[:4] != MAGIC:
        raise refuse("bad_magic", f"expected a message beginning {MAGIC!r}, got {bytes(data[:4])!r}")
    if len(data) < _FRAME.size:
        raise refuse("malformed", f"message of {len(data)} bytes, shorter than its frame")
    _, version, found, slot, block, n = _FRAME.unpack_from(data)
    if version != VERSION:
        raise refuse("version", f"a secure sum of version {version}, here {VERSION} is spoken")
    if found != step or slot >= SLOTS or (slot and step < Step.UNMASK) or not 1 <= n <= MOST:
        raise refuse("malformed", f"expected step {step:d}, got step {found}, slot {slot}, {n} members")
    if context and (block, n) != (context.block, context.n):
        wanted = f"expected block {context.block} of {context.n} members"
        raise refuse("secagg_context", f"{wanted}, got block {block} of {n}")
    return Message(slot, block, n, bytes(data[_FRAME.size :]))


def _wanted(message: Message, size: int, refuse: Refuse) -> None:
    if len(message.body) != size:
        raise refuse("malformed", f"expected a body of {size} bytes, got {len(message.body)}")


def opening(roster: bytes, t: int, spec: bytes) -> bytes:
    """The body of message 1."""
    return roster + struct.pack("<H", t) + spec


def read_opening(message: Message, refuse: Refuse) -> tuple[bytes, int, bytes]:
    """(roster digest, t, spec JSON) of message 1; the JSON is bytes to compare, nobody parses it."""
    if not 34 < len(message.body) <= 34 + MAX_SPEC_BYTES:
        raise refuse("malformed", f"expected a body of 35 to {34 + MAX_SPEC_BYTES} bytes, got {len(message.body)}")
    return message.body[:32], int.from_bytes(message.body[32:34], "little"), message.body[34:]


def signed_text(ctx: bytes, index: int, keys: Sequence[bytes]) -> bytes:
    """What a site signs of its keys."""
    return b"".join((TAG, b"keys", ctx, struct.pack("<H", index), *keys))


def _entry(index: int, body: bytes) -> Entry:
    keys = tuple(body[at : at + KEY_BYTES] for at in range(0, _KEYS_BYTES, KEY_BYTES))
    return Entry(index, keys, body[_KEYS_BYTES:])


def read_keys(message: Message, index: int, refuse: Refuse) -> Entry:
    """The keys of message 2, which came from the site of this index; the signature is not looked at."""
    _wanted(message, _KEYS_BYTES + SIGNATURE_BYTES, refuse)
    return _entry(index, message.body)


def book(entries: Sequence[Entry]) -> bytes:
    """The body of message 3, of entries whose indices rise."""
    return b"".join(struct.pack("<H", e.index) + e.body() for e in entries)


def read_book(message: Message, refuse: Refuse) -> tuple[Entry, ...]:
    """The entries of message 3, indices rising in 1 .. n; signatures are not looked at."""
    count, rest = divmod(len(message.body), ENTRY_BYTES)
    if rest or not 1 <= count <= message.n:
        raise refuse("malformed", f"expected 1 to {message.n} entries of {ENTRY_BYTES} bytes, got {len(message.body)}")
    parts = [message.body[at : at + ENTRY_BYTES] for at in range(0, len(message.body), ENTRY_BYTES)]
    found = tuple(_entry(int.from_bytes(p[:2], "little"), p[2:]) for p in parts)
    indices = [e.index for e in found]
    if indices != sorted(set(indices)) or not 1 <= indices[0] <= indices[-1] <= message.n:
        raise refuse("malformed", f"expected rising indices from 1 to {message.n} in a book")
    return found


def _boxes(body: bytes) -> tuple[bytes, ...]:
    return tuple(body[at : at + BOX_BYTES] for at in range(0, len(body), BOX_BYTES))


def read_shares(message: Message, others: int, refuse: Refuse) -> tuple[bytes, ...]:
    """The boxes of message 4, one for each of so many `others`."""
    _wanted(message, others * BOX_BYTES, refuse)
    return _boxes(message.body)


def bitmap(indices: Collection[int], n: int) -> bytes:
    """The sites of these indices, as bits.

    >>> bitmap([1, 3, 9], 9).hex()
    '0501'
    """
    return sum(1 << (i - 1) for i in indices).to_bytes(-(-n // 8), "little")


def _marked(bits: bytes, n: int, refuse: Refuse) -> tuple[int, ...]:
    if (marks := int.from_bytes(bits, "little")) >> n:
        raise refuse("malformed", f"bits beyond the {n} members")
    return tuple(i for i in range(1, n + 1) if marks >> (i - 1) & 1)


def read_delivery(message: Message, refuse: Refuse) -> tuple[tuple[int, ...], tuple[bytes, ...]]:
    """(indices of the dealers, the boxes of all of them but one, in their order) of message 5."""
    size = -(-message.n // 8)
    dealers = _marked(message.body[:size], message.n, refuse)
    _wanted(message, size + (max(len(dealers), 1) - 1) * BOX_BYTES, refuse)
    return dealers, _boxes(message.body[size:])


def read_ready(message: Message, refuse: Refuse) -> None:
    """Nothing, as message 6 says nothing more."""
    _wanted(message, 0, refuse)


def read_survivors(message: Message, refuse: Refuse) -> tuple[int, ...]:
    """Indices of the survivors of message 7."""
    _wanted(message, -(-message.n // 8), refuse)
    return _marked(message.body, message.n, refuse)


def read_opened(message: Message, dealers: int, refuse: Refuse) -> tuple[int, ...]:
    """The shares of message 8, one for each of so many `dealers`."""
    _wanted(message, dealers * shamir.SHARE_BYTES, refuse)
    words = range(0, len(message.body), shamir.SHARE_BYTES)
    values = tuple(int.from_bytes(message.body[at : at + shamir.SHARE_BYTES], "little") for at in words)
    if not all(0 < v < shamir.P for v in values):
        raise refuse("malformed", "a share is 0, or not below p")
    return values


def bytes_of_a_sum(n: int, dealers: int, spec_bytes: int) -> tuple[int, int]:
    """(up, down): what one sum costs each of its sites beside the masked vector, and a sixteenth of its block's set-up.

    Args:
        n: members of the block, all of whom send keys.
        dealers: those who deal shares.
        spec_bytes: length of the vector's specification as JSON.
    """
    bits, boxes = -(-n // 8), (n - 1) * BOX_BYTES
    set_up = (3 * FRAME_BYTES + _KEYS_BYTES + SIGNATURE_BYTES + boxes,
              3 * FRAME_BYTES + 34 + spec_bytes + n * ENTRY_BYTES + bits + boxes)  # fmt: skip
    opening = (FRAME_BYTES + dealers * shamir.SHARE_BYTES, FRAME_BYTES + bits)
    return set_up[0] // SLOTS + opening[0], set_up[1] // SLOTS + opening[1]
