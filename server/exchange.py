"""One exchange of letters: plans go out, answers are taken as they come, until all have answered or time is up."""

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

from fedft.carriers.interface import Kind, Letter, Post, Refused, Reply
from fedft.contract import State
from fedft.errors import RejectedUpdate
from fedft.recipe import Recipe
from fedft.reports.observers import Observer
from fedft.server.traffic import Clock, Traffic, Until
from fedft.update import Plan
from fedft.wire import messages

POLL_S = 0.05, 0.5  # between two looks for answers: after one has come, and up to, when none has for ten seconds
MAX_HELP = 5  # times in one exchange that a client may have forgotten the run, or the state: it may have been killed
Accept = Callable[[str, bytes], None]


@dataclass
class Exchange:
    """Talks to the clients of one run and remembers which version of the state each of them stands at.

    A client that does not know the run is sent the job first, one that stands at another version what it lacks, both
    within the exchange. `enrolled` takes the answers to the job.
    """

    post: Post
    recipe: Recipe
    job: bytes
    enrolled: Accept
    down_codec: str
    observe: Observer
    clock: Clock = time

    def __post_init__(self) -> None:
        self._joined: set[str] = set()
        self.have: dict[str, tuple[int, str]] = {}
        """Version and label of the state that a client was last brought to; durable with the run's state."""
        self._served: dict[str, int] = {}
        self._encoded: tuple[object, bytes] | None = None

    def plan(self, bare: Plan, state: State, client: str) -> Plan:
        """`bare` with what takes this client from the version it stands at to `state`."""
        have, label = self.have.get(client, (None, "")) if self._shares(bare) else (None, "")
        plan = replace(bare, label=state.label, have=have, have_label=label)
        return replace(plan, tensors=self.recipe.downlink(state, plan.have, plan))

    def _shares(self, plan: Plan) -> bool:
        """Whether what comes with this plan is what the client stands at from then on."""
        return not (plan.evaluate and self.recipe.evaluation_has_own_state)

    def ask(
        self,
        kind: Kind,
        bare: Mapping[str, Plan],
        state: State,
        accept: Accept,
        traffic: Traffic,
        max_bytes: Mapping[str, int],
        until: Until,
    ) -> None:
        """Send each client its plan and hand each answer to `accept`, which raises RejectedUpdate if it must not count.

        Args:
            kind: of message.
            bare: plans by client, without tensors.
            state: what the plans bring the clients to.
            accept: takes client and answer.
            traffic: added to.
            max_bytes: longest answer by client.
            until: when it ends.
        """

        def take(client: str, payload: bytes) -> None:
            if self._shares(bare[client]):
                self.have[client] = state.version, state.label
            accept(client, payload)

        def payload(client: str) -> bytes:
            wanted = self.have.get(client), bare[client]
            if not self._encoded or self._encoded[0] != wanted:  # most are sent the same
                self._encoded = wanted, messages.encode_plan(self.plan(bare[client], state, client), self.down_codec)
            return self._encoded[1]

        def behind(client: str, reason: str) -> None:
            """Note where the client says it stands, if there was such a state since we started."""
            self.have.pop(client, None)
            version, _, label = reason.partition(" ")
            if (served := self._served.get(label)) is not None and version == str(served):
                self.have[client] = served, label

        self._served[state.label] = state.version
        letters = [Letter(c, kind, partial(payload, c), p.round, p.attempt, max_bytes[c]) for c, p in bare.items()]
        self.send(letters, take, traffic, until, behind)

    def enrol(self, clients: list[str], traffic: Traffic, until: Until) -> None:
        """Send the job."""
        self.send([self._enrolment(c) for c in clients], self._join, traffic, until)

    def _join(self, client: str, payload: bytes) -> None:
        self.enrolled(client, payload)
        self._joined.add(client)

    def send(
        self,
        letters: list[Letter],
        accept: Accept,
        traffic: Traffic,
        until: Until,
        behind: Callable[[str, str], None] | None = None,
    ) -> None:
        """Send letters and take the answers, each as it comes; `behind` is told where a client says it stands."""
        out = _Sending(self, {letter.client: letter for letter in letters}, accept, traffic, until, behind)
        for letter in letters:
            joined = behind is None or letter.client in self._joined
            out.push(letter if joined else self._enrolment(letter.client))
        self._encoded = None  # a late one is made anew
        out.listen()
        for letter in out.waiting.values():
            late = RejectedUpdate("deadline", f"no answer within {self.clock.monotonic() - out.started:.1f} s")
            traffic.refuse(Reply("", letter.client, late, proven=False), late, self.observe)
        self.post.cancel(out.waiting)

    def _enrolment(self, client: str) -> Letter:
        return Letter(client, "query", lambda: self.job)


