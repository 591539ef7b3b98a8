"""The server's sessions with its sites, and who is asked what; in the thread of the network."""

import asyncio
import logging
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from fedft.carriers.interface import Refused
from fedft.carriers.stream import frames, front
from fedft.carriers.stream.connection import Connection
from fedft.carriers.stream.frames import Kind
from fedft.carriers.stream.room import Room
from fedft.carriers.stream.session import Session
from fedft.errors import RejectedUpdate

log = logging.getLogger(__name__)

ROOM = 64 * 2**20  # bytes of answers on their way in or not yet pulled, beside the largest
SILENT_S = 45.0  # after which a site that says nothing is gone; it says PING after 15 of them
LINGER_S = 10.0  # for which a site whose connection broke is not yet out of reach
STALL_S = 30.0  # in which something of a granted answer must come
KEPT_S = 60.0  # for which a part of an answer waits for its site to come back
AGE_S = 6 * 3600.0, 8 * 3600.0  # of a connection; then it ends, wherever it is, and the next one goes on from there
TELL_S = 600.0  # between two lines of the log about one site

Answer = bytes | Refused | RejectedUpdate


@dataclass(eq=False)
class Peer:
    """A start of a site's process: what it was sent, and how it is reached."""

    site: str
    node: int
    start: bytes
    session: Session
    version: int
    """Of the protocol, as agreed."""
    asked: set[int] = field(default_factory=set)
    """Messages without an answer so far."""
    key: bytes = b""
    """The public key that it came with last."""
    lost_at: float = 0.0
    """When its connection broke, if it did."""
    renew_at: float = 0.0
    """When its connection is old enough; not all end at once."""


