"""One exchange of letters: plans go out, answers are taken as they come, until all have answered or time is up.

    exchange = Exchange(federation)
    exchange.enrol(clients, traffic, until)                                  the job
    exchange.ask("train", plans, state, accept, traffic, max_bytes, until)   plans; `accept` is called with each answer

All of it runs in the caller's thread, `accept` too; what that leaves to be done may run in another, see `admitting`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

from fedft.carriers.interface import Kind, Letter, Reply
from fedft.contract import State
from fedft.errors import RejectedUpdate
from fedft.server.admitting import Rest
from fedft.server.federation import Federation
from fedft.server.sending import Accept, Came, Sending
from fedft.server.traffic import Terms, Traffic
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
        evaluation is made anew in the round, when others may have joined.
        """
        recipe, (have, label) = self.federation.recipe, self.have.get(client, (None, ""))
        cut = recipe.cuts_the_state and have == state.version
        if not recipe.is_held(bare) or (cut and self._shapes.get(client, bare.shape.key) != bare.shape.key):
            return None, ""
        return have, label

    def ask(
        self,
        kind: Kind,
        bare: Mapping[str, Plan],
        state: State,
        accept: Accept,
        traffic: Traffic,
        max_bytes: Mapping[str, int],
        until: Terms,
    ) -> None:
        """Send each client its plan and hand each answer to `accept`. Returns when the exchange is over.

        Args:
            kind: of the letters, "train" or "evaluate".
            bare: plans by client, without tensors.
            state: that the plans bring the clients to.
            accept: called once for each answer; what it, or the rest that it leaves, raises as RejectedUpdate is told
                as a refusal.
            traffic: bytes, refusals and blame are added to it.
            max_bytes: longest answer by client.
            until: gives when the exchange ends though not all have answered; who has not is refused as `deadline`.
        """

        before, answered = dict(self.have), set()
        self._encoded = None  # of a plan with tensors it says whose it is, not of which exchange

        def take(came: Came) -> Rest | None:
            answered.add(came.client)
            if self.federation.recipe.is_held(bare[came.client]):
                self.have[came.client] = state.version, state.label
                self._shapes[came.client] = bare[came.client].shape.key
            return accept(came)

        def payload(client: str) -> bytes:
            stood = self._stood(bare[client], state, client)
            wanted = stood, bare[client] if not bare[client].tensors else client
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
        letters = [
            Letter(c, kind, partial(payload, c), p.round, p.attempt, max_bytes[c], p, state.tensors)
            for c, p in bare.items()
        ]
        self.send(letters, take, traffic, until, behind)
        if self.federation.virtual:  # what a client forgot with a process that was killed its device has not forgotten
            for client in bare.keys() - answered & before.keys():
                self.have[client] = before[client]

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
    ) -> None:
        """Send letters and take the answers, each as it comes.

        `behind` is told which client says that it stands at another state, and at which one; None for letters that need
        no state and no run.
        """
        federation = self.federation
        if self._told is not federation.job:
            self._told, self._job = federation.job, messages.encode_job(federation.job)
            self._joined.clear()
        asked = {letter.client: letter for letter in letters}
        out = Sending(federation, asked, self._enrolment, self._join, accept, traffic, until, behind)
        for letter in letters:
            joined = behind is None or letter.client in self._joined
            out.push(letter if joined else self._enrolment(letter.client))
        self._encoded = None  # a late one is made anew
        out.listen()
        for letter in out.waiting.values():
            late = RejectedUpdate("deadline", f"no answer within {federation.clock.monotonic() - out.started:.1f} s")
            traffic.refuse(Reply("", letter.client, late, proven=False), late, federation.observe)
        federation.post.cancel(out.waiting)

    def _enrolment(self, client: str) -> Letter:
        return Letter(client, "query", lambda: self._job)
