"""Frames over one TLS socket, in an event loop.

The socket is read and written by callbacks of the loop: asyncio's own TLS holds half a megabyte for each connection,
and this one what it reads and writes at a time. Who says much in little, be it short frames, small records or new keys
of TLS, is read no faster than SMALL allows, and the others notice nothing of it.
"""

import asyncio
from collections import deque
from collections.abc import Callable

from fedft.carriers.stream import frames
from fedft.carriers.stream.allowance import Allowance
from fedft.carriers.stream.channel import Channel
from fedft.carriers.stream.frames import Kind, Malformed, Reader

READS, WRITES = 8, 16  # before the other connections have their turn
UNREAD = 64 * 1024  # bytes of short frames that wait for a peer to read them: then it is no use
FINAL_S, FINAL_READS = 5.0, 16  # for a last word to leave; records that are still read until then
SMALL = 2000.0, 8000.0  # short frames and small records a second, and at once; an honest round has ten
STRANGE = 10.0, 100.0  # the same from one who has not said who it is
RECORD_BYTES = 22  # of a record beside what is in it
LARGE_BYTES = 4096  # received pay for a frame or a record

OnFrame = Callable[["Connection", Kind, int, bytes | memoryview], None]
OnLost = Callable[["Connection", str], None]


class Connection:
    """One connection, its handshake done. Used in its loop's thread alone.

    Args:
        loop: whose callbacks read and write.
        channel: not blocking, its handshake done; the connection's own from now on.
        on_frame: hears of each frame. May raise Malformed.
        on_lost: hears once of the end, with the reason; not of one by `close`.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, channel: Channel, on_frame: OnFrame, on_lost: OnLost) -> None:
        self.on_frame, self.on_lost = on_frame, on_lost
        self.source: Callable[[], bytes | None] = lambda: None
        """Gives the next frame of what is sent when there is nothing more urgent."""
        self.heard = self.since = loop.time()
        """When the peer was last heard, and when it came, by the loop's clock."""
        self.closed = False
        self.slowed = 0
        """How many times the peer was not read for a while, because it said too much in too little."""
        self._loop, self._channel, self._fd = loop, channel, channel.fileno()
        self._small = Allowance(*STRANGE, self.heard)
        self._overhead = channel.overhead
        self._reads: int | None = None
        self._reader = Reader()
        self._urgent: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._sending: memoryview | None = None
        self._writing = self._last = False
        loop.add_reader(self._fd, self._readable)
        loop.call_soon(self._readable)  # some may be here already

    def trust(self) -> None:
        """Let the peer say as much as one does who is known."""
        self._small = Allowance(*SMALL, self._loop.time())

    def say(self, kind: Kind, number: int = 0, body: bytes = b"") -> None:
        """Send a short frame before all that `source` has. A peer that does not read is left."""
        frame = frames.frame(kind, number, body)
        self._urgent.append(frame)
        self._waiting_bytes += len(frame)
        if self._waiting_bytes > UNREAD:
            self.lose("it does not read what it is sent")
        else:
            self.pump()

    def refuse(self, why: str) -> None:
        """Say REFUSE, and end the connection when that has left, or after a while."""
        if not self.closed:
            self._last, self._reads = True, FINAL_READS
            self.source = lambda: None
            self.on_frame, self.on_lost = lambda *_: None, lambda *_: None
            self._loop.call_later(FINAL_S, self.close)
            self.say(Kind.REFUSE, 0, why.encode("ascii"))

    def pump(self) -> None:
        """Send what there is, as far as the socket takes it."""
        if not self._writing and not self.closed:
            self._writable()

    def close(self) -> None:
        """End the connection; nobody is told."""
        if not self.closed:
            self.closed = True
            self._loop.remove_reader(self._fd)
            self._loop.remove_writer(self._fd)
            self._channel.close()
            self.on_frame, self.on_lost, self.source = lambda *_: None, lambda *_: None, lambda: None  # they hold us
            self._urgent.clear()
            self._sending = None

    def lose(self, why: str) -> None:
        """End the connection and tell its owner."""
        if not self.closed:
            on_lost = self.on_lost
            self.close()
            on_lost(self, why)

    def _readable(self) -> None:
        for _ in range(READS):
            if self.closed:
                return
            try:
                data = self._channel.recv()
            except BlockingIOError:
                if wait := self._paid(0, 0):
                    self._rest(wait)
                return
            except OSError as e:
                return self.lose(said(e))
            if not data:
                return self.lose("the connection was closed")
            self.heard = self._loop.time()
            found = 0
            try:
                for kind, number, body in self._reader.feed(memoryview(data)):
                    found += 1
                    self.on_frame(self, kind, number, body)
                    if self.closed:
                        return
            except Malformed as e:
                return self.lose(str(e))
            if wait := self._paid(found, len(data)):
                return self._rest(wait)
            if self._reads is not None:
                self._reads -= 1
                if self._reads < 0:
                    return self.close()
        self._loop.call_soon(self._readable)  # what TLS has read already wakes nobody

    def _paid(self, found: int, size: int) -> float:
        """Count frames, and what TLS needed beside them; how many seconds the peer is not to be read for."""
        overhead, self._overhead = self._channel.overhead - self._overhead, self._channel.overhead
        return self._small.spend(found + overhead / RECORD_BYTES - size / LARGE_BYTES, self._loop.time())

    def _rest(self, seconds: float) -> None:
        """Read no more for a while."""
        self.slowed += 1
        self._loop.remove_reader(self._fd)
        self._loop.call_later(seconds, self._go_on)

    def _go_on(self) -> None:
        if not self.closed:
            self._loop.add_reader(self._fd, self._readable)
            self._readable()

    def _writable(self) -> None:
        try:
            for _ in range(WRITES):
                if self._sending is None and (following := self._next()) is not None:
                    self._sending = memoryview(following)
                if self._sending is None:
                    if not self._channel.flush():
                        break
                    self._watch(False)
                    if self._last:
                        self._channel.shutdown()
                        self._last = False
                    return
                sent = self._channel.send(self._sending)
                self._sending = self._sending[sent:] if sent < len(self._sending) else None
        except BlockingIOError:
            pass
        except OSError as e:
            return self.lose(said(e))
        self._watch(True)

    def _next(self) -> bytes | None:
        if self._urgent:
            joined = b"".join(self._urgent)
            self._urgent.clear()
            self._waiting_bytes = 0
            return joined
        return self.source()

    def _watch(self, on: bool) -> None:
        if on and not self._writing:
            self._loop.add_writer(self._fd, self._writable)
        elif self._writing and not on:
            self._loop.remove_writer(self._fd)
        self._writing = on


def said(e: OSError) -> str:
    """An error of a socket in a few words."""
    return (getattr(e, "reason", None) or e.strerror or type(e).__name__)[:200]
