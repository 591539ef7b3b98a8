"""The round engine: asks clients, admits what fits, aggregates in roster order, commits. It knows no algorithm.

Every step that matters is durable before the next one starts: an admitted update is journalled before it counts, a
state is committed before its round is reported. Starting is recovery, so killing the process at any instant costs at
most the work of clients whose updates were not yet journalled, and the run ends with the same bytes.
"""

import logging
import math
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from fedft.carriers.interface import Post
from fedft.config import RunConfig
from fedft.contract import Layout, State
from fedft.errors import ConfigError, RejectedUpdate, RunPaused
from fedft.recipe import Recipe, replace_all
from fedft.reports import columns
from fedft.reports.metric_log import MetricsFile
from fedft.server import admission, budget, cohort
from fedft.server.aggregation_error import Exactness
from fedft.server.checkpoint import Store
from fedft.server.exchange import Clock, Exchange, Observer, Traffic, Until
from fedft.update import Job, Plan, Update
from fedft.wire import messages

log = logging.getLogger(__name__)

NORM_ROUNDS, QUARANTINE_ROUNDS = 5, 10
EVALUATION_BYTES = 8192  # an evaluation carries a header and no tensors
DEADLINE_S = 3600.0  # of a deployment whose run file sets none: a round ends whatever the sites do


@dataclass
class Admitted:
    """The updates of the open round that are durable: examples, norm and upload bytes by client."""

    examples: dict[str, int]
    norms: dict[str, float]
    up: dict[str, int]