@dataclass
class _Sending:
    """One `Exchange.send` under way: the letters that wait for an answer, and how many answers were accepted."""

    exchange: Exchange
    asked: Mapping[str, Letter]
    """The letter meant for each client; the job may have to go before it."""
    accept: Accept
    traffic: Traffic
    until: Until
    behind: Callable[[str, str], None] | None
    waiting: dict[str, Letter] = field(default_factory=dict)
    started: float = 0.0
    _accepted: int = 0
    _enough_at: float = math.inf
    _helped: Counter[tuple[str, str]] = field(default_factory=Counter)

    def push(self, letter: Letter) -> None:
        """Send a letter and wait for its answer; bytes count as needed where it is the one meant for its client."""
        ticket, size = self.exchange.post.push(letter)
        self.waiting[ticket] = letter
        if letter is self.asked[letter.client]:
            self.traffic.needed.setdefault(letter.client, size)
        self.traffic.down[letter.client] = self.traffic.down.get(letter.client, 0) + size

    def listen(self) -> None:
        """Take answers until nothing waits, or `until` says that it is over."""
        post, clock = self.exchange.post, self.exchange.clock
        self.started = heard = clock.monotonic()
        self._enough_at = self.started if self.until.need <= 0 else math.inf
        while self.waiting:
            came = False
            for reply in post.pull(self.waiting):
                came, heard = True, clock.monotonic()
                self._hear(reply)
                if self._over():
                    return
            if self._over():
                return
            if self._accepted >= self.until.need and all(post.gone(letter.client) for letter in self.waiting.values()):
                return
            if not came:
                clock.sleep(min(max((clock.monotonic() - heard) / 20, POLL_S[0]), POLL_S[1]))

    def _over(self) -> bool:
        ends = min(self.started + self.until.deadline_s, self._enough_at + self.until.grace_s)
        return self.exchange.clock.monotonic() > ends

    def _hear(self, reply: Reply) -> None:
        """Take one reply; what must not count is told as a refusal."""
        known = self.waiting.pop(reply.ticket) if reply.ticket in self.waiting else None
        try:
            if known is not None:
                self._accepted += self._take(reply, known)
            elif isinstance(reply.answer, RejectedUpdate):  # nothing waits for it, but it may have to be told
                raise reply.answer
        except RejectedUpdate as e:
            counts = known is not None or e.code == "equivocation"
            self.traffic.refuse(reply, e, self.exchange.observe, counts)
        if self._accepted >= self.until.need:
            self._enough_at = min(self._enough_at, self.exchange.clock.monotonic())

    def _take(self, reply: Reply, letter: Letter) -> bool:
        """Whether an answer was accepted. Raises RejectedUpdate."""
        if isinstance(reply.answer, RejectedUpdate):
            raise reply.answer
        if isinstance(reply.answer, Refused):
            if not self._help(letter.client, reply.answer):
                raise RejectedUpdate(reply.answer.code, reply.answer.reason)
            return False
        self.traffic.up[letter.client] = self.traffic.up.get(letter.client, 0) + len(reply.answer)
        if letter is self.asked[letter.client]:
            self.accept(letter.client, reply.answer)
            return True
        self.exchange._join(letter.client, reply.answer)
        self.push(self.asked[letter.client])
        return False

    def _help(self, client: str, answer: Refused) -> bool:
        """Send what the client lacks; False if that is not why it refused, or no longer believed."""
        why = (client, answer.code)
        if self.behind is None or answer.code not in ("behind", "wrong_run") or self._helped[why] >= MAX_HELP:
            return False
        self._helped[why] += 1
        if answer.code == "behind":
            self.behind(client, answer.reason)
            self.push(self.asked[client])
        else:
            self.push(self.exchange._enrolment(client))
        return True
