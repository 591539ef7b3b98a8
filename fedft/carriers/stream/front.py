"""Who may connect: strangers are few, short and cheap, and make room for those who come after them.

    accepted  -> a whole ClientHello -> TLS handshake, with a key of the roster -> HELLO      all of it within FIRST_S

Before HELLO a connection is a stranger's. Until its ClientHello is here, whole, it costs a file and no memory of ours;
of these there may be SILENT. In the handshake each costs some 50 KiB; of these there may be SHAKING. One more takes the
place of one that has not come as far, of addresses from which no site has come before others, the oldest first. So
silent strangers cannot shut the port. A step of a handshake is followed by whatever the sites have, and addresses take
turns, so that noisy ones cannot either. A key that comes again and again is told to come later.
"""

import asyncio
import logging
import socket
import ssl
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from fedft.carriers.stream import frames, tls
from fedft.carriers.stream.allowance import Allowance
from fedft.carriers.stream.channel import Channel
from fedft.carriers.stream.connection import Connection
from fedft.carriers.stream.frames import Kind, Malformed
from fedft.carriers.stream.strangers import Places, Stranger, Turns, network
from fedft.wire import versions

log = logging.getLogger(__name__)

FIRST_S = 10.0  # from being accepted to HELLO
SILENT, SHAKING = (2048, 1024), (512, 128)
"""Most strangers in all, and from one address (IPv6: one /64): sites behind one router begin together."""
MAX_HELLO = 4096  # bytes of a ClientHello; ours has some 300
COMES = 0.5, 60.0  # connections of one key in a second, and at once
AGAIN_S = 0.2  # until somebody is looked at again who has sent a part of it
ACCEPTS = 64  # before the others have their turn
SEEN = 4096  # addresses from which a site has come, remembered
FULL_S = 0.2  # to wait where the system has no more files
REPLACED, UNKNOWN, OFTEN = "replaced", "unknown", "often"
"""Reasons of REFUSE, beside `frames.other_version`."""


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
    _comes: dict[bytes, Allowance] = field(default_factory=dict)
    """By key, of those that are known."""

    def __post_init__(self) -> None:
        self._turns = Turns(self.loop)

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
            stranger = Stranger(sock, sock.fileno(), network(peer[0]), self.loop.time())
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
        except BlockingIOError:
            return
        except OSError:
            return self._leave(stranger)
        self._turns.add(stranger, lambda: self._open(stranger))

    def _open(self, stranger: Stranger) -> None:
        """Answer a ClientHello."""
        stranger.channel = Channel(stranger.sock, self.context)
        self._silent.leave(stranger)
        full = self._shaking.enter(stranger)
        self._shake(stranger)
        if not stranger.left:  # it is told apart from others by what it has said
            self._make_room(self._shaking, full)

    def _wait(self, stranger: Stranger) -> None:
        if not stranger.left:
            self.loop.add_reader(stranger.fd, self._begins, stranger)

    def _more(self, stranger: Stranger) -> None:
        """More of a handshake is here, or may leave."""
        self.loop.remove_reader(stranger.fd)
        self.loop.remove_writer(stranger.fd)
        self._turns.add(stranger, lambda: self._shake(stranger))

    def _shake(self, stranger: Stranger) -> None:
        """Go on with the handshake."""
        assert stranger.channel
        done = False
        try:
            with suppress(BlockingIOError):
                done = stranger.channel.shake()
            if stranger.channel.protocol() is None:  # known from the ClientHello on
                return self._leave(stranger)
            left = stranger.channel.flush()
        except OSError:
            return self._leave(stranger)
        if not done:
            self.loop.add_reader(stranger.fd, self._more, stranger)
            if not left:
                self.loop.add_writer(stranger.fd, self._more, stranger)
            return
        stranger.key = tls.key_of(stranger.channel.certificate()) or b""
        on_frame = lambda c, kind, _, body: self._hello(stranger, c, kind, bytes(body))  # noqa: E731
        stranger.connection = Connection(self.loop, stranger.channel, on_frame, lambda *_: self._leave(stranger))
        if not self.known(stranger.key):
            self._refuse(stranger, UNKNOWN)
        elif self._comes.setdefault(stranger.key, Allowance(*COMES, self.loop.time())).spend(1, self.loop.time()):
            self._refuse(stranger, OFTEN)

    def _refuse(self, stranger: Stranger, why: str) -> None:
        """Say why, and count the stranger until that has left."""
        assert stranger.connection
        stranger.refused = True
        stranger.connection.refuse(why)

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
            stranger.sock.close()
        stranger.left = True

    def _forget(self, stranger: Stranger) -> None:
        self._turns.leave(stranger)
        self._silent.leave(stranger)
        self._shaking.leave(stranger)