@dataclass
class Loop:
    """A run in progress. `observe` hears of everything a person may want to see."""

    post: Post
    recipe: Recipe
    layout: Layout
    config: RunConfig
    job: Job
    store: Store
    metrics: MetricsFile
    observe: Observer = lambda kind, info: None
    clock: Clock = time
    deployed: bool = False
    """Sites come and go: whoever is not there is waited for up to quorum and deadline, and never an error."""
    caps: Mapping[str, int] = field(default_factory=dict)
    """Most examples that a client may claim, where that is less than `[limits] max_num_examples`."""
    lift: Collection[str] = ()
    """Clients whose quarantine ends now."""

    def __post_init__(self) -> None:
        self._talk = Exchange(
            self.post,
            self.recipe,
            messages.encode_job(self.job),
            self._enrolled,
            self.config.codec.plans,
            self.observe,
            self.clock,
        )
        self._ranks: dict[str, int] = {}
        self._counted: dict[str, int] = {}
        self._held_out: dict[str, int] = {}
        self._contradicted: set[str] = set()

    def run(self, clients: Collection[str]) -> State:
        """Carry the run to its last round and return the final state.

        Args:
            clients: names of all who may take part.
        Raises:
            ConfigError: the state found belongs to another run, or a client of a simulation does not take part.
            RunPaused: a round stayed below quorum, or the disk is full; running again continues.
        """
        self._check(clients)
        state, notes = self._found()
        self._counted = notes.get("counted", {})
        self._talk.have = {c: (version, label) for c, (version, label) in notes.get("have", {}).items()}
        self._enrol([c for c in self._ranks if c not in notes["barred"]])
        self._report(state, notes)
        while not budget.over(self.config, self.metrics.lines):
            state, notes = self._round(state, notes)
            self._report(state, notes)
        return state

    def _found(self) -> tuple[State, dict[str, Any]]:
        """The state to go on from: the newest on disk, or the first."""
        found = self.store.latest()
        if found is None:
            try:
                state = self.recipe.first_state(self.layout, max(self._ranks.values()), self.job.seed)
            except ValueError as e:  # options that do not fit this model
                raise ConfigError(f"{self.recipe.name}: {e}") from e
            notes: dict[str, Any] = {"run": self.job.run, "norms": [], "refusals": [], "barred": [], "record": {}}
            self.store.save(state, notes)
        else:
            state, notes = found
        if notes["run"] != self.job.run:
            raise ConfigError(
                f"the state found is of run {notes['run']}, this is run {self.job.run}: "
                "its config, base model or data have changed since; start in another folder"
            )
        if lifted := {*self.lift} & {*notes["barred"]}:
            notes["barred"] = [c for c in notes["barred"] if c not in lifted]
            notes["refusals"] = [r for r in notes["refusals"] if r[1] not in lifted]
            self.store.save(state, notes)
        return state, notes

    def _check(self, clients: Collection[str]) -> None:
        if not clients:
            raise ConfigError("no clients: nobody is enrolled")
        roster = sorted(clients, key=str.encode)
        ranks = self.config.ranks()
        self._ranks = {name: ranks[i % len(ranks)] for i, name in enumerate(roster)}

    def _enrol(self, clients: list[str]) -> None:
        """Send them the job. Who of a deployment is not there yet is sent it with its first plan."""
        self.observe("enrolling", {"clients": clients})
        until = Until(self._quorum(len(clients)), self.config.server.grace_s) if self.deployed else Until()
        traffic = Traffic()
        self._talk.enrol(clients, traffic, until)
        for refusal in traffic.refused:
            if not self.deployed:
                raise ConfigError(f"client {refusal['client']} did not enrol: {refusal['code']}: {refusal['reason']}")

    def _enrolled(self, client: str, payload: bytes) -> None:
        said = messages.decode_update(payload, {}, "fp32", max_bytes=EVALUATION_BYTES).metrics
        self._held_out[client] = int(said.get("held_out", 0))
        self.observe("enrolled", {"client": client})

    def _quorum(self, asked: int) -> int:
        return max(1, math.ceil(self.config.server.quorum * asked - 1e-9))

    def _until(self, need: int) -> Until:
        """When an exchange ends."""
        limit, grace = self.config.server.deadline_s, self.config.server.grace_s
        if limit is None and not self.deployed:
            return Until(need)
        return Until(need, grace, limit or DEADLINE_S)

    # -- one round -----------------------------------------------------------------------------------------------

    def _round(self, state: State, notes: dict[str, Any]) -> tuple[State, dict[str, Any]]:
        started, number = time.monotonic(), state.version
        allowed = [c for c in self._ranks if c not in notes["barred"]]
        asked = cohort.cohort(allowed, self.config.clients.per_round, self.job.seed, number)
        quorum = self._quorum(len(asked))
        self.store.check_room()
        norms = [n for of_round in notes["norms"] for n in of_round]
        admitted, traffic = self._recovered(state, asked, norms), Traffic()
        for c in admitted.up:  # asked before we were killed
            plan = self._talk.plan(self._bare_plan(state, c, attempt=number + 1), state, c)
            traffic.needed[c] = traffic.down[c] = len(messages.encode_plan(plan, self.config.codec.plans))
            self._talk.have[c] = state.version, state.label
        self.observe("round", {"round": number, "asked": asked})
        for _ in range(self.config.server.attempts):
            if missing := [c for c in asked if c not in admitted.examples]:
                self._collect(state, missing, quorum, norms, admitted, traffic)
            if len(admitted.examples) >= quorum:
                break
        else:
            barred = f"; quarantined: {', '.join(notes['barred'])}" if notes["barred"] else ""
            raise RunPaused(
                f"round {number}: {len(admitted.examples)} of {len(asked)} updates admitted in "
                f"{self.config.server.attempts} attempts, quorum is {quorum}{barred}; run again to continue"
            )
        trained = time.monotonic()
        examples = {c: admitted.examples[c] for c in asked if c in admitted.examples}
        weights = admission.capped(examples, self.config.limits.max_share)
        for c in examples:
            if weights[c] != examples[c]:
                log.warning("round %d: weight of %s cut to %d examples; see [limits] max_share", number, c, weights[c])
        facts: list[tuple[int, Mapping[str, float]]] = []
        audit = self._audit(state, next(iter(weights)))
        change = self.recipe.aggregate(self._updates(state, weights, facts, audit))
        after = State(number + 1, self.recipe.server(state, change))
        self._check_travels(after, admitted)
        aggregated = time.monotonic()
        error = audit.error(after, max(self._ranks.values())) if audit else None
        total = sum(n for n, _ in facts)
        record = {
            "round": number,
            "train_loss": sum(n * m.get("loss", math.nan) for n, m in facts) / total,
            "participants": list(weights),
            "weights": weights,
            "refused": traffic.refused,
            **({} if error is None else {"aggregation_error": error}),
            "bytes": {
                c: {
                    "up": admitted.up.get(c, traffic.up.get(c, 0)),
                    "down": traffic.down.get(c, 0),
                    "needed": traffic.needed.get(c, 0),
                }
                for c in asked
            },
            "seconds": {
                "train": trained - started,
                "aggregate": aggregated - trained,
                "audit": time.monotonic() - aggregated,
            },
        }
        recent = [r for r in notes["refusals"] if r[0] > number - QUARANTINE_ROUNDS]
        refusals = recent + [[number, client] for client in sorted(traffic.blamed | self._contradicted, key=str.encode)]
        self._contradicted = set()
        barred_now = _barred(refusals, self.config.limits.quarantine_after)
        kept = {
            "run": self.job.run,
            "norms": [*notes["norms"], [admitted.norms[c] for c in weights]][-NORM_ROUNDS:],
            "refusals": refusals,
            "barred": sorted({*notes["barred"], *barred_now}, key=str.encode),
            "record": record,
            "have": dict(self._talk.have),
        }
        if self.recipe.keeps:
            kept["counted"] = self._counted = {**self._counted, **dict.fromkeys(weights, number)}
        self.store.save(after, kept)
        return after, kept

    def _collect(
        self,
        state: State,
        clients: list[str],
        quorum: int,
        norms: list[float],
        admitted: Admitted,
        traffic: Traffic,
    ) -> None:
        """Ask these clients; what is admitted is durable when it enters `admitted`."""
        attempt = self.store.next_attempt()
        plans = {c: self._bare_plan(state, c, attempt=attempt) for c in clients}

        def accept(client: str, payload: bytes) -> None:
            update, norm = self._admit(payload, client, plans[client], norms)
            self.store.journal(state.version, client, payload)
            _enter(admitted, client, update, norm, traffic.up[client])
            self.observe("admitted", {"round": state.version, "client": client, "metrics": update.metrics})

        need = quorum - len(admitted.examples)
        up, limits = self.config.codec.up, self.config.limits
        longest = {c: admission.longest(self.recipe.spec(self.layout, plans[c]), up, limits) for c in clients}
        self._talk.ask("train", plans, state, accept, traffic, longest, self._until(need))

    def _recovered(self, state: State, asked: list[str], norms: list[float]) -> Admitted:
        """What a run that was killed in this round had made durable; anything else is passed over."""
        admitted = Admitted({}, {}, {})
        for client in asked:
            if (payload := self.store.read(state.version, client)) is not None:
                try:
                    update, norm = self._admit(payload, client, self._bare_plan(state, client), norms, recovered=True)
                except RejectedUpdate:
                    continue
                _enter(admitted, client, update, norm, len(payload))
        return admitted

    def _admit(
        self, payload: bytes, client: str, plan: Plan, norms: list[float], *, recovered: bool = False
    ) -> tuple[Update, float]:
        c, cap = self.config, self.caps.get(client, self.config.limits.max_num_examples)
        limits = replace(c.limits, max_num_examples=min(cap, c.limits.max_num_examples))
        return admission.admit(
            payload, client, plan, self.recipe, self.layout, c.codec.up, limits, norms, recovered=recovered
        )

    def _check_travels(self, after: State, admitted: Admitted) -> None:
        """A state that no client could decode is not committed, or the run could never go on."""
        rank = max(self._ranks.values()) if self.layout.modules else 0
        plan = Plan(self.job.run, after.version, after.version, rank=rank)
        travels = [*self.recipe.downlink(after, None, plan).items()]
        travels += self.recipe.downlink(after, after.version - 1, replace(plan, have=after.version - 1)).items()
        for name, x in travels:
            if x.is_floating_point() and x.numel() and not float(x.abs().max()) <= messages.MAX_ABS:
                largest = max(admitted.norms, key=lambda c: admitted.norms[c])
                self.store.drop(after.version - 1)
                raise RunPaused(
                    f"round {after.version - 1}: {name} would go beyond {messages.MAX_ABS:g} or is no number, so "
                    f"nothing is committed; the largest update was {largest}'s, norm {admitted.norms[largest]:.3g}. "
                    "Lower the learning rate or set [limits] max_norm; running again asks everybody anew"
                )

    def _audit(self, state: State, client: str) -> Exactness | None:
        """What measures the aggregate of this round, if it is wanted and can be measured."""
        plan = self._bare_plan(state, client)
        audit = Exactness(self.recipe, self.layout, state, plan, self.config.local, self.job.seed)
        return audit if self.config.eval.exactness and audit.possible() else None

    def _updates(
        self,
        state: State,
        weights: Mapping[str, int],
        facts: list[tuple[int, Mapping[str, float]]],
        audit: Exactness | None,
    ) -> Iterator[Update]:
        """The journalled updates in roster order, one in memory at a time."""
        for client, weight in weights.items():
            payload = self.store.read(state.version, client)
            if payload is None:
                raise RunPaused(f"round {state.version}: the update of {client} on disk no longer verifies; resume")
            plan = self._bare_plan(state, client)
            update = messages.decode_update(payload, self.recipe.spec(self.layout, plan), self.config.codec.up)
            facts.append((weight, update.metrics))
            update = replace(update, client=client, roster=len(self._ranks), num_examples=weight)
            if audit:
                audit.see(update, plan.rank)
            yield update

    def _bare_plan(self, state: State, client: str, **more: Any) -> Plan:
        c = self.config.local
        rank = self.recipe.rank(state, client, self._ranks[client]) if self.layout.modules else 0
        version, lr = state.version, c.learning_rate * c.learning_rate_decay**state.version
        counted = self._counted.get(client)
        return Plan(self.job.run, version, version, rank=rank, steps=c.steps, learning_rate=lr, counted=counted, **more)

    # -- what was measured -----------------------------------------------------------------------------------------

    def _report(self, state: State, notes: Mapping[str, Any]) -> None:
        """Evaluate where it is due and write the line of this version, unless it stands already."""
        if self.metrics.has(state.version):
            return
        started = time.monotonic()
        line: dict[str, Any] = {"version": state.version, "refused": [], "seconds": {}, **notes["record"]}
        line["state_digest"] = state.digest
        if "bytes" in line:
            adds = self.recipe.receive is not replace_all
            earlier = [] if self.recipe.evaluates_apart else self.metrics.lines
            line["training_bytes"] = budget.training_bytes(line, earlier, adds)
        last = budget.over(self.config, [*self.metrics.lines, line])
        if last or state.version % self.config.eval.every == 0:
            rouge = self.config.eval.rouge and (last or state.version == 0)
            found, traffic = self._evaluate(state, rouge, notes["barred"])
            line = columns.averaged(found.values()) | line
            # refused evaluations are nobody's fault where the state is; a contradiction of an update is
            self._contradicted |= {r["client"] for r in traffic.refused if r["code"] == "equivocation"}
            line["evaluation"] = found
            line["evaluation_bytes"] = {"up": traffic.up, "down": traffic.down, "needed": traffic.needed}
            line["refused"] = [*line["refused"], *traffic.refused]
        line["bytes_up"], line["bytes_down"] = _total(line, "up"), _total(line, "down")
        line["seconds"] = {**line["seconds"], "evaluate": time.monotonic() - started}
        self.metrics.append(line)
        self.observe("line", line)

    def _evaluate(self, state: State, rouge: bool, barred: list[str]) -> tuple[dict[str, dict[str, float]], Traffic]:
        found: dict[str, dict[str, float]] = {}

        def accept(client: str, payload: bytes) -> None:
            update = messages.decode_update(payload, {}, self.config.codec.up, max_bytes=EVALUATION_BYTES)
            if (update.run, update.round) != (self.job.run, state.version):
                raise RejectedUpdate("late", f"evaluation of round {update.round}, open is {state.version}")
            if "loss" not in update.metrics:
                raise RejectedUpdate("malformed", "an evaluation without a finite loss")
            found[client] = dict(update.metrics)

        able = [c for c in self._ranks if self._held_out.get(c) and c not in barred]
        panel = cohort.panel(able, self.config.eval.clients, self.job.seed)
        extra = {"rouge": True} if rouge else {}
        self.observe("evaluating", {"version": state.version, "asked": panel})
        traffic = Traffic()
        plans = {c: replace(self._bare_plan(state, c), steps=0, evaluate=True, extra=extra) for c in panel}
        limits = dict.fromkeys(panel, EVALUATION_BYTES)
        self._talk.ask("evaluate", plans, state, accept, traffic, limits, self._until(self._quorum(len(panel))))
        return dict(sorted(found.items())), traffic


def _enter(admitted: Admitted, client: str, update: Update, norm: float, up: int) -> None:
    admitted.examples[client], admitted.norms[client], admitted.up[client] = update.num_examples, norm, up


def _barred(refusals: list[list[Any]], limit: int) -> list[str]:
    """Clients refused in `limit` of the last rounds for what they sent (not for what the network did)."""
    rounds = {(r, c) for r, c in refusals}
    clients = [c for _, c in rounds]
    return [c for c in set(clients) if clients.count(c) >= limit]


def _total(line: Mapping[str, Any], way: str) -> int:
    train = sum(b[way] for b in line.get("bytes", {}).values())
    return train + sum(line.get("evaluation_bytes", {}).get(way, {}).values())
