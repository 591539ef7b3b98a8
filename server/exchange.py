"""One exchange of letters: plans go out, answers are taken as they come, until all have answered or time is up.

    exchange = Exchange(federation)
    exchange.enrol(clients, traffic, until)                                  the job
    exchange.ask("train", plans, state_of, accept, traffic, max_bytes, until)   plans; `accept` gets each answer

All of it runs in the caller's thread, `accept` too; what that leaves to be done may run in another, see `admitting`.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

from fedft.carriers.interface import Begun, Kind, Letter, Reply
from fedft.contract import State
from fedft.errors import RejectedUpdate
from fedft.server.admitting import Rest
from fedft.server.federation import Federation
from fedft.server.sending import Accept, Came, Sending
from fedft.server.traffic import Terms, Traffic, Until
from fedft.update import Job, Plan
from fedft.wire import messages


@dataclass
class Exchange:
    """Talks to the clients of one run and remembers which version of the state each of them stands at.

    A client that does not know the run is sent the job first, one that stands at another version what it lacks, both
    within the exchange. Used by one thread, one exchange at a time.
    """

    federation: Federation
    have: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Version and label of the state that a client was last brought to; the engine makes it durable with the state."""
    _shapes: dict[str, str] = field(default_factory=dict)
    """Key of the adapter's shape that a client was last brought to, as far as this process knows."""
    _joined: set[str] = field(default_factory=set)
    """Clients that have answered the job, as it is, since this process started."""
    _told: Job | None = None
    """The job that they have answered; another one takes its place where a key changes that is theirs to know."""
    _job: bytes = b""
    """Its bytes."""
    _served: dict[str, int] = field(default_factory=dict)
    """Version by label of each state that somebody was brought to since this process started."""
    _labels: dict[int, str] = field(default_factory=dict)
    """Label by version of the same."""
    _open: dict[str, Letter] = field(default_factory=dict)
    """Letters of turns that go on behind their exchange, by ticket."""
    _early: list[Reply] = field(default_factory=list)
    """Their answers that came in other exchanges."""
    _encoded: tuple[object, bytes] | None = None
    """What the last encoded plan depends on, and its bytes."""

    def plan(self, bare: Plan, state: State, client: str) -> Plan:
        """`bare` with the tensors that take this client from the version that it stands at to `state`."""
        have, label = self._stood(bare, state, client)
        plan = replace(bare, label=state.label, have=have, have_label=label)
        return replace(plan, tensors={**bare.tensors, **self.federation.recipe.downlink(state, plan.have, plan)})

    def _stood(self, bare: Plan, state: State, client: str) -> tuple[int | None, str]:
        """Version and label of what the client may build on for this plan; (None, "") for nothing.

        Nothing too where it stands at `state` cut to another shape, since a plan may have changed since then: one of an
        evaluation is made anew in the round, when others may have joined. Nor where it stands further on, to which an
        evaluation has brought it while its turn goes on.
        """
        recipe, (have, label) = self.federation.recipe, self.have.get(client, (None, ""))
        further = have is not None and have > state.version
        other_shape = self._shapes.get(client, bare.shape.key) != bare.shape.key
        other_cut = recipe.cuts_the_state and have == state.version and other_shape
        return (None, "") if not recipe.is_held(bare) or further or other_cut else (have, label)

    def ask(
        self,
        kind: Kind,
        bare: Mapping[str, Plan],
        state_of: Callable[[int], State],
        accept: Accept,
        traffic: Traffic,
        max_bytes: Mapping[str, int],
        until: Terms,
        begun: Mapping[str, Begun] | None = None,
    ) -> None:
        """Send each client its plan and hand each answer to `accept`. Returns when the exchange is over.

        Args:
            kind: of the letters, "train" or "evaluate".
            bare: plans by client, without tensors.
            state_of: gives the state of a version that plans bring the clients to.
            accept: called once for each answer; what it, or the rest that it leaves, raises as RejectedUpdate is told
                as a refusal.
            traffic: bytes, refusals and blame are added to it.
            max_bytes: longest answer by client.
            until: gives when the exchange ends though not all have answered; who has not is refused as `deadline`.
            begun: when each client's turn began. With it turns go on behind the exchange, until they are as old as the
                deadline, and those that went on are not sent anew. None: they end with it.
        """

        before, answered = dict(self.have), set()
        self._encoded = None  # of a plan with tensors it says whose it is, not of which exchange

        def take(came: Came) -> Rest | None:
            answered.add(came.client)
            self._brought(came.client, bare[came.client])
            return accept(came)

        def payload(client: str, state: State) -> bytes:
            p = bare[client]
            wanted = self._stood(p, state, client), (client, p.version, p.attempt) if p.tensors else p
            if not self._encoded or self._encoded[0] != wanted:  # most are sent the same
                plan = self.plan(p, state, client)
                self._encoded = wanted, messages.encode_plan(plan, self.federation.config.codec.plans)
            return self._encoded[1]

        went_on = {letter.client: letter for letter in self._open.values()} if begun is not None else {}

        def letter(client: str, p: Plan) -> Letter:
            state = state_of(p.version)
            self._served[state.label], self._labels[p.version] = p.version, state.label
            make, since = partial(payload, client, state), begun[client] if begun is not None else None
            return Letter(client, kind, make, p.round, p.attempt, max_bytes[client], p, since, state.tensors)

        letters = [went_on.get(c) or letter(c, p) for c, p in bare.items()]
        self.send(letters, take, traffic, until, self._behind, goes_on=begun is not None)
        if self.federation.virtual:  # what a client forgot with a process that was killed its device has not forgotten
            for client in bare.keys() - answered & before.keys():
                self.have[client] = before[client]

    def _brought(self, client: str, plan: Plan) -> None:
        """Note that a client stands at the state of a plan that it has answered, unless it has gone on since."""
        have, _ = self.have.get(client, (None, ""))
        if self.federation.recipe.is_held(plan) and (have is None or have <= plan.version):
            self.have[client] = plan.version, self._labels[plan.version]
            self._shapes[client] = plan.shape.key

    def _behind(self, client: str, reason: str) -> None:
        """Note where the client says that it stands, if there was such a state since we started."""
        self.have.pop(client, None)
        version, _, label = reason.partition(" ")
        if (served := self._served.get(label)) is not None and version == str(served):
            self.have[client] = served, label

    def at_work(self) -> dict[str, int]:
        """The attempt that each client was asked in whose turn goes on behind the last exchange."""
        return {letter.client: letter.attempt for letter in self._open.values()}

    def end(self, clients: Collection[str]) -> None:
        """Wait no longer for these clients, whose turns went on."""
        over = [ticket for ticket, letter in self._open.items() if letter.client in clients]
        for ticket in over:
            del self._open[ticket]
        self._early = [reply for reply in self._early if reply.ticket in self._open]
        self.federation.post.cancel(over)

    def _elsewhere(self, reply: Reply) -> bool:
        """Keep a reply to a turn that goes on; whether it is one."""
        if known := reply.ticket in self._open:
            self._early.append(reply)
        return known

    def enrol(self, clients: list[str], traffic: Traffic, until: Terms) -> None:
        """Send the job to these clients; who answers as a client does is enrolled in the federation."""
        self.send([self._enrolment(c) for c in clients], self._enrolled, traffic, until)

    def _enrolled(self, came: Came) -> None:
        self._join(came.client, came.payload)

    def _join(self, client: str, payload: bytes) -> None:
        self.federation.enrolled(client, payload)
        self._joined.add(client)

    def send(
        self,
        letters: list[Letter],
        accept: Accept,
        traffic: Traffic,
        until: Terms,
        behind: Callable[[str, str], None] | None = None,
        goes_on: bool = False,
    ) -> None:
        """Send letters and take the answers, each as it comes.

        `behind` is told which client says that it stands at another state, and at which one; None for letters that need
        no state and no run. `goes_on`: see `begun` of `ask`.
        """
        federation = self.federation
        if self._told is not federation.job:
            self._told, self._job = federation.job, messages.encode_job(federation.job)
            self._joined.clear()
        asked = {letter.client: letter for letter in letters}
        out = Sending(federation, asked, self._enrolment, self._join, accept, traffic, until, behind)
        out.elsewhere = self._elsewhere
        went_on = {t: x for t, x in self._open.items() if goes_on and x.client in asked}
        for ticket in went_on:
            out.go_on(ticket, self._open.pop(ticket))
        out.early = [reply for reply in self._early if reply.ticket in went_on]
        self._early = [reply for reply in self._early if reply.ticket in self._open]
        on_their_way = {letter.client for letter in went_on.values()}
        for letter in letters:
            if letter.client not in on_their_way:
                joined = behind is None or letter.client in self._joined
                out.push(letter if joined else self._enrolment(letter.client))
        self._encoded = None  # a late one is made anew
        out.listen()
        young = {c for c in asked if goes_on and self._is_young(asked[c], until())}
        kept = {t: x for t, x in out.waiting.items() if x is asked[x.client] and x.client in young}
        self._open |= kept
        self._early += out.early
        for letter in out.waiting.values():
            if letter.client not in young:
                began = asked[letter.client].begun
                waited = federation.clock.monotonic() - (began.sent if began is not None else out.started)
                late = RejectedUpdate("deadline", f"no answer within {waited:.1f} s")
                traffic.refuse(Reply("", letter.client, late, proven=False), late, federation.observe)
        federation.post.cancel([ticket for ticket in out.waiting if ticket not in kept])

    def _is_young(self, letter: Letter, terms: Until) -> bool:
        """Whether the turn of a letter began less than the deadline ago."""
        return letter.begun is not None and self.federation.clock.monotonic() < letter.begun.sent + terms.deadline_s

    def _enrolment(self, client: str) -> Letter:
        return Letter(client, "query", lambda: self._job)
