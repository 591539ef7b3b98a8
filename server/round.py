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
from typing import TYPE_CHECKING

from fedft.aggregation.beginnings import Beginnings
from fedft.contract import Gate, State
from fedft.errors import GateRefused, RunPaused
from fedft.reports import metric_log
from fedft.server import admission, buffered, by_bits, planner_view, pruned_models
from fedft.server.admitted import Admitted, Outcome
from fedft.server.aggregation_error import AggregationAudit
from fedft.server.asking import Asking
from fedft.server.buffered import OpenTurn
from fedft.server.exchange import Exchange
from fedft.server.federation import Federation
from fedft.server.guard import Sum
from fedft.server.journalled_update import update_in
from fedft.server.traffic import Traffic
from fedft.server.turns import Turns
from fedft.update import MEMBERS, Plan, Scalar, Update

if TYPE_CHECKING:
    from fedft.server.masked_rounds import MaskedRounds

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
    masked: "MaskedRounds | None" = None
    """Hides the updates until they are summed; None: nothing does."""
    admitted: Admitted = field(default_factory=Admitted)
    traffic: Traffic = field(default_factory=Traffic)
    plans: dict[str, Plan] = field(default_factory=dict)
    """By client, without tensors; durable before the first is sent."""
    _asking: Asking = field(init=False)

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
            self._asking.to_quorum(asked)
        trained, by_clock = time.monotonic(), self.run.clock.monotonic() - by_clock
        weights = self._weights(asked)
        if self.masked is not None:
            weights = self.masked.open(self.exchange, weights, self._fixed)
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
        # who may be in a noisy sum is drawn from all members; once begun, those of the plans are asked
        drawn = run.private.schedule.draw(number, run.members) if run.private else None
        if not asked and self.masked is not None:
            extra, allowed = self.masked.begin(self.exchange, allowed)
        if not asked and run.config.privacy.shared:
            extra = {**extra, MEMBERS: self.masked.members if self.masked else len(run.members)}
        if drawn is not None:
            asked = asked or [c for c in drawn if c in allowed]
        elif not asked:
            asked = buffered.at_work(allowed, going_on, run.config.clients.per_round, run.job.seed, number)
        run.store.check_room()
        self.plans = run.durable_plans(self.state, asked, {c: turn.plan for c, turn in going_on.items()}, extra)
        if self.masked is not None:
            self.masked.take_up(run, self.plans)
        self._asking = Asking(
            self.exchange, self.state, self.plans, self._turns, self.norms, self.barred, self.masked, self.admitted,
            self.traffic,
        )  # fmt: skip
        if not run.virtual:
            self._asking.recover(asked)
        recovered = list(self.admitted.examples)
        run.observe("round", {"round": number, "asked": asked, "barred": list(self.barred), "recovered": recovered})
        return asked

    def _fixed(self, counted: Collection[str]) -> None:
        """Charge, durably, what the noisy sum of these updates costs, before it is opened."""
        if self.run.private:
            self.run.private.charged(self.state.version, self._asking.digests(counted))

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
        digests = self._asking.digests(list(weights)) if run.private else {}
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
