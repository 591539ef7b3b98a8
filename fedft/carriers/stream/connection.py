"""Frames over one TLS socket, in an event loop.

The socket is read and written by callbacks of the loop: asyncio's own TLS holds half a megabyte for each connection,
and this one nothing but what is being sent.
"""

import asyncio
import socket
import ssl
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from fedft.carriers.stream import frames
from fedft.carriers.stream.frames import Kind, Malformed, Reader

RECORD = 16384  # of TLS: no read gives more
READS, WRITES = 8, 4  # before the other connections have their turn
UNREAD = 64 * 1024  # bytes of short frames that wait for a peer to read them: then it is no use
FINAL_S = 5.0  # for a last word to leave

OnFrame = Callable[["Connection", Kind, int, bytes | memoryview], None]
OnLost = Callable[["Connection", str], None]


class Connection:
    """One connection, its handshake done. Used in its loop's thread alone.

    Args:
        loop: whose callbacks read and write.
        sock: not blocking; the connection's own from now on.
        on_frame: hears of each frame. May raise Malformed.
        on_lost: hears once of the end, with the reason; not of one by `close`.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, sock: ssl.SSLSocket, on_frame: OnFrame, on_lost: OnLost
    ) -> None:
        self.on_frame, self.on_lost = on_frame, on_lost
        self.source: Callable[[], bytes | None] = lambda: None
        """Gives the next frame of what is sent when there is nothing more urgent."""
        self.heard = loop.time()
        """When the peer was last heard, by the loop's clock."""
        self.closed = False
        self._loop, self._sock, self._fd = loop, sock, sock.fileno()
        self._reader = Reader()
        self._urgent: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._sending: memoryview | None = None
        self._writing = self._last = False
        loop.add_reader(self._fd, self._readable)
        if sock.pending():
            loop.call_soon(self._readable)

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
            self._last = True
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
            with suppress(OSError):
                self._sock.close()
            self._urgent.clear()
            self._sending = None

    def lose(self, why: str) -> None:
        """End the connection and tell its owner."""
        if not self.closed:
            self.close()
            self.on_lost(self, why)

    def _readable(self) -> None:
        for _ in range(READS):
            if self.closed:
                return
            try:
                data = self._sock.recv(RECORD)
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError, BlockingIOError):
                return
            except OSError as e:
                return self.lose(said(e))
            if not data:
                return self.lose("the connection was closed")
            self.heard = self._loop.time()
            try:
                for kind, number, body in self._reader.feed(memoryview(data)):
                    self.on_frame(self, kind, number, body)
                    if self.closed:
                        return
            except Malformed as e:
                return self.lose(str(e))
        self._loop.call_soon(self._readable)  # what TLS has read already wakes nobody

    def _writable(self) -> None:
        try:
            for _ in range(WRITES):
                if self._sending is None and (following := self._next()) is not None:
                    self._sending = memoryview(following)
                if self._sending is None:
                    self._watch(False)
                    if self._last:
                        self._sock.shutdown(socket.SHUT_WR)
                        self._last = False
                    return
                sent = self._sock.send(self._sending)
                self._sending = self._sending[sent:] if sent < len(self._sending) else None
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError, BlockingIOError):
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
