"""Who may connect: strangers are few, short and cheap, and make room for those who come after them.

    accepted  -> its first bytes -> TLS handshake, with the key of the roster -> HELLO     all of it within FIRST_S

Before HELLO a connection is a stranger's. Of those there are at most MOST in all and PER_ADDRESS from one address; one
more takes the place of one that has said nothing, the oldest first, and of addresses from which no site has come
before all others. So silent strangers cannot shut the port, and one who says nothing costs a file and no memory.
"""

import asyncio
import ipaddress
import logging
import socket
import ssl
from collections import Counter, OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from fedft.carriers.stream import frames, tls
from fedft.carriers.stream.connection import Connection
from fedft.carriers.stream.frames import Kind, Malformed

log = logging.getLogger(__name__)

FIRST_S = 10.0  # from being accepted to HELLO
MOST = 512  # strangers at once
PER_ADDRESS = 128  # of them from one address (IPv6: one /64): sites behind one router begin together
ACCEPTS = 64  # before the others have their turn
SEEN = 4096  # addresses from which a site has come, remembered
FULL_S = 0.2  # to wait where the system has no more files
REPLACED, UNKNOWN, VERSION = "replaced", "unknown", "version"
"""Reasons of REFUSE."""


@dataclass(eq=False)
class Stranger:
    """A connection that has not said who it is."""

    sock: socket.socket
    fd: int
    address: str
    since: float
    tls: ssl.SSLSocket | None = None
    connection: Connection | None = None
    key: bytes = b""


@dataclass
class Front:
    """Accepts connections, and hands over those of keys that are known. Used in its loop's thread alone."""

    loop: asyncio.AbstractEventLoop
    listener: socket.socket
    """Listens, and does not block."""
    context: ssl.SSLContext
    known: Callable[[bytes], bool]
    """Whether a public key is one of the roster's."""
    welcome: Callable[[Connection, bytes, bytes], None]
    """Takes (connection, key, number of this start of the site) of somebody who is known."""
    epoch: bytes
    """Number of this start of the server, 16 bytes."""
    _strangers: OrderedDict[Stranger, None] = field(default_factory=OrderedDict)
    _from: Counter[str] = field(default_factory=Counter)
    _seen: OrderedDict[str, None] = field(default_factory=OrderedDict)

    def start(self) -> None:
        """Accept from now on."""
        self.loop.add_reader(self.listener, self._accept)

    def close(self) -> None:
        """Accept no more, and leave all strangers."""
        self.loop.remove_reader(self.listener)
        self.listener.close()
        for stranger in list(self._strangers):
            self._leave(stranger)

    def tick(self) -> None:
        """Leave strangers that took too long; to be called about once a second."""
        now = self.loop.time()
        while self._strangers and (oldest := next(iter(self._strangers))).since < now - FIRST_S:
            self._leave(oldest)

    def _accept(self) -> None:
        for _ in range(ACCEPTS):
            try:
                sock, peer = self.listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as e:  # no more files: strangers hold some
                log.warning("a connection cannot be accepted: %s", e.strerror)
                self._make_room(None)
                self.loop.remove_reader(self.listener)
                self.loop.call_later(FULL_S, self._resume)
                return
            sock.setblocking(False)
            with suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            stranger = Stranger(sock, sock.fileno(), _network(peer[0]), self.loop.time())
            if self._from[stranger.address] >= PER_ADDRESS:
                self._make_room(stranger.address)
            elif len(self._strangers) >= MOST:
                self._make_room(None)
            self._strangers[stranger] = None
            self._from[stranger.address] += 1
            self.loop.add_reader(stranger.fd, self._speaks, stranger)

    def _resume(self) -> None:
        if self.listener.fileno() >= 0:
            self.loop.add_reader(self.listener, self._accept)

    def _make_room(self, address: str | None) -> None:
        """Leave one stranger of this address, or of any."""
        there = [s for s in self._strangers if address in (None, s.address)]
        if there:
            self._leave(min(there, key=lambda s: (s.tls is not None, s.address in self._seen)))  # the first: the oldest

    def _speaks(self, stranger: Stranger) -> None:
        """The first bytes, and then what the handshake waits for."""
        try:
            if stranger.tls is None:
                stranger.tls = self.context.wrap_socket(stranger.sock, server_side=True, do_handshake_on_connect=False)
            stranger.tls.do_handshake()
        except ssl.SSLWantReadError:
            self.loop.remove_writer(stranger.fd)
        except ssl.SSLWantWriteError:
            self.loop.add_writer(stranger.fd, self._speaks, stranger)
        except OSError:
            self._leave(stranger)
        else:
            self.loop.remove_writer(stranger.fd)
            stranger.key = tls.key_of(stranger.tls.getpeercert(binary_form=True)) or b""
            on_frame = lambda c, kind, _, body: self._hello(stranger, c, kind, bytes(body))  # noqa: E731
            stranger.connection = Connection(self.loop, stranger.tls, on_frame, lambda *_: self._leave(stranger))
            if not self.known(stranger.key):
                stranger.connection.refuse(UNKNOWN)  # until that has left it counts

    def _hello(self, stranger: Stranger, connection: Connection, kind: Kind, body: bytes) -> None:
        if kind is not Kind.HELLO or len(body) != frames.HELLO.size:
            raise Malformed("it does not say HELLO first")
        version, start, knocks = frames.HELLO.unpack(body)
        if version != frames.VERSION:
            return connection.refuse(VERSION)
        self._seen[stranger.address] = None
        self._seen.move_to_end(stranger.address)
        while len(self._seen) > SEEN:
            self._seen.popitem(last=False)
        connection.say(Kind.WELCOME, 0, frames.WELCOME.pack(frames.VERSION, self.epoch))
        if not knocks and not connection.closed:
            self._forget(stranger)
            self.welcome(connection, stranger.key, start)

    def _leave(self, stranger: Stranger) -> None:
        self._forget(stranger)
        if stranger.connection:
            stranger.connection.close()
        else:
            self.loop.remove_reader(stranger.fd)
            self.loop.remove_writer(stranger.fd)
            (stranger.tls or stranger.sock).close()

    def _forget(self, stranger: Stranger) -> None:
        if self._strangers.pop(stranger, stranger) is None:
            self._from[stranger.address] -= 1
            self._from += Counter()  # without those of none


def _network(host: str) -> str:
    """What counts as one address."""
    address = ipaddress.ip_address(host.partition("%")[0])
    return host if address.version == 4 else str(ipaddress.ip_network((address, 64), strict=False))
