"""Our own carrier in a world in which everything fails: its link, desk, sessions and nodes, on wires that break.

StreamNetwork  stands in for `faulty.Network`; all above the bytes of a connection is the carrier's own
Wire, End      a connection: cut in the middle of a frame, noticed by both ends, by one, or by none; or slow

TLS stands between those who may change bytes and these: nothing is damaged, repeated or reordered within a connection.
Messages above a few bytes travel in pieces, and there is room for few at a time, so that every way is gone.
"""

import contextlib
import secrets
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from faults import World
from faulty import FaultySite

from fedft.carriers.interface import LinkLost, Refused
from fedft.carriers.stream import desk as desks
from fedft.carriers.stream import frames, site_node
from fedft.carriers.stream.desk import Desk
from fedft.carriers.stream.frames import Kind, Malformed
from fedft.carriers.stream.link import StreamLink
from fedft.carriers.stream.site_node import Node
from fedft.errors import RejectedUpdate
from fedft.wire import versions

WINDOW = 400  # bytes on their way, as in a socket's buffers
INLINE, PIECE, ROOM = 100, 64, 600  # bytes, in place of the carrier's own
WATCH_S = 5.0  # between looks of a site at its connection


@dataclass
class StreamOdds:
    """Probabilities of a connection's faults: per bytes carried at once, and of the last four per call of the link."""

    cut: float = 0.0
    half_open: float = 0.0
    """That an end does not notice that the other one is gone."""
    slow_wire: float = 0.0
    """That a connection carries some hundred bytes a second."""
    renewed: float = 0.0
    twin: float = 0.0
    """Another process with a site's key comes, takes what the site is asked, and never answers."""
    link_lost: float = 0.0
    offline: float = 0.0


MOST = StreamOdds(0.03, 0.3, 0.2, 0.02, 0.005, 0.02, 0.02)


class End:
    """One end of a connection: to its owner it is a `Connection`."""

    def __init__(self, wire: "Wire", world: World) -> None:
        self.on_frame: Callable[..., None] = lambda *_: None
        self.on_lost: Callable[..., None] = lambda *_: None
        self.source: Callable[[], bytes | None] = lambda: None
        self.heard = world.now
        self.closed, self.slowed, self.flying = False, 0, 0
        self.other: End
        self._wire, self._world = wire, world
        self._reader, self._queue = frames.Reader(), deque[bytes]()

    def trust(self) -> None:
        """Nothing is counted here."""

    def say(self, kind: Kind, number: int = 0, body: bytes = b"") -> None:
        """See `Connection`."""
        if kind is Kind.GRANT and body != frames.OFFSET.pack(0):
            self._world.counts["stream: resumed"] += 1
        self._queue.append(frames.frame(kind, number, body))
        self.pump()

    def refuse(self, why: str) -> None:
        """See `Connection`."""
        if not self.closed:
            self.on_frame = self.on_lost = lambda *_: None
            self.source = lambda: None
            self.say(Kind.REFUSE, 0, why.encode())
            self._world.at(5.0, self.close)

    def pump(self) -> None:
        """See `Connection`."""
        while not self.closed and self.flying < WINDOW:
            data = self._queue.popleft() if self._queue else self.source()
            if data is None:
                return
            self.flying += len(data)
            self._wire.carry(self, data)

    def arrive(self, data: bytes) -> None:
        """Bytes are here."""
        self.heard = self._world.now
        try:
            for kind, number, body in self._reader.feed(memoryview(data)):
                if self.closed:
                    return
                self.on_frame(self, kind, number, body)
        except Malformed as e:
            raise AssertionError(f"an honest peer is taken for another: {e}") from e

    def close(self) -> None:
        """See `Connection`."""
        if not self.closed:
            self.closed = True
            self._wire.ended(self)

    def lose(self, why: str) -> None:
        """See `Connection`."""
        if not self.closed:
            self.close()
            self.on_lost(self, why)


