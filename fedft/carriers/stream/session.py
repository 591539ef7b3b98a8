"""Messages to and from one peer. They outlive connections: after one broke, they go on where they were.

    session = Session(loop.time, room, take=..., drop=...)
    session.attach(connection)          what is not across is announced again
    session.send(7, "train", [head, body])

Used in the thread of the connection's loop alone.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from fedft.carriers.stream import frames
from fedft.carriers.stream.connection import Connection
from fedft.carriers.stream.frames import Kind, Malformed
from fedft.carriers.stream.parcels import Incoming, Parcel
from fedft.carriers.stream.room import Room


@dataclass
class Session:
    """What two ends have to say to each other; see the module's docstring.

    Frames that are none of these (HELLO, PING and so on) are for the owner, who calls `hear` with the others.
    """

    now: Callable[[], float]
    """The loop's clock, in seconds."""
    room: Room
    wanted: Callable[[int, int], str]
    """(number, size) of a message that is announced: "" takes it, "taken" says that it is here, else a reason."""
    take: Callable[[int, str, bytes, bool], None]
    """(number, kind, bytes, whether it holds a place of the room) of a message that is here, whole."""
    gone: Callable[[int, str], None]
    """(number, reason) of a message that the peer does not take, or no longer."""
    left: Callable[[int], None] = lambda number: None
    """Number of a message that the peer has, whole."""
    connection: Connection | None = None
    _out: dict[int, Parcel] = field(default_factory=dict)
    _new: deque[Parcel] = field(default_factory=deque)
    """Messages that the present connection has not announced."""
    _granted: deque[Parcel] = field(default_factory=deque)
    _in: dict[int, Incoming] = field(default_factory=dict)

    # Connections

    def attach(self, connection: Connection) -> None:
        """Go on over this connection."""
        self.detach()
        self.connection = connection
        connection.trust()
        connection.source = self._source
        self._new.extend(self._out.values())
        connection.pump()

    def detach(self) -> None:
        """The connection is gone: nothing is granted any more, and what has come stays."""
        self.connection = None
        self._new.clear()
        self._granted.clear()
        for parcel in self._out.values():
            parcel.granted = False
        for number, incoming in list(self._in.items()):
            incoming.granted = False
            if not incoming.placed:
                self._lose(number)  # it is announced again

    def end(self) -> None:
        """Forget all messages: the peer, as it was, is no more."""
        self.detach()
        self._out.clear()
        for number in list(self._in):
            self._lose(number)

    # Out

    def send(self, number: int, kind: str, parts: Sequence[bytes]) -> None:
        """Send a message, now or when there is a connection; one for each number."""
        parcel = self._out[number] = Parcel(number, kind, parts, sum(map(len, parts)))
        if self.connection:
            self._new.append(parcel)
            self.connection.pump()

    def withdraw(self, number: int, why: str = "withdrawn") -> None:
        """Give up a message of this number, whichever way it goes, and tell the peer."""
        self._forget(number)
        if self.connection:
            self.connection.say(Kind.DROP, number, why.encode("ascii"))

    def sending(self) -> int:
        """Bytes of messages that the peer does not have yet."""
        return sum(parcel.size for parcel in self._out.values())

    def coming(self) -> int:
        """How many messages are on their way in, or wait for room."""
        return len(self._in)

    def _source(self) -> bytes | None:
        """The next frame: announcements, then pieces in turn, so that a short message does not wait for a long one."""
        while self._new:
            parcel = self._new.popleft()
            if self._out.get(parcel.number) is parcel:
                inline = parcel.parts if parcel.size <= frames.INLINE_BYTES else ()
                return frames.announcement(parcel.number, parcel.kind, parcel.size, *inline)
        while self._granted:
            parcel = self._granted.popleft()
            if self._out.get(parcel.number) is parcel:
                piece = parcel.piece(frames.PIECE_BYTES)
                if parcel.offset < parcel.size:
                    self._granted.append(parcel)
                return piece
        return None

    # In

    def hear(self, kind: Kind, number: int, body: bytes | memoryview) -> None:
        """Take a frame. Raises Malformed for what no honest peer sends."""
        if kind is Kind.MESSAGE:
            self._announced(number, *frames.announced(bytes(body)))
        elif kind is Kind.PIECE:
            self._piece(number, body)
        elif kind is Kind.GRANT:
            self._grant(number, body)
        elif kind is Kind.TAKEN:
            if self._out.pop(number, None):
                self.left(number)
        elif kind is Kind.DROP:
            self._forget(number)
            self.gone(number, "".join(c for c in bytes(body).decode("ascii", "replace") if c.isprintable()))
        else:
            raise Malformed(f"a frame {kind.name} where none belongs")

    def late(self, now: float, still_s: float) -> bool:
        """Forget messages that hold a place of the room and come too slowly, or not at all for `still_s` seconds.

        Returns whether there were any. If there is a connection it is of no use any more: it was told to bring what is
        forgotten now. When it comes back, the message is announced again, and waits behind the others.
        """
        late = [n for n, x in self._in.items() if x.placed and (x.moved < now - still_s or x.slow(now))]
        for number in late:
            self._lose(number)
        return bool(late)

    def _announced(self, number: int, kind: str, size: int, inline: bytes) -> None:
        assert self.connection
        known = self._in.get(number)
        if known is not None and (known.kind, known.size) != (kind, size):
            raise Malformed("a message that is not what it was")
        if why := self.wanted(number, size) if known is None else "":
            self._lose(number)
            self.connection.say(*(Kind.TAKEN, number) if why == "taken" else (Kind.DROP, number, why.encode("ascii")))
        elif size <= frames.INLINE_BYTES:
            self.connection.say(Kind.TAKEN, number)
            self.take(number, kind, inline, False)
        else:
            if known is not None and known.granted:
                raise Malformed("a message that was announced already")
            self._in[number] = known or Incoming(kind, size)
            self.room.ask((id(self), number), size, lambda: self._place(number))

    def _place(self, number: int) -> None:
        """There is room for the message."""
        incoming = self._in[number]
        if not incoming.placed:
            incoming.placed, incoming.since = True, self.now()
        if self.connection and not incoming.granted:
            incoming.granted, incoming.moved = True, self.now()
            self.connection.say(Kind.GRANT, number, frames.OFFSET.pack(incoming.got.tell()))

    def _piece(self, number: int, body: bytes | memoryview) -> None:
        incoming = self._in.get(number)
        if incoming is None:
            return  # given up while it was on its way
        if not incoming.granted or incoming.got.tell() + len(body) > incoming.size:
            raise Malformed("bytes that were not granted")
        incoming.got.write(body)
        incoming.moved = self.now()
        if incoming.got.tell() == incoming.size and self.connection:
            del self._in[number]
            self.connection.say(Kind.TAKEN, number)
            self.take(number, incoming.kind, incoming.got.getvalue(), True)

    def _grant(self, number: int, body: bytes | memoryview) -> None:
        parcel = self._out.get(number)
        (have,) = frames.OFFSET.unpack(body) if len(body) == frames.OFFSET.size else (-1,)
        if parcel is not None and self.connection:
            if not 0 <= have < parcel.size or parcel.granted:
                raise Malformed("a grant of what is not there, or was granted before")
            parcel.offset, parcel.granted = have, True
            self._granted.append(parcel)
            self.connection.pump()

    def free(self, number: int) -> None:
        """Give back the place that a message which is here held."""
        self.room.free((id(self), number))

    def _forget(self, number: int) -> None:
        self._out.pop(number, None)
        self._lose(number)

    def _lose(self, number: int) -> None:
        """Forget what has come of a message that is not whole."""
        if self._in.pop(number, None):
            self.free(number)
