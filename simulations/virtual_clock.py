"""Virtual time: the answers of a simulation's clients come when their devices would have sent them.

    post = VirtualPost(inner, config, devices, work, brought)
    run.loop(post, clock=post.clock, virtual=True)

Clients are asked at once and train as ever, in whatever order, in passes or workers of their own; what they answer is
then held back until its virtual second. The clock stands still while anybody works, and passes only where the engine
waits: to the next answer, to the moment at which a device goes off, or as far as the engine wants to wait. So it is
the same whatever this machine does.

Enrolment and evaluations take no time: who measures is the experimenter. What an evaluation has brought of a state
counts as sent with the next plan. A client that has to be told again where the run stands, as after a kill, takes no
longer for it.
"""

import heapq
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import NamedTuple

from fedft.carriers.interface import Begun, Letter, Post, Refused, Reply
from fedft.config import RunConfig
from fedft.simulations import devices as drawn
from fedft.simulations.devices import Device
from fedft.update import Plan

AGAIN = ("behind", "wrong_run")  # refusals of a client that is told what it lacks, and then asked once more


class VirtualClock:
    """A clock (`fedft.server.traffic.Clock`) that nobody waits for."""

    def __init__(self, news: Callable[[float], float]) -> None:
        """`news(now)` is the next moment at which there is something to look at; infinity for none."""
        self._now, self._news = 0.0, news

    def monotonic(self) -> float:
        """The virtual second that it is."""
        return self._now

    def sleep(self, seconds: float, /) -> None:
        """Let so many seconds pass, or fewer where there is news before."""
        then = min(self._now + seconds, self._news(self._now))
        assert math.isfinite(then), "nobody waits for what never comes"
        self._now = max(self._now, then)


class Turn(NamedTuple):
    """A turn that a client was asked for first at some moment."""

    round: int
    sent: float
    """The virtual second."""
    down: int
    """Bytes that the client needs for it, those of an evaluation included."""


class Coming(NamedTuple):
    """An answer on its way. Of two at one moment the first by the client's name comes first."""

    at: float
    client: bytes
    ticket: str
    reply: Reply


class VirtualPost:
    """`Post` around another one, whose answers come when devices would have sent them. Used by one thread.

    All answers of an exchange are in memory until they have come.
    """

    def __init__(
        self,
        inner: Post,
        config: RunConfig,
        devices: Mapping[str, Device],
        work: Callable[[Plan], float],
        brought: Callable[[str, int], int],
    ) -> None:
        """Put devices between the engine and a simulation's clients.

        Args:
            inner: reaches the clients; each answers, sooner or later.
            config: of the run: its `[clients.devices]` and seed.
            devices: every client's own.
            work: floating-point operations of a plan.
            brought: (client, bytes of the plan that it is sent) -> bytes that an evaluation has brought it before.
        """
        assert config.clients.devices is not None
        self.clock = VirtualClock(self._next_news)
        self._inner, self._devices, self._work, self._brought = inner, devices, work, brought
        self._table, self._seed = config.clients.devices, config.server.seed
        self._begun: dict[str, Turn] = {}
        self._asked: dict[str, Letter] = {}
        """By ticket: what the other post has not answered yet."""
        self._vanished: dict[str, str] = {}
        """By ticket: clients that never answer it."""
        self._coming: list[Coming] = []
        """A heap."""

    def push(self, letter: Letter) -> tuple[str, int]:
        """Send a letter now, to a client that answers or vanishes; (ticket, bytes of the payload)."""
        if letter.kind == "train" and drawn.vanishes(self._table, self._seed, letter.client, letter.round):
            ticket = f"vanished-{letter.client}-{letter.round}-{letter.attempt}"
            self._vanished[ticket] = letter.client
            return ticket, len(letter.payload())
        ticket, size = self._inner.push(letter)
        self._asked[ticket] = letter
        begun = self._begun.get(letter.client)
        if letter.kind == "train" and (begun is None or begun.round != letter.round):
            self._begun[letter.client] = self._begin(letter, size)
        return ticket, size

    def _begin(self, letter: Letter, size: int) -> Turn:
        """The turn of a client that is sent this letter of `size` bytes, as it began."""
        begun = letter.begun or Begun(self.clock.monotonic())
        if begun.down is None:
            begun.down = size + self._brought(letter.client, size)
        return Turn(letter.round, begun.sent, begun.down)

    def pull(self, tickets: Collection[str]) -> Iterator[Reply]:
        """The replies to these letters that have come by now, one after the other. All who were asked work first."""
        while self._asked:
            for reply in self._inner.pull({*self._asked}):
                letter = self._asked.pop(reply.ticket)
                coming = Coming(self._arrival(letter, reply), letter.client.encode(), reply.ticket, reply)
                heapq.heappush(self._coming, coming)
        others: list[Coming] = []
        try:
            while self._coming and self._coming[0].at <= self.clock.monotonic():
                coming = heapq.heappop(self._coming)
                if coming.ticket in tickets:
                    yield coming.reply
                else:
                    others.append(coming)  # of a turn that goes on while there is an evaluation
        finally:
            for coming in others:
                heapq.heappush(self._coming, coming)

    def _arrival(self, letter: Letter, reply: Reply) -> float:
        """The virtual second at which a reply is there, not before now."""
        now = self.clock.monotonic()
        if letter.kind != "train" or (isinstance(reply.answer, Refused) and reply.answer.code in AGAIN):
            return now
        assert letter.plan is not None
        device, begun, work, up = self._devices[letter.client], self._begun[letter.client], 0.0, 0
        if isinstance(reply.answer, bytes):
            work = self._work(letter.plan) * drawn.jitter(self._table, self._seed, letter.client, letter.round)
            up = len(reply.answer)
        return max(now, device.answers_at(begun.sent, down=begun.down, work=work, up=up))

    def cancel(self, tickets: Collection[str]) -> None:
        """Stop waiting for the answers to these letters: whatever comes of them is dropped."""
        gone = {*tickets}
        self._inner.cancel(gone & self._asked.keys())
        for ticket in gone:
            self._asked.pop(ticket, None)
            self._vanished.pop(ticket, None)
        self._coming = [c for c in self._coming if c.ticket not in gone]
        heapq.heapify(self._coming)

    def gone(self, client: str) -> bool:
        """Whether a client has vanished in the open round, or its device is off now."""
        return client in self._vanished.values() or not self._devices[client].trace.on(self.clock.monotonic())

    def _next_news(self, now: float) -> float:
        """The next moment at which an answer comes, or a device goes off whose answer is waited for."""
        offs = (self._devices[c.reply.client].trace.next_off(now) for c in self._coming)
        return min((*(c.at for c in self._coming[:1]), *offs), default=math.inf)