class Wire:
    """A connection of two ends."""

    def __init__(self, world: World, chance: Callable[[str], bool]) -> None:
        self._world, self._chance = world, chance
        self.near, self.far = End(self, world), End(self, world)
        self.near.other, self.far.other = self.far, self.near
        self._last = {self.near: 0.0, self.far: 0.0}
        self._broken = False
        self._rate = 100 + 900 * world.rng.random() if chance("slow_wire") else 1e6

    def carry(self, end: End, data: bytes) -> None:
        """Bring bytes to the other end, in order; or break in the middle of them."""
        if self._broken:
            return
        whole = data
        if self._chance("cut"):
            data = data[: self._world.rng.randrange(len(data))]
            self.cut()
        self._last[end] = (
            max(self._last[end], self._world.now) + 0.05 * self._world.rng.random() + len(data) / self._rate
        )

        def there() -> None:
            end.flying -= len(whole)
            if not end.other.closed:
                end.other.arrive(data)
            if not self._broken:
                end.pump()

        self._world.at(self._last[end] - self._world.now, there)

    def cut(self) -> None:
        """Nothing more is carried; the ends notice, or do not."""
        if not self._broken:
            self._broken = True
            for end in (self.near, self.far):
                self._notice(end)

    def ended(self, end: End) -> None:
        """One end is gone: the other hears of it behind what was said before, or does not."""
        if not self._broken:
            self._broken = True
            self._notice(end.other, max(0.0, self._last[end] - self._world.now))

    def _notice(self, end: End, after: float = 0.0) -> None:
        if not self._chance("half_open"):
            self._world.at(after + 0.5 * self._world.rng.random(), lambda: end.lose("the wire broke"))


class Process:
    """A start of a site: our node without threads and sockets. A twin takes what comes, and says nothing."""

    def __init__(self, network: "StreamNetwork", site: FaultySite, twin: bool = False) -> None:
        self.site, self.twin, self.dead = site, twin, False
        self._network, self._world = network, network.world
        with mock.patch.object(site_node.tls, "for_site"):
            self.node = Node("server:1", b"", Path())
        self.node._loop = network.loop  # type: ignore[assignment]
        self._end: End | None = None
        self._wait = 0.5
        self.connect()

    def connect(self) -> None:
        """Try, and try again."""
        if self.dead or (self._end and not self._end.closed):
            return
        w = self._world
        if not self._network.reachable(self.site):
            self._again()
            return
        wire = Wire(w, self._network.chance)
        end = self._end = wire.near
        end.on_frame, end.on_lost = self._hear, lambda *_: self._lost()
        self._network.accept(wire.far, self.site.name)
        self.node._refused = ""
        end.say(Kind.HELLO, 0, frames.hello(self.node._start))
        w.at(WATCH_S, lambda: self._watch(end))

    def die(self) -> None:
        """The process ends where it is."""
        self.dead = True
        if self._end:
            self._end.close()

    def answer(self, number: str, data: bytes) -> None:
        """Answer a message."""
        if not self.dead:
            self.node._reply(int(number), data, threading.Event())

    def _hear(self, end: End, kind: Kind, number: int, body: bytes) -> None:
        if self.dead:
            return
        self.node._hear(end, kind, number, body)  # type: ignore[arg-type]
        while not self.node._messages.empty():
            number, _, payload, held = self.node._messages.get() or (0, "", b"", False)
            if not self.twin:
                self.site.arrive(str(number), payload)
            if held:
                self.node._session.free(number)

    def _watch(self, end: End) -> None:
        if self.dead or end.closed:
            return
        if end.heard < self._world.now - site_node.SILENT_S:
            end.lose("silent")
            return
        if self.node._session.connection:
            end.say(Kind.PING)
        self._world.at(WATCH_S, lambda: self._watch(end))

    def _lost(self) -> None:
        served = self.node._session.connection is not None and not self.node._refused
        self.node._session.detach()
        self._wait = 0.5 if served else min(30.0, 2 * self._wait)
        self._again()

    def _again(self) -> None:
        wait = 0.5 if self._world.calm else self._wait
        self._world.at(wait * (0.5 + self._world.rng.random()), self.connect)