@dataclass
class Desk:
    """Messages to the sites and their answers; a site is one key, one process at a time, and one connection."""

    loop: asyncio.AbstractEventLoop
    members: Callable[[], Mapping[str, tuple[bytes, ...]]]
    """Gives the public keys with which each site may come, now: one, or two while a new one takes over. Another mapping
    whenever something in it is another."""
    done: Callable[[int, Answer], None]
    """Takes (number, answer) of what is answered; the bytes of a long one hold a place until `free`."""
    limit: Callable[[], int]
    """Gives the longest answer in bytes."""
    online: dict[str, int] = field(default_factory=dict)
    """Node by site, of those that can be reached. Replaced, never changed: any thread may read it."""
    versions: dict[int, int] = field(default_factory=dict)
    """Version of the protocol by node, of the same; likewise."""
    _peers: dict[str, Peer] = field(default_factory=dict)
    _nodes: dict[int, Peer] = field(default_factory=dict)
    _asked: dict[int, Peer] = field(default_factory=dict)
    _holders: dict[int, Session] = field(default_factory=dict)
    _room: Room = field(default_factory=lambda: Room(ROOM))
    _listed: Mapping[str, tuple[bytes, ...]] = field(default_factory=dict)
    _site_of: dict[bytes, str] = field(default_factory=dict)
    _count: int = 0
    _told: dict[str, float] = field(default_factory=dict)
    """When something was said of a site."""

    def known(self, key: bytes) -> bool:
        """Whether a key is that of a site."""
        return key in self._sites()

    def welcome(self, connection: Connection, key: bytes, start: bytes, version: int) -> None:
        """A site has come, or come back, and speaks this version; a connection that it had is replaced."""
        site = self._sites().get(key)
        if site is None:
            return connection.refuse(front.UNKNOWN)
        peer = self._peers.get(site)
        if peer is None or peer.start != start:
            if peer is not None:
                self._end(peer, front.REPLACED)
            peer = self._enter(site, start, version)
        elif peer.session.connection:
            peer.session.connection.close()
        connection.on_frame = lambda c, kind, number, body: self._hear(peer, c, kind, number, body)
        connection.on_lost = lambda c, why: self._lost(peer, why)
        peer.key = key
        peer.lost_at, peer.renew_at = 0.0, self.loop.time() + random.uniform(*AGE_S)
        peer.session.attach(connection)
        self._look()

    def send(self, node: int, number: int, kind: str, parts: Sequence[bytes]) -> None:
        """Send a message to a node; one that is gone loses it."""
        if (peer := self._nodes.get(node)) is None:
            self.done(number, _lost("its site is gone"))
        else:
            peer.asked.add(number)
            self._asked[number] = peer
            peer.session.send(number, kind, parts)

    def forget(self, numbers: Sequence[int]) -> None:
        """Withdraw messages and what has come of their answers."""
        for number in numbers:
            self.free(number)
            if peer := self._asked.pop(number, None):
                peer.asked.discard(number)
                peer.session.withdraw(number)

    def free(self, number: int) -> None:
        """The bytes of an answer are not ours any more."""
        if session := self._holders.pop(number, None):
            session.free(number)

    def tick(self) -> None:
        """What time brings: sites that are revoked, silent or stalled; to be called about once a second."""
        now, members = self.loop.time(), self.members()
        for peer in list(self._peers.values()):
            connection = peer.session.connection
            if peer.key not in members.get(peer.site, ()):  # revoked, or its old key's time is over
                self._end(peer, front.UNKNOWN)
                del self._peers[peer.site]
            elif self._room.crowded() and peer.session.late(now, STALL_S if connection else KEPT_S):
                self._tell(peer.site, "its answer comes too slowly while others wait: it is behind them now")
                if connection:
                    connection.lose("its answer comes too slowly")
            elif connection is None:
                peer.session.late(now, KEPT_S)
            elif connection.heard < now - SILENT_S:
                connection.lose("it was silent for too long")
            elif now > peer.renew_at:
                connection.lose("it is old")
            elif connection.slowed:
                connection.slowed = 0
                self._tell(peer.site, "it says too much in too little, and is read slowly")
        self._look()

    def close(self) -> None:
        """Leave all sites, which will come again."""
        for peer in self._peers.values():
            if peer.session.connection:
                peer.session.connection.close()

    def _sites(self) -> Mapping[bytes, str]:
        """Site by key, made anew when `members` gives another mapping: thousands may come at once."""
        if (members := self.members()) is not self._listed:
            self._listed = members
            self._site_of = {key: name for name, keys in members.items() for key in keys}
        return self._site_of

    def _enter(self, site: str, start: bytes, version: int) -> Peer:
        self._count += 1
        session = Session(
            self.loop.time,
            self._room,
            lambda n, size: self._wanted(peer, n, size),
            lambda *a: self._take(peer, *a),
            lambda n, why: self._gone(peer, n, why),
        )
        peer = self._peers[site] = self._nodes[self._count] = Peer(site, self._count, start, session, version)
        return peer

    def _end(self, peer: Peer, why: str) -> None:
        """A start of a site is over: what it was asked is lost, and what it has answered stays."""
        if peer.session.connection:
            peer.session.connection.refuse(why)
        peer.session.end()
        del self._nodes[peer.node]
        for number in list(peer.asked):
            self._answer(peer, number, _lost("its site has started anew, or has left"))

    def _hear(self, peer: Peer, connection: Connection, kind: Kind, number: int, body: bytes | memoryview) -> None:
        if kind is Kind.PING:
            connection.say(Kind.PONG)
        elif kind is Kind.BYE:
            connection.close()
            self._end(peer, "")
            del self._peers[peer.site]
            self._look()
        else:
            peer.session.hear(kind, number, body)

    def _lost(self, peer: Peer, why: str) -> None:
        log.debug("%s: %s", peer.site, why)
        peer.session.detach()
        peer.lost_at = self.loop.time()

    def _wanted(self, peer: Peer, number: int, size: int) -> str:
        if number not in peer.asked:
            return "taken"
        if size > (most := self.limit()):
            too_large = RejectedUpdate("too_large", f"an answer of {size} bytes, at most {most} allowed")
            self._answer(peer, number, too_large)
            return f"at most {most} bytes are taken"
        return ""

    def _take(self, peer: Peer, number: int, kind: str, data: bytes, held: bool) -> None:
        if held:
            self._holders[number] = peer.session
        self._answer(peer, number, data)

    def _gone(self, peer: Peer, number: int, why: str) -> None:
        if number in peer.asked:
            why = f"the site does not take the message: {why[: frames.MAX_WHY]}"
            self._answer(peer, number, Refused("client_error", why))

    def _answer(self, peer: Peer, number: int, answer: Answer) -> None:
        peer.asked.discard(number)
        self._asked.pop(number, None)
        self.done(number, answer)

    def _tell(self, site: str, what: str) -> None:
        """Log something of a site, now and then."""
        if self.loop.time() > self._told.get(site, -TELL_S) + TELL_S:
            self._told[site] = self.loop.time()
            log.warning("%s: %s", site, what)

    def _look(self) -> None:
        """Who is online."""
        since = self.loop.time() - LINGER_S
        there = [p for p in self._peers.values() if p.session.connection or p.lost_at > since]
        self.versions = {p.node: p.version for p in there}  # before `online`, which is looked at first
        self.online = {p.site: p.node for p in there}


def _lost(why: str) -> Refused:
    return Refused("client_error", f"the message was lost on its way: {why}")
