"""One round of training: ask the cohort, admit what fits, aggregate in roster order, make the next state.

Every step that matters is durable before the next one starts: plans before the first is sent, an admitted update before
it counts. So a process that is killed in a round finds there what it needs to end the round with the same bytes.
"""

import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import InitVar, dataclass, field, replace
from functools import partial
from types import MappingProxyType

from fedft.aggregation.beginnings import Beginnings
from fedft.contract import Gate, State
from fedft.errors import GateRefused, RejectedUpdate, RunPaused
from fedft.reports import metric_log
from fedft.server import admission, buffered, by_bits, planner_view, pruned_models, too_few
from fedft.server.admitted import Admitted, EverybodyLeft, Outcome, Waiting, waiting
from fedft.server.admitting import Rest
from fedft.server.aggregation_error import AggregationAudit
from fedft.server.buffered import OpenTurn
from fedft.server.exchange import Exchange
from fedft.server.federation import Federation
from fedft.server.guard import Sum
from fedft.server.journalled_update import update_in
from fedft.server.masked_rounds import MaskedRounds
from fedft.server.sending import Came
from fedft.server.traffic import Traffic, Until
from fedft.server.turns import Turns
from fedft.update import MEMORY_LOST, Plan, Scalar, Update
from fedft.wire import messages

log = logging.getLogger(__name__)


