"""One exchange of letters: plans go out, answers are taken as they come, until all have answered or time is up."""

import hashlib
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

from fedft.carriers.interface import Kind, Letter, Post, Refused, Reply
from fedft.contract import State
from fedft.errors import RejectedUpdate
from fedft.recipe import Recipe
from fedft.reports.observers import Observer
from fedft.update import Plan
from fedft.wire import messages

log = logging.getLogger(__name__)

POLL_S = 0.05, 0.5  # between two looks for answers: after one has come, and up to, when none has for ten seconds
MAX_HELP = 5  # times in one exchange that a client may have forgotten the run, or the state: it may have been killed
Accept = Callable[[str, bytes], None]


class Clock(Protocol):
    """Seconds, of which only differences count; the module `time` is one."""

    def monotonic(self) -> float:
        """Now."""

    def sleep(self, seconds: float, /) -> None:
        """Wait."""


@dataclass(frozen=True)
class Until:
    """When an exchange ends though not all have answered."""

    need: float = math.inf
    """Accepted answers that are enough, `grace_s` later."""
    grace_s: float = math.inf
    deadline_s: float = math.inf
    """Seconds after which it ends in any case."""


@dataclass
class Traffic:
    """What exchanges cost: bytes by client each way, the refused as {client, code, reason}, and who is to blame."""

    up: dict[str, int] = field(default_factory=dict)
    down: dict[str, int] = field(default_factory=dict)
    needed: dict[str, int] = field(default_factory=dict)
    """Down by client of the letter meant for it, once: what is sent again to one that was killed is left out."""
    refused: list[dict[str, str]] = field(default_factory=list)
    blamed: set[str] = field(default_factory=set)
    """Clients refused for what they certainly sent; not for what the network did or somebody sent in their name, nor
    for a refusal of their own, unless it is for ever that they have forgotten what we said."""


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
        return not (plan.evaluate and self.recipe.evaluates_apart)

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
        self.send([Letter(c, "query", lambda: self.job) for c in clients], self._join, traffic, until)

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
        waiting: dict[str, Letter] = {}
        asked = {letter.client: letter for letter in letters}
        helped: Counter[tuple[str, str]] = Counter()

        def push(letter: Letter) -> None:
            ticket, size = self.post.push(letter)
            waiting[ticket] = letter
            if letter is asked[letter.client]:
                traffic.needed.setdefault(letter.client, size)
            traffic.down[letter.client] = traffic.down.get(letter.client, 0) + size

        def help_(client: str, answer: Refused) -> bool:
            """Send what the client lacks; False if that is not why it refused, or no longer believed."""
            why = (client, answer.code)
            if behind is None or answer.code not in ("behind", "wrong_run") or helped[why] >= MAX_HELP:
                return False
            helped[why] += 1
            if answer.code == "behind":
                behind(client, answer.reason)
                push(asked[client])
            else:
                push(Letter(client, "query", lambda: self.job))
            return True

        def take(reply: Reply, letter: Letter) -> bool:
            """Whether an answer was accepted."""
            if isinstance(reply.answer, RejectedUpdate):
                raise reply.answer
            if isinstance(reply.answer, Refused):
                if not help_(letter.client, reply.answer):
                    raise RejectedUpdate(reply.answer.code, reply.answer.reason)
                return False
            traffic.up[letter.client] = traffic.up.get(letter.client, 0) + len(reply.answer)
            if letter is asked[letter.client]:
                accept(letter.client, reply.answer)
                return True
            self._join(letter.client, reply.answer)
            push(asked[letter.client])
            return False

        for letter in letters:
            joined = behind is None or letter.client in self._joined
            push(letter if joined else Letter(letter.client, "query", lambda: self.job))
        self._encoded = None  # a late one is made anew
        started = heard = self.clock.monotonic()
        accepted, enough_at = 0, started if until.need <= 0 else math.inf

        def over() -> bool:
            return self.clock.monotonic() > min(started + until.deadline_s, enough_at + until.grace_s)

        while waiting:
            came = False
            for reply in self.post.pull(waiting):
                came, heard = True, self.clock.monotonic()
                known = waiting.pop(reply.ticket) if reply.ticket in waiting else None
                try:
                    if known is None:  # nothing waits for it, but it may have to be told
                        if isinstance(reply.answer, RejectedUpdate):
                            raise reply.answer
                    else:
                        accepted += take(reply, known)
                except RejectedUpdate as e:
                    self._refuse(traffic, reply, e, counts=known is not None or e.code == "equivocation")
                if accepted >= until.need:
                    enough_at = min(enough_at, self.clock.monotonic())
                if over():
                    break
            if over():
                break
            if accepted >= until.need and all(self.post.gone(letter.client) for letter in waiting.values()):
                break
            if not came:
                self.clock.sleep(min(max((self.clock.monotonic() - heard) / 20, POLL_S[0]), POLL_S[1]))
        for letter in waiting.values():
            late = RejectedUpdate("deadline", f"no answer within {self.clock.monotonic() - started:.1f} s")
            self._refuse(traffic, Reply("", letter.client, late, proven=False), late)
        self.post.cancel(waiting)

    def _refuse(self, traffic: Traffic, reply: Reply, e: RejectedUpdate, counts: bool = True) -> None:
        """Tell of a refusal; what nothing waited for is told to the audit only, unless it `counts`."""
        client, size, digest = reply.client, reply.size, reply.sha256
        if isinstance(reply.answer, bytes):
            size, digest = len(reply.answer), hashlib.sha256(reply.answer).hexdigest()
        if counts:
            traffic.refused.append({"client": client, "code": e.code, "reason": str(e)})
            sent = not isinstance(reply.answer, Refused) or e.code in ("behind", "wrong_run")
            if reply.proven and sent and e.code != "deadline":
                traffic.blamed.add(client)
        log.warning("%s refused: %s: %s", client, e.code, e)
        said = {"client": client, "code": e.code, "reason": str(e), "size": size, "sha256": digest}
        self.observe("refused", {**said, "proven": reply.proven})
