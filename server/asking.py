"""The asking half of a round: plans go out to its cohort, and what fits is admitted, until its quorum is met.

What is admitted is durable before it counts; what a round before a restart admitted is taken in again first.
"""

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from fedft.contract import State
from fedft.errors import RejectedUpdate, RunPaused
from fedft.server import admission, buffered, too_few
from fedft.server.admitted import Admitted, EverybodyLeft, Waiting, waiting
from fedft.server.admitting import Rest
from fedft.server.exchange import Exchange
from fedft.server.federation import Federation
from fedft.server.sending import Came
from fedft.server.traffic import Traffic, Until
from fedft.server.turns import Turns
from fedft.update import MEMORY_LOST, Plan, Update
from fedft.wire import messages

if TYPE_CHECKING:
    from fedft.server.masked_rounds import MaskedRounds

log = logging.getLogger(__name__)


@dataclass
class Asking:
    """The clients of one round, and what they have sent. Used once, by one thread."""

    exchange: Exchange
    """With the run's clients."""
    state: State
    """That the round begins from."""
    plans: Mapping[str, Plan]
    """By client, without tensors; durable."""
    turns: Turns
    """What of earlier rounds goes on."""
    norms: Sequence[float]
    """Norms of updates that were admitted in the last rounds: what is usual."""
    barred: Sequence[str] = ()
    """Clients in quarantine, for messages."""
    masked: "MaskedRounds | None" = None
    """Hides the updates until they are summed; None: nothing does."""
    admitted: Admitted = field(default_factory=Admitted)
    traffic: Traffic = field(default_factory=Traffic)
    _jumped: bool = False
    """Whether a site's word has sent the numbers of attempts ahead in this round."""

    @property
    def run(self) -> Federation:
        """The federation whose round this is."""
        return self.exchange.federation

    def recover(self, asked: list[str]) -> None:
        """What is journalled of this round; anything that would not be admitted now is passed over."""
        run = self.run
        for client in asked:
            if (payload := run.store.read(self.state.version, client)) is None:
                continue
            try:
                update, norm = self._admission(client, self.plans[client], recovered=True)(payload)
            except RejectedUpdate:
                continue
            self.admitted.enter(client, waiting(update), norm, len(payload))
        attempt = self.state.version + 1  # of as many digits as theirs was: for the length of what they were sent
        for c in self.admitted.up:
            if self.plans[c].round != self.state.version:  # it was sent its plan in an earlier round
                continue
            plan = self.exchange.plan(replace(self.plans[c], attempt=attempt), self.state, c)
            self.traffic.needed[c] = self.traffic.down[c] = len(messages.encode_plan(plan, run.config.codec.plans))
            self.exchange.have[c] = self.state.version, self.state.label

    def _is_fixed(self, asked: list[str]) -> bool:
        """Whether nobody is asked: a noisy sum is of a set that stands, or those whom the coins chose are nobody."""
        private = self.run.private
        return private is not None and (not asked or private.is_fixed(self.state.version, self.digests(asked)))

    def digests(self, clients: Collection[str]) -> dict[str, str]:
        """SHA-256 of the bytes of those updates that are admitted, by client."""
        admitted = [c for c in clients if c in self.admitted.examples]
        return {c: self.run.store.digest(self.state.version, c) for c in admitted}

    def to_quorum(self, asked: list[str]) -> None:
        """Ask until the quorum of `asked` is admitted. Raises RunPaused below it, EverybodyLeft if none may answer."""
        run, attempts = self.run, 0
        if self._is_fixed(asked):
            return
        # clients of a simulation do the same again, but that later answers of virtual devices have come meanwhile
        while attempts < (run.config.server.attempts if run.deployed or run.virtual else 1):
            attempts += 1
            missing = [c for c in run.still(asked) if c not in self.admitted.examples]
            if missing and not self.turns.are_enough(len(self.admitted.examples), len(self._counted(asked))):
                self._collect(missing, asked)
            if asked and not self._counted(asked):
                raise EverybodyLeft(f"round {self.state.version}: all who were asked have left")
            if len(self.admitted.examples) >= run.enough(len(self._counted(asked))):
                return
        if self.masked is not None:
            self.masked.give_up(self.state.version, self.traffic.refused)
        refused = next(iter(self.traffic.refused), None)
        admitted, counted = len(self.admitted.examples), len(self._counted(asked)) if asked else 0
        raise RunPaused(too_few.why(run, self.state.version, admitted, counted, attempts, self.barred, refused))

    def _counted(self, asked: Collection[str]) -> Collection[str]:
        """Those of whom a quorum is taken: they may still take part, or had their update admitted before they left."""
        gone = self.run.gone
        return [c for c in asked if c not in gone or c in self.admitted.examples] if gone else asked

    def _collect(self, clients: list[str], asked: Collection[str]) -> None:
        """Ask these clients of all that the round asks; what is admitted is durable when it enters `admitted`."""
        run = self.run
        plans = self.turns.attempt({c: self.plans[c] for c in clients})

        def accept(came: Came) -> Rest:
            admit = self._admission(came.client, plans[came.client])

            def work() -> tuple[Waiting, float]:
                update, norm = admit(came.payload)
                run.store.journal(self.state.version, came.client, came.payload, came.sha256)
                return waiting(update), norm

            return Rest(len(came.payload), work, partial(enter, came.client))

        def enter(client: str, found: tuple[Waiting, float]) -> None:
            waits, norm = found
            self.admitted.enter(client, waits, norm, self.traffic.up[client])
            if client in self.admitted.began_anew:
                log.warning("round %d: %s lost what it had kept, and began anew", self.state.version, client)
                run.observe(MEMORY_LOST, {"round": self.state.version, "client": client})
            told = {"round": self.state.version, "client": client, "metrics": waits.update.metrics}
            run.observe("admitted", told)

        up, limits = run.config.codec.up, run.config.limits
        longest = {c: admission.longest(run.recipe.spec(run.layout, p), up, limits) for c, p in plans.items()}
        before, told = len(self.admitted.examples), len(self.traffic.refused)

        def until() -> Until:
            return run.until_filled(self._counted(asked), before)

        run.observe("asking", {"round": self.state.version, "clients": clients, **until().to_dict()})
        begun = None if run.config.server.buffer is None else self.turns.begun
        self.exchange.ask("train", plans, self._state_of, accept, self.traffic, longest, until, begun)
        for client in (c for c, p in plans.items() if p.round != self.state.version):
            self.traffic.needed.pop(client, None)  # it was counted in the round that the turn began in
        stale = [r["client"] for r in self.traffic.refused[told:] if r["code"] == "stale" and r["client"] in plans]
        if stale and run.deployed and not self._jumped and run.store.jump():
            self._jumped = True  # once a round: no site sends the numbers on and on
            said = "round %d: %s answered later attempts than this run knows of, as after a restore; asking anew"
            log.warning(said, self.state.version, ", ".join(stale))
            self._collect(stale, asked)

    def _state_of(self, version: int) -> State:
        """The state of this version, which a plan leads to."""
        return self.state if version == self.state.version else self.turns.state(version)

    def _admission(
        self, client: str, plan: Plan, *, recovered: bool = False
    ) -> Callable[[bytes], tuple[Update, float]]:
        """`admission.admit` for the bytes of one client, by the limits that hold now: it may be called elsewhere.

        Where rounds do not wait the update has the examples that it counts for.
        """
        run, limits = self.run, self.run.config.limits
        cap = limits.max_num_examples  # of what was admitted before, the roster's holds no more
        if not recovered:
            cap = min(run.caps.get(client, cap), cap)
        admit = partial(
            admission.admit, client=client, plan=plan, recipe=run.recipe, layout=run.layout, up=run.config.codec.up,
            limits=replace(limits, max_num_examples=cap), norms=self.norms, recovered=recovered,
        )  # fmt: skip
        if run.private:
            return run.private.facts.without_numbers(admit, self.state.version, client)
        if run.config.server.buffer is None:
            return admit
        staleness = self.state.version - plan.round

        def weighed(payload: bytes) -> tuple[Update, float]:
            update, norm = admit(payload)
            return replace(update, num_examples=buffered.weight(update.num_examples, staleness)), norm

        return weighed