@dataclass
class Round:
    """The round that leads from `state` to the next one. Used once, by one thread."""

    exchange: Exchange
    """With the run's clients."""
    state: State
    norms: Sequence[float]
    """Norms of updates that were admitted in the last rounds: what is usual."""
    gates: Sequence[Gate]
    """Asked in this order; each may refuse the new state or give another one."""
    barred: Sequence[str] = ()
    """Clients in quarantine, who are not asked."""
    going_on: InitVar[Mapping[str, OpenTurn]] = MappingProxyType({})
    """What of earlier rounds goes on, by client."""
    masked: MaskedRounds | None = None
    """Hides the updates until they are summed; None: nothing does."""
    admitted: Admitted = field(default_factory=Admitted)
    traffic: Traffic = field(default_factory=Traffic)
    plans: dict[str, Plan] = field(default_factory=dict)
    """By client, without tensors; durable before the first is sent."""
    _jumped: bool = False
    """Whether a site's word has sent the numbers of attempts ahead in this round."""

    def __post_init__(self, going_on: Mapping[str, OpenTurn]) -> None:
        self._turns = Turns(self.exchange, self.state.version, going_on)

    @property
    def run(self) -> Federation:
        """The federation whose round this is."""
        return self.exchange.federation

    def carry_out(self) -> Outcome:
        """Ask the cohort, wait for its quorum, aggregate, and return the outcome, which the caller commits.

        Raises RunPaused below quorum and where a gate refuses the next state. Updates that were admitted stay on disk
        in the first case, for the next attempt, and are dropped in the second. Raises EverybodyLeft where none of those
        who were asked may take part any more, and SumLost where what its secure sum needs is lost.
        """
        started, by_clock = time.monotonic(), self.run.clock.monotonic()
        asked = self._begin()
        if self.masked is None or self.masked.survivors is None:
            self._collect_to_quorum(asked)
        trained, by_clock = time.monotonic(), self.run.clock.monotonic() - by_clock
        weights = self._weights(asked)
        if self.masked is not None:
            weights = self.masked.open(self.exchange, weights)
        said: dict[str, Mapping[str, float]] = {}
        audit = self._audit(weights)
        run = self.run
        change, guarded = run.guard.sum(self._sum(asked, weights, partial(self._updates, weights, said, audit)))
        after = run.recipe.next_state(self.state, change)
        aggregated = time.monotonic()
        error = audit.error(after, self.run.rank) if audit else None
        said = {} if run.private else said
        facts = [(n, said[c]) for c, n in weights.items() if c in said]
        measured = {**by_bits.mean_loss(facts), **({} if error is None else {"aggregation_error": error})}
        measured |= {k: x for k, x in guarded.items() if k == "train_loss"}
        after = self._through_gates(after, measured)
        seconds = {
            "train": trained - started,
            "aggregate": aggregated - trained,
            "audit": time.monotonic() - aggregated,
            **({metric_log.VIRTUAL: by_clock} if self.run.virtual else {}),
        }
        record = self.admitted.record(self.state.version, asked, weights, self.traffic, measured, seconds)
        record |= {**guarded, **self._turns.facts(weights, self.plans)}
        record |= self.masked.record(record["refused"]) if self.masked is not None else {}
        record |= by_bits.trained(facts, self.run.config.model)
        record |= pruned_models.trained(said)
        if self.run.timed:
            record["reply_s"] = {c: self.traffic.seconds[c] for c in asked if c in self.traffic.seconds}
        norms = {} if run.private else {c: self.admitted.norms[c] for c in weights}
        if run.private:
            record = run.private.facts.published(record, secret=run.private.schedule.secret)
        seen: planner_view.SeenBy = {}
        turns = self._turns.going_on(self.plans, self.admitted.examples, self.traffic)
        if self.run.recipe.plans_work:
            new = {c: self.plans[c] for c in asked if self.plans[c].round == self.state.version}
            record["plans"] = planner_view.told(new)
            seen = self._seen(norms, said, turns)
        counted = {c: self.plans[c].round for c in weights}
        return Outcome(after, record, [*norms.values()], counted, self.traffic.blamed, turns, seen)

    def _seen(
        self, norms: Mapping[str, float], said: Mapping[str, Mapping[str, float]], going_on: Collection[str]
    ) -> planner_view.SeenBy:
        """What was seen of each client, this round with it, but of those whose turn is `going_on`.

        `said` are the metrics of those whose updates count.
        """
        run = self.run
        plans = {c: p for c, p in self.plans.items() if c not in going_on}
        of_all = replace(self.traffic, up=self.traffic.up | self.admitted.up)  # before a kill, too
        return planner_view.seen_after(run.seen, plans, of_all, norms, said, timed=run.timed, most=run.recipe.remembers)

    def _begin(self) -> list[str]:
        """Seat the members, draw the cohort, make its plans durable, and take in what was admitted before a kill.

        A round that was begun asks those of its plans, whoever has come or gone since.
        """
        run, number = self.run, self.state.version
        asked = sorted(run.store.plans(number), key=str.encode)
        run.seat(number, asked)
        allowed = [c for c in run.members if c not in self.barred]
        going_on = self._turns.give_up(allowed, self.traffic)
        extra: Mapping[str, Scalar] = {}
        if run.private:
            drawn = run.private.schedule.draw(number, run.members)  # once begun, those of the plans
            asked = asked or [c for c in drawn if c in allowed]
        elif not asked:
            if self.masked is not None:
                extra, allowed = self.masked.begin(self.exchange, allowed)
            asked = buffered.at_work(allowed, going_on, run.config.clients.per_round, run.job.seed, number)
        run.store.check_room()
        self.plans = run.durable_plans(self.state, asked, {c: turn.plan for c, turn in going_on.items()}, extra)
        if self.masked is not None:
            self.masked.take_up(run, self.plans)
        if not run.virtual:
            self._recover(asked)
        recovered = list(self.admitted.examples)
        run.observe("round", {"round": number, "asked": asked, "barred": list(self.barred), "recovered": recovered})
        return asked

    def _recover(self, asked: list[str]) -> None:
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
        return private is not None and (not asked or private.is_fixed(self.state.version, self._digests(asked)))

    def _digests(self, clients: Collection[str]) -> dict[str, str]:
        """SHA-256 of the bytes of those updates that are admitted, by client."""
        admitted = [c for c in clients if c in self.admitted.examples]
        return {c: self.run.store.digest(self.state.version, c) for c in admitted}

    def _collect_to_quorum(self, asked: list[str]) -> None:
        run, attempts = self.run, 0
        if self._is_fixed(asked):
            return
        # clients of a simulation do the same again, but that later answers of virtual devices have come meanwhile
        while attempts < (run.config.server.attempts if run.deployed or run.virtual else 1):
            attempts += 1
            missing = [c for c in run.still(asked) if c not in self.admitted.examples]
            if missing and not self._turns.are_enough(len(self.admitted.examples), len(self._counted(asked))):
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
        plans = self._turns.attempt({c: self.plans[c] for c in clients})

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
        begun = None if run.config.server.buffer is None else self._turns.begun
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
        return self.state if version == self.state.version else self._turns.state(version)

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

    def _weights(self, asked: list[str]) -> dict[str, int]:
        """Weights of those who are admitted, in roster order; all alike where each may move a sum as much."""
        examples = {c: self.admitted.examples[c] for c in asked if c in self.admitted.examples}
        if self.run.private:
            return dict.fromkeys(examples, 1)
        return admission.capped(examples, self.run.config.limits.share(self.run.deployed))

    def _audit(self, weights: Mapping[str, int]) -> AggregationAudit | None:
        """What measures the aggregate of this round, if it is wanted and can be measured."""
        run = self.run
        if run.private:
            return None
        plan = self.plans[next(iter(weights))]
        late = any(self.plans[c].round != self.state.version for c in weights)  # these are changes of other states
        summed = run.config.privacy.secagg != "off"  # nobody sees single updates
        if not run.config.eval.exactness or late or summed:
            return None
        begun = Beginnings(run.recipe, run.layout, self.state, plan, run.config.local, run.job.seed)
        audit = AggregationAudit(begun)
        return audit.sampled(len(self.plans)) if audit.possible(self.plans[c] for c in weights) else None

    def _sum(self, asked: list[str], weights: Mapping[str, int], updates: Callable[[], Iterator[Update]]) -> Sum:
        """What the guard is given of this round."""
        run, members = self.run, self.run.members
        plan = self.plans[asked[0]] if asked else run.plans(self.state, [next(iter(members))]).popitem()[1]
        digests = self._digests(list(weights)) if run.private else {}
        return Sum(run.recipe, run.layout, self.state, asked, weights, self.plans, updates, plan, digests, len(members))

    def _updates(
        self, weights: Mapping[str, int], said: dict[str, Mapping[str, float]], audit: AggregationAudit | None
    ) -> Iterator[Update]:
        """The admitted updates in roster order: those held in memory, others as they lie in the journal.

        `said` gets the metrics of each that was not read before, and `audit` sees it.
        """
        for client, weight in weights.items():
            update = self.admitted.take(client) or self._journalled(client)
            update = replace(update, client=client, roster=len(self.run.members), cohort=len(weights))
            if audit and client not in said:
                audit.see(update, self.plans[client])  # with the published weight, so that a cut shows in the error
            said[client] = update.metrics
            yield replace(update, num_examples=weight)

    def _journalled(self, client: str) -> Update:
        """The client's update as the journal has it. Raises RunPaused where it is not what was written."""
        run, number = self.run, self.state.version
        if (path := run.store.journalled(number, client)) is None:
            raise RunPaused(f"round {number}: the update of {client} on disk no longer verifies; resume")
        return update_in(path, run.recipe.spec(run.layout, self.plans[client]), run.config.codec.up)

    def _through_gates(self, after: State, measured: Mapping[str, float]) -> State:
        for gate in self.gates:
            try:
                norms = {} if self.run.private else self.admitted.norms
                after = gate(self.state, after, {**measured, "norms": norms})
            except GateRefused as e:
                self.run.store.drop(self.state.version)
                if self.run.private:
                    self.run.private.dropped(self.state.version)
                raise RunPaused(
                    f"round {self.state.version}: nothing is committed: {e}; running again asks everybody anew"
                ) from e
        return after
