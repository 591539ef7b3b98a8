"""Who may connect: strangers are few, short and cheap, and make room for those who come after them.

    accepted  -> a whole ClientHello -> TLS handshake, with a key of the roster -> HELLO      all of it within FIRST_S

Before HELLO a connection is a stranger's. Until its ClientHello is here, whole, it costs a file and no memory of ours;
of these there may be SILENT. In the handshake each costs some 50 KiB; of these there may be SHAKING. One more takes the
place of one that has not come as far, of addresses from which no site has come before others, the oldest first. So
silent strangers cannot shut the port.
"""

import asyncio
import ipaddress
import logging
import socket
import ssl
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

from fedft.carriers.stream import frames, tls
from fedft.carriers.stream.connection import Connection
from fedft.carriers.stream.frames import Kind, Malformed
from fedft.wire import versions

log = logging.getLogger(__name__)

FIRST_S = 10.0  # from being accepted to HELLO
SILENT, SHAKING = (2048, 1024), (512, 128)
"""Most strangers in all, and from one address (IPv6: one /64): sites behind one router begin together."""
MAX_HELLO = 4096  # bytes of a ClientHello; ours has some 300
AGAIN_S = 0.2  # until somebody is looked at again who has sent a part of it
ACCEPTS = 64  # before the others have their turn
SEEN = 4096  # addresses from which a site has come, remembered
FULL_S = 0.2  # to wait where the system has no more files
REPLACED, UNKNOWN = "replaced", "unknown"
"""Reasons of REFUSE, beside `frames.other_version`."""


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
    refused: bool = False
    left: bool = False

    def far(self) -> int:
        """How far it has come: not as a site does, a ClientHello of ours, the handshake."""
        if self.refused or self.tls is None or self.tls.selected_alpn_protocol() is None:
            return 0
        return 2 if self.connection else 1


class Places:
    """Strangers of one kind, the oldest first."""

    def __init__(self, most: int, per_address: int) -> None:
        self._most, self._per_address = most, per_address
        self._there: OrderedDict[Stranger, None] = OrderedDict()
        self._of: Counter[str] = Counter()

    def __iter__(self) -> Iterator[Stranger]:
        return iter(list(self._there))

    def enter(self, stranger: Stranger) -> str | None:
        """Take a stranger in: None if there is room, "" if somebody must leave, else the address of which."""
        self._there[stranger] = None
        self._of[stranger.address] += 1
        if self._of[stranger.address] > self._per_address:
            return stranger.address
        return "" if len(self._there) > self._most else None

    def leave(self, stranger: Stranger) -> None:
        """Let a stranger go, if it is here."""
        if stranger in self._there:
            del self._there[stranger]
            self._of[stranger.address] -= 1
            if not self._of[stranger.address]:
                del self._of[stranger.address]

    def oldest(self) -> Stranger | None:
        """Who has been here the longest."""
        return next(iter(self._there), None)

    def worst(self, address: str, seen: Collection[str]) -> Stranger | None:
        """Who should leave first, of this address or ("") of all."""
        rank = lambda s: (s.far(), s.address in seen)  # noqa: E731
        found: Stranger | None = None
        for stranger in self._there:
            if address in ("", stranger.address) and (found is None or rank(stranger) < rank(found)):
                found = stranger
                if rank(found) == (0, False):
                    break
        return found


