"""What is on the wire: frames, in both directions, little endian, nothing between them.

    offset  bytes
         0      1   kind
         1      3   zero
         4      4   n, bytes of the body
         8      8   number of the message that the frame is about; 0 where it is about none
        16      n   body

    kind  1 HELLO    site, first   newest version of the protocol that it speaks (2), number of this start of the site
                                   (16), 1 if it only knocks (1), oldest version (2)
          2 WELCOME  server        the version that is spoken from now on (2), number of this start of the server (16)
          3 REFUSE   server        why, in ASCII; then the connection ends
          4 MESSAGE  both          size (8), bytes of the kind (1), kind; the message itself if it has at most INLINE
          5 GRANT    both          where to go on (8): there is room for the rest of the message
          6 PIECE    both          the next bytes of a message that was granted
          7 TAKEN    both          the message is here, whole
          8 DROP     both          why, in ASCII: the message is refused, or withdrawn with its answer
          9 PING    10 PONG        nothing
         11 BYE      site          it leaves, and forgets everything

These three, and the 16 bytes before every body, are the same in every version of the protocol (`fedft.wire.versions`):
nothing is agreed before them.

The server numbers its messages; an answer has the number of what it answers. After a connection broke, both sides say
MESSAGE again for what was not TAKEN, and GRANT says how much of it came. A receiver grants a message when it has room
for all of it, so no sender decides how much memory is taken. The bytes themselves are not summed up here: what is
carried is sealed, with a SHA-256 under its signature (`fedft.security.sealed`), and a wrong join is found there.
"""

import re
import struct
from collections.abc import Iterator
from enum import IntEnum

from fedft.wire import versions

PIECE_BYTES = 128 * 1024
INLINE_BYTES = 32 * 1024
MAX_WHY = 64
OTHER_VERSION = "version"
HEAD = struct.Struct("<B3xIQ")
HELLO = struct.Struct("<H16sBH")
WELCOME = struct.Struct("<H16s")
SIZE = struct.Struct("<QB")
OFFSET = struct.Struct("<Q")


class Kind(IntEnum):
    """The kinds of frames."""

    HELLO = 1
    WELCOME = 2
    REFUSE = 3
    MESSAGE = 4
    GRANT = 5
    PIECE = 6
    TAKEN = 7
    DROP = 8
    PING = 9
    PONG = 10
    BYE = 11


MOST = {
    Kind.HELLO: HELLO.size,
    Kind.WELCOME: WELCOME.size,
    Kind.REFUSE: MAX_WHY,
    Kind.MESSAGE: SIZE.size + 255 + INLINE_BYTES,
    Kind.GRANT: OFFSET.size,
    Kind.PIECE: PIECE_BYTES,
    Kind.TAKEN: 0,
    Kind.DROP: MAX_WHY,
    Kind.PING: 0,
    Kind.PONG: 0,
    Kind.BYE: 0,
}
"""Longest body, by kind."""


class Malformed(Exception):
    """The peer does not keep to the form."""


def frame(kind: Kind, number: int = 0, *body: bytes | memoryview) -> bytes:
    """The bytes of a frame; its body may come in parts."""
    return b"".join((HEAD.pack(kind, sum(map(len, body)), number), *body))


def hello(start: bytes, knocks: bool = False) -> bytes:
    """The body of HELLO by a site that speaks what is spoken here; `start` is the number of its start."""
    return HELLO.pack(versions.newest(), start, knocks, versions.oldest())


def other_version() -> str:
    """Why a site is refused that speaks no version which is spoken here; `versions_in` reads it."""
    return f"{OTHER_VERSION} {versions.oldest()} {versions.newest()}"


def versions_in(why: str) -> str | None:
    """What the other side speaks, and which side is to be updated, by the reason of a REFUSE; None for other reasons.

    >>> versions_in("version 8 9")
    'it speaks protocol 8 to 9, this side protocol 2: update this side'
    """
    if not (found := re.fullmatch(rf"{OTHER_VERSION} (\d{{1,5}}) (\d{{1,5}})", why)):
        return None
    first, last = int(found[1]), int(found[2])
    which = versions.older(last, "this side", "the server")
    return f"it speaks {versions.told(first, last)}, this side {versions.here()}: update {which}"


def announcement(number: int, kind: str, size: int, *inline: bytes | memoryview) -> bytes:
    """The bytes of a MESSAGE frame; `inline` is the message itself, in parts, where it is short."""
    name = kind.encode("ascii")
    return frame(Kind.MESSAGE, number, SIZE.pack(size, len(name)), name, *inline)


def announced(body: bytes) -> tuple[str, int, bytes]:
    """(kind, size, the message itself or nothing) of a MESSAGE. Raises Malformed."""
    try:
        size, n = SIZE.unpack_from(body)
        name, inline = body[SIZE.size : SIZE.size + n].decode("ascii"), body[SIZE.size + n :]
    except (struct.error, UnicodeDecodeError) as e:
        raise Malformed("a message without kind and size") from e
    if len(name) != n or len(inline) != (size if size <= INLINE_BYTES else 0):
        raise Malformed("a message whose size is not that of its bytes")
    return name, size, inline


class Reader:
    """Bytes as they come become frames; holds at most one frame that is no PIECE."""

    def __init__(self) -> None:
        self._held = bytearray()
        self._kind: Kind | None = None
        self._size = self._number = 0

    def feed(self, data: memoryview) -> Iterator[tuple[Kind, int, bytes | memoryview]]:
        """(kind, number, body) of each frame that is whole, and of pieces what is here of them, as views of `data`.

        Raises Malformed for what is no frame or longer than its kind allows, before its body is read.
        """
        while data:
            if self._kind is Kind.PIECE:
                part, data = data[: self._size], data[self._size :]
                self._size -= len(part)
                if not self._size:
                    self._kind = None
                yield Kind.PIECE, self._number, part
                continue
            missing = (HEAD.size if self._kind is None else self._size) - len(self._held)
            self._held += data[:missing]
            data = data[missing:]
            if self._kind is None and len(self._held) == HEAD.size:
                self._begin()
            if self._kind not in (None, Kind.PIECE) and len(self._held) == self._size:
                kind, body = self._kind, bytes(self._held)
                self._held.clear()
                self._kind = None
                yield kind, self._number, body

    def _begin(self) -> None:
        number, self._size, self._number = HEAD.unpack(self._held)
        if any(self._held[1:4]) or number not in Kind.__members__.values():
            raise Malformed("no frame")
        kind = Kind(number)
        if self._size > MOST[kind] or (kind is Kind.PIECE and not self._size):
            raise Malformed(f"a frame {kind.name} of {self._size} bytes")
        self._held.clear()
        self._kind = kind
