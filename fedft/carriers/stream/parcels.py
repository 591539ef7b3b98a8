"""Messages of which a part is across, one way or the other."""

import io
from collections.abc import Sequence
from dataclasses import dataclass, field

from fedft.carriers.stream import frames
from fedft.carriers.stream.frames import Kind

GRACE_S, LEAST_S = 60.0, 64 * 1024  # seconds, and bytes a second after them, for a message that holds a place


@dataclass
class Parcel:
    """A message on its way out."""

    number: int
    kind: str
    parts: Sequence[bytes]
    """The message is these, one after the other; other messages may share them."""
    size: int
    offset: int = 0
    """Bytes that the peer has, or will have once the connection has brought them."""
    granted: bool = False
    """Whether the present connection was told to bring it."""

    def piece(self, most: int) -> bytes:
        """The frame of the next bytes, at most so many; moves on."""
        at, found, left = self.offset, [], most
        for part in self.parts:
            if at < len(part) and left:
                found.append(memoryview(part)[at : at + left])
                left -= len(found[-1])
            at = max(0, at - len(part))
        self.offset += most - left
        return frames.frame(Kind.PIECE, self.number, *found)


@dataclass
class Incoming:
    """A message on its way in, longer than INLINE_BYTES."""

    kind: str
    size: int
    got: io.BytesIO = field(default_factory=io.BytesIO)  # it hands its bytes over without a copy
    placed: bool = False
    """Whether it holds a place of the room."""
    since: float = 0.0
    """When it got that place, by the loop's clock."""
    granted: bool = False
    """Whether the present connection may bring the rest."""
    moved: float = 0.0
    """When anything of it last came, or it was granted."""

    def slow(self, now: float) -> bool:
        """Whether less of it has come than LEAST_S bytes a second, after the first GRACE_S seconds in its place."""
        return self.got.tell() < (now - self.since - GRACE_S) * LEAST_S