@dataclass
class Front:
    """Accepts connections, and hands over those of keys that are known. Used in its loop's thread alone."""

    loop: asyncio.AbstractEventLoop
    listener: socket.socket
    """Listens, and does not block."""
    context: ssl.SSLContext
    known: Callable[[bytes], bool]
    """Whether a public key is one of the roster's."""
    welcome: Callable[[Connection, bytes, bytes, int], None]
    """Takes (connection, key, number of this start of the site, version agreed) of somebody who is known."""
    epoch: bytes
    """Number of this start of the server, 16 bytes."""
    _silent: Places = field(default_factory=lambda: Places(*SILENT))
    _shaking: Places = field(default_factory=lambda: Places(*SHAKING))
    _seen: OrderedDict[str, None] = field(default_factory=OrderedDict)
    _told: set[str] = field(default_factory=set)

    def start(self) -> None:
        """Accept from now on."""
        self.loop.add_reader(self.listener, self._accept)

    def close(self) -> None:
        """Accept no more, and leave all strangers."""
        self.loop.remove_reader(self.listener)
        self.listener.close()
        for stranger in (*self._silent, *self._shaking):
            self._leave(stranger)

    def tick(self) -> None:
        """Leave strangers that took too long; to be called about once a second."""
        late = self.loop.time() - FIRST_S
        for places in (self._silent, self._shaking):
            while (oldest := places.oldest()) and oldest.since < late:
                self._leave(oldest)

    def _accept(self) -> None:
        for _ in range(ACCEPTS):
            try:
                sock, peer = self.listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as e:  # no more files: strangers hold some
                log.warning("a connection cannot be accepted: %s", e.strerror)
                self._make_room(self._silent, "")
                self.loop.remove_reader(self.listener)
                self.loop.call_later(FULL_S, self._resume)
                return
            sock.setblocking(False)
            with suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            stranger = Stranger(sock, sock.fileno(), _network(peer[0]), self.loop.time())
            self.loop.add_reader(stranger.fd, self._begins, stranger)
            self._make_room(self._silent, self._silent.enter(stranger))

    def _resume(self) -> None:
        if self.listener.fileno() >= 0:
            self.loop.add_reader(self.listener, self._accept)

    def _make_room(self, places: Places, address: str | None) -> None:
        if address is not None and (worst := places.worst(address, self._seen)):
            self._leave(worst)

    def _begins(self, stranger: Stranger) -> None:
        """Something has come: begin the handshake if it is a whole ClientHello."""
        try:
            head = stranger.sock.recv(MAX_HELLO, socket.MSG_PEEK)
            size = int.from_bytes(head[3:5], "big") + 5
            if not head or not b"\x16\x03".startswith(head[:2]) or size > MAX_HELLO:
                return self._leave(stranger)
            self.loop.remove_reader(stranger.fd)
            if len(head) < max(size, 6):
                self.loop.call_later(AGAIN_S, self._wait, stranger)
                return
            stranger.tls = self.context.wrap_socket(stranger.sock, server_side=True, do_handshake_on_connect=False)
        except BlockingIOError:
            return
        except OSError:
            return self._leave(stranger)
        self._silent.leave(stranger)
        full = self._shaking.enter(stranger)
        self.loop.add_reader(stranger.fd, self._shake, stranger)
        self._shake(stranger)
        if not stranger.left:  # it is told apart from others by what it has said
            self._make_room(self._shaking, full)

    def _wait(self, stranger: Stranger) -> None:
        if not stranger.left:
            self.loop.add_reader(stranger.fd, self._begins, stranger)

    def _shake(self, stranger: Stranger) -> None:
        """Go on with the handshake."""
        assert stranger.tls
        try:
            stranger.tls.do_handshake()
        except ssl.SSLWantReadError:
            self.loop.remove_writer(stranger.fd)
        except ssl.SSLWantWriteError:
            self.loop.add_writer(stranger.fd, self._shake, stranger)
        except OSError:
            self._leave(stranger)
        else:
            self.loop.remove_writer(stranger.fd)
            stranger.key = tls.key_of(stranger.tls.getpeercert(binary_form=True)) or b""
            on_frame = lambda c, kind, _, body: self._hello(stranger, c, kind, bytes(body))  # noqa: E731
            stranger.connection = Connection(self.loop, stranger.tls, on_frame, lambda *_: self._leave(stranger))
            if not self.known(stranger.key):
                stranger.refused = True  # it counts until that has left
                stranger.connection.refuse(UNKNOWN)

    def _hello(self, stranger: Stranger, connection: Connection, kind: Kind, body: bytes) -> None:
        if kind is not Kind.HELLO or len(body) != frames.HELLO.size:
            raise Malformed("it does not say HELLO first")
        newest, start, knocks, oldest = frames.HELLO.unpack(body)
        if (version := versions.common(oldest, newest)) is None:
            said = f"a site at {stranger.address} speaks {versions.told(oldest, newest)}, this server {versions.here()}"
            if said not in self._told and len(self._told) < SEEN:
                self._told.add(said)
                log.warning("%s: update %s", said, versions.older(newest, "this server", "the site"))
            return connection.refuse(frames.other_version())
        self._seen[stranger.address] = None
        self._seen.move_to_end(stranger.address)
        while len(self._seen) > SEEN:
            self._seen.popitem(last=False)
        connection.say(Kind.WELCOME, 0, frames.WELCOME.pack(version, self.epoch))
        if not knocks and not connection.closed:
            self._forget(stranger)
            self.welcome(connection, stranger.key, start, version)

    def _leave(self, stranger: Stranger) -> None:
        self._forget(stranger)
        if stranger.connection:
            stranger.connection.close()
        elif not stranger.left:
            self.loop.remove_reader(stranger.fd)
            self.loop.remove_writer(stranger.fd)
            (stranger.tls or stranger.sock).close()
        stranger.left = True

    def _forget(self, stranger: Stranger) -> None:
        self._silent.leave(stranger)
        self._shaking.leave(stranger)


def _network(host: str) -> str:
    """What counts as one address."""
    address = ipaddress.ip_address(host.partition("%")[0])
    return host if address.version == 4 else str(ipaddress.ip_network((address, 64), strict=False))
