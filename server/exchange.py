"""One exchange of letters: plans go out, answers are taken as they come, until all have answered or time is up.

    exchange = Exchange(federation)
    exchange.enrol(clients, traffic, until)                                  the job
    exchange.ask("train", plans, state, accept, traffic, max_bytes, until)   plans; `accept` is called with each answer

All of it runs in the caller's thread, `accept` too.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

from fedft.carriers.interface import Kind, Letter, Refused, Reply
from fedft.contract import State
from fedft.errors import ClientFailed, RejectedUpdate
from fedft.server.federation import Federation
from fedft.server.traffic import Traffic, Until
from fedft.update import Plan
from fedft.wire import messages

POLL_S = 0.05, 0.5  # between two looks for answers: after one has come, and up to, when none has for ten seconds
MAX_HELP = 5  # times in one exchange that a client may have forgotten the run, or the state: killed so often, or a liar
Accept = Callable[[str, bytes], None]
"""Takes a client's name and answer; raises RejectedUpdate if the answer must not count."""


@dataclass
class Exchange:
    """Talks to the clients of one run and remembers which version of the state each of them stands at.

    A client that does not know the run is sent the job first, one that stands at another version what it lacks, both
    within the exchange. Used by one thread, one exchange at a time.
    """

    federation: Federation
    have: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Version and label of the state that a client was last brought to; the engine makes it durable with the state."""
    _joined: set[str] = field(default_factory=set)
    """Clients that have answered the job since this process started."""
    _served: dict[str, int] = field(default_factory=dict)
    """Version by label of each state that somebody was brought to since this process started."""
    _encoded: tuple[object, bytes] | None = None
    """What the last encoded plan depends on, and its bytes."""

    def plan(self, bare: Plan, state: State, client: str) -> Plan:
        """`bare` with the tensors that take this client from the version that it stands at to `state`."""
        have, label = self.have.get(client, (None, "")) if self.federation.recipe.is_held(bare) else (None, "")
        plan = replace(bare, label=state.label, have=have, have_label=label)
        return replace(plan, tensors=self.federation.recipe.downlink(state, plan.have, plan))

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
        """Send each client its plan and hand each answer to `accept`. Returns when the exchange is over.

        Args:
            kind: of the letters, "train" or "evaluate".
            bare: plans by client, without tensors.
            state: that the plans bring the clients to.
            accept: called once for each answer; what it raises as RejectedUpdate is told as a refusal.
            traffic: bytes, refusals and blame are added to it.
            max_bytes: longest answer by client.
            until: when the exchange ends though not all have answered; who has not is refused as `deadline`.
        """

        def take(client: str, payload: bytes) -> None:
            if self.federation.recipe.is_held(bare[client]):
                self.have[client] = state.version, state.label
            accept(client, payload)

        def payload(client: str) -> bytes:
            wanted = self.have.get(client), bare[client]
            if not self._encoded or self._encoded[0] != wanted:  # most are sent the same
                plan = self.plan(bare[client], state, client)
                self._encoded = wanted, messages.encode_plan(plan, self.federation.config.codec.plans)
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
        """Send the job to these clients; who answers as a client does is enrolled in the federation."""
        self.send([self._enrolment(c) for c in clients], self._join, traffic, until)

    def _join(self, client: str, payload: bytes) -> None:
        self.federation.enrolled(client, payload)
        self._joined.add(client)

    def send(
        self,
        letters: list[Letter],
        accept: Accept,
        traffic: Traffic,
        until: Until,
        behind: Callable[[str, str], None] | None = None,
    ) -> None:
        """Send letters and take the answers, each as it comes.

        `behind` is told which client says that it stands at another state, and at which one; None for letters that need
        no state and no run.
        """
        federation = self.federation
        out = _Sending(self, {letter.client: letter for letter in letters}, accept, traffic, until, behind)
        for letter in letters:
            joined = behind is None or letter.client in self._joined
            out.push(letter if joined else self._enrolment(letter.client))
        self._encoded = None  # a late one is made anew
        out.listen()
        for letter in out.waiting.values():
            late = RejectedUpdate("deadline", f"no answer within {federation.clock.monotonic() - out.started:.1f} s")
            traffic.refuse(Reply("", letter.client, late, proven=False), late, federation.observe)
        federation.post.cancel(out.waiting)

    @cached_property
    def _job(self) -> bytes:
        return messages.encode_job(self.federation.job)

    def _enrolment(self, client: str) -> Letter:
        return Letter(client, "query", lambda: self._job)


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
    """Letters without an answer by ticket."""
    started: float = 0.0
    """By the federation's clock."""
    _accepted: int = 0
    _enough_at: float = math.inf
    _helped: Counter[tuple[str, str]] = field(default_factory=Counter)

    def push(self, letter: Letter) -> None:
        """Send a letter and wait for its answer; bytes count as needed where it is the one meant for its client."""
        ticket, size = self.exchange.federation.post.push(letter)
        self.waiting[ticket] = letter
        if letter is self.asked[letter.client]:
            self.traffic.needed.setdefault(letter.client, size)
        self.traffic.down[letter.client] = self.traffic.down.get(letter.client, 0) + size

    def listen(self) -> None:
        """Take answers until nothing waits, or `until` says that it is over."""
        post, clock = self.exchange.federation.post, self.exchange.federation.clock
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
        return self.exchange.federation.clock.monotonic() > ends

    def _hear(self, reply: Reply) -> None:
        """Take one reply; what must not count is told as a refusal."""
        known = self.waiting.pop(reply.ticket) if reply.ticket in self.waiting else None
        try:
            if known is not None:
                self._accepted += self._take(reply, known)
            elif isinstance(reply.answer, RejectedUpdate):  # nothing waits for it, but it may have to be told
                raise reply.answer
        except RejectedUpdate as e:
            if known is not None and not self.exchange.federation.deployed:
                _end_where_it_would_fail_again(known, e)
            counts = known is not None or e.code == "equivocation"
            self.traffic.refuse(reply, e, self.exchange.federation.observe, counts)
        if self._accepted >= self.until.need:
            self._enough_at = min(self._enough_at, self.exchange.federation.clock.monotonic())

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


def _end_where_it_would_fail_again(letter: Letter, e: RejectedUpdate) -> None:
    """Raise what ends a simulation where a client crashed, or its numbers went out of bounds: they would do so again.

    Raises ClientFailed or FloatingPointError. Other refusals, such as by `[limits]`, cost only who is refused.
    """
    said = f"round {letter.round}: client {letter.client!r} failed: {e}"
    if e.code in ("nonfinite", "out_of_bounds"):
        raise FloatingPointError(said) from None
    if e.code == "client_error":
        raise ClientFailed(said) from None
