"""A bounded rate below TLS: `[site] max_mbit_s`.

    TLS <-> near end of a pair | far end <-> two threads, one for each way <-> the socket to the server

What is counted is all that the network carries for the connection but the headers of TCP and IP: TLS, keep-alive and
handshake too. Who sends too fast waits, as on a slow line; nothing else notices.
"""

import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress

BURST_S = 0.05  # of the rate that may go at once: any second then carries at most a tenth more
CHUNK = 1024, 16384  # bytes that go at once, at least and at most
HELD_S = 0.125  # of the rate that the system takes in before we have read it: the sender is told to wait then
LEAST = 16384  # bytes of a buffer of the system
MBIT = 1_000_000 / 8  # bytes a second


class Bucket:
    """Tokens for bytes: `rate` a second come in, at most BURST_S of them are kept. Used by one thread."""

    def __init__(
        self,
        rate: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._rate, self._clock, self._sleep = rate, clock, sleep
        self._most = self._left = rate * BURST_S
        self._looked = clock()

    def take(self, count: int) -> None:
        """Return when `count` bytes may go."""
        now = self._clock()
        self._left = min(self._most, self._left + (now - self._looked) * self._rate) - count
        self._looked = now
        if self._left < 0:
            self._sleep(-self._left / self._rate)


def paced(sock: socket.socket, bytes_s: float) -> socket.socket:
    """A socket to use in place of `sock`, which is handed over: it carries at most `bytes_s` bytes a second each way.

    It has the timeout of `sock`. Once either is closed, the other is when it has said all that was on its way.
    """
    near, far = socket.socketpair()
    held = max(LEAST, int(bytes_s * HELD_S))
    for end, option in ((near, socket.SO_SNDBUF), (far, socket.SO_SNDBUF), (sock, socket.SO_RCVBUF)):
        end.setsockopt(socket.SOL_SOCKET, option, held)
    near.settimeout(sock.gettimeout())
    sock.settimeout(None)
    chunk = min(max(CHUNK[0], int(bytes_s * BURST_S)), CHUNK[1])
    ways = [threading.Thread(target=_pour, args=[*ends, Bucket(bytes_s), chunk], daemon=True, name="pace")
            for ends in ((far, sock), (sock, far))]  # fmt: skip
    for way in ways:
        way.start()
    threading.Thread(target=_close, args=[ways, far, sock], daemon=True, name="pace").start()
    return near


def _pour(source: socket.socket, to: socket.socket, bucket: Bucket, chunk: int) -> None:
    """Carry bytes one way until there are no more."""
    try:
        while data := source.recv(chunk):
            bucket.take(len(data))
            to.sendall(data)
    except OSError:
        with suppress(OSError):
            source.shutdown(socket.SHUT_RDWR)
    with suppress(OSError):
        to.shutdown(socket.SHUT_WR)


def _close(ways: list[threading.Thread], *ends: socket.socket) -> None:
    for way in ways:
        way.join()
    for end in ends:
        end.close()