class StreamNetwork:
    """The sites, and a `Link` to them over our carrier."""

    keeps_answers = True

    def __init__(self, world: World, sites: Mapping[str, FaultySite]) -> None:
        self.world, self._sites, self.odds = world, sites, StreamOdds()
        self.loop = SimpleNamespace(time=world.monotonic, call_soon_threadsafe=lambda act: act())
        for f in fields(StreamOdds):
            if world.rng.random() < 0.6:
                setattr(self.odds, f.name, getattr(MOST, f.name) * 10 ** -(1.5 * world.rng.random()))
        self._down_until, self._ticked = 0.0, 0.0
        self._ends: list[End] = []
        self._twins: dict[str, Process] = {}
        self._processes: dict[str, Process] = {}
        self._begin(0)
        for site in sites.values():
            site.network = self
            self.started(site)

    def chance(self, kind: str) -> bool:
        """Whether a fault of this kind happens now."""
        w, p = self.world, getattr(self.odds, kind)
        if w.calm or not p or w.rng.random() >= p:
            return False
        w.counts[f"stream: {kind}"] += 1
        return True

    def speaks(self, node: int) -> int:
        """Version of the protocol that a node speaks."""
        return versions.newest()

    def reachable(self, site: FaultySite) -> bool:
        """Whether a site's connection would be accepted."""
        w = self.world
        return w.calm or (w.now >= site.offline_until and w.now >= self._down_until)

    def accept(self, end: End, site: str) -> None:
        """A connection is here, its handshake done."""
        desk, epoch = self._desk, self._epoch
        self._ends = [e for e in self._ends if not e.closed] + [end]

        def hello(end: End, kind: Kind, number: int, body: bytes | memoryview) -> None:
            newest, start, _, _ = frames.HELLO.unpack(body)
            end.say(Kind.WELCOME, 0, frames.WELCOME.pack(newest, epoch))
            desk.welcome(end, site.encode(), start, newest)  # type: ignore[arg-type]

        end.on_frame = hello

    def started(self, site: FaultySite) -> None:
        """A site's process begins."""
        self._processes[site.name] = Process(self, site)

    def died(self, site: FaultySite) -> None:
        """A site's process has ended."""
        self._processes[site.name].die()

    def lose(self, down_s: float = 0.0) -> None:
        """The server's end dies with all its connections; the next one knows nothing of it."""
        self._down_until = self.world.now + down_s
        ends, self._ends = self._ends, []
        self._begin(self._link._count)
        for end in ends:
            end.on_frame = end.on_lost = lambda *_: None
            end.close()

    def _begin(self, count: int) -> None:
        self._epoch = secrets.token_bytes(16)
        link = self._link = StreamLink("", 0, Path(), Path(), dict, 2**20)
        link._count = count
        members = {name: (name.encode(),) for name in self._sites}
        done = lambda n, answer: link._done.append((str(n), answer))  # noqa: E731
        self._desk = link._desk = Desk(self.loop, lambda: members, done, link._most)  # type: ignore[arg-type]
        self._desk._room._most = ROOM
        link._loop, link._thread = self.loop, SimpleNamespace(is_alive=lambda: True)  # type: ignore[assignment]

    def _call(self) -> None:
        w = self.world
        w.live(w.now + 0.001)
        w.risk()
        if self.chance("link_lost"):
            self.lose(10 * w.rng.random() ** 2)
            raise LinkLost("the carrier has ended")
        if w.now >= self._ticked + 1:
            self._ticked = w.now
            self._desk.tick()
        for end in list(self._ends):
            if self.chance("renewed"):
                end.lose("it is old")
        for name, site in self._sites.items():
            if self.chance("offline"):
                site.offline_until = w.now + w.rng.choice([1, 10, 60]) * w.rng.random()
                w.at(site.offline_until - w.now, site.deliver)
                if end := self._processes[name]._end:
                    end._wire.cut()
            if name in self._twins and (w.calm or w.rng.random() < 0.01):
                self._twins.pop(name).die()
            elif self.chance("twin") and name not in self._twins:
                self._twins[name] = Process(self, site, twin=True)

    def nodes(self) -> Mapping[str, int]:
        """See `Link`."""
        self._call()
        return self._link.nodes()

    def push(self, node: int, kind: str, payload: Sequence[bytes], group: str) -> str:
        """See `Link`."""
        self._call()
        return self._link.push(node, kind, payload, group)

    def pull(self, ids: Collection[str], max_bytes: int) -> Iterator[tuple[str, bytes | Refused | RejectedUpdate]]:
        """See `Link`."""
        self._call()
        link = self._link
        for reply in link.pull(ids, max_bytes):
            yield reply
            if link is not self._link:
                raise LinkLost("the carrier has ended under our hands")

    def forget(self, ids: Collection[str]) -> None:
        """See `Link`."""
        self._call()
        self._link.forget(ids)

    def route(self, site: str, mid: str) -> Callable[[bytes], None]:
        """How to answer a message; it leads nowhere once the process that it came to has ended."""
        process = self._processes[site]
        return lambda data: process.answer(mid, data)

    def close(self) -> None:
        """Nothing to leave."""


@contextlib.contextmanager
def small_frames() -> Iterator[Any]:
    """Inside, messages of some hundred bytes are long ones."""
    with contextlib.ExitStack() as stack:
        for name, value in (("INLINE_BYTES", INLINE), ("PIECE_BYTES", PIECE)):
            stack.enter_context(mock.patch.object(frames, name, value))
        stack.enter_context(mock.patch.object(desks.log, "disabled", True))
        yield
