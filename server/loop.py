"""The round engine: asks clients, admits what fits, aggregates in roster order, commits. It knows no algorithm.

Every step that matters is durable before the next one starts: an admitted update is journalled before it counts, a
state is committed before its round is reported. Starting is recovery, so killing the process at any instant costs at
most the work of clients whose updates were not yet journalled, and the run ends with the same bytes.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

from fedft import codec, tensors, transport
from fedft.config import RunConfig
from fedft.errors import ConfigError, RejectedUpdate, RunPaused
from fedft.recipe import Layout, Recipe, State
from fedft.server import admission, sampling
from fedft.server.checkpoint import Store
from fedft.server.metrics import MetricsFile
from fedft.update import Job, Plan, Update

log = logging.getLogger(__name__)

POLL_S = 0.05
NORM_ROUNDS, QUARANTINE_ROUNDS = 5, 10
EVALUATION_BYTES = 8192  # an evaluation carries a header and no tensors
Observer = Callable[[str, Mapping[str, Any]], None]


@dataclass
class Exchange:
    """What one exchange of messages cost: bytes by client, and the refused."""

    up: dict[str, int] = field(default_factory=dict)
    down: dict[str, int] = field(default_factory=dict)
    refused: list[dict[str, str]] = field(default_factory=list)


@dataclass
class Loop:
    """A run in progress. `observe` hears of everything a person may want to see."""

    grid: transport.Grid
    recipe: Recipe
    layout: Layout
    config: RunConfig
    job: Job
    store: Store
    metrics: MetricsFile
    observe: Observer = lambda kind, info: None

    def __post_init__(self) -> None:
        self._nodes: dict[str, int] = {}
        self._ranks: dict[str, int] = {}
        self._have: dict[str, int] = {}
        self._stale: set[str] = set()

    def run(self, names: Mapping[int, str]) -> State:
        """Carry the run to its last round and return the final state.

        Args:
            names: client by Flower node id; the roster.
        Raises:
            RunPaused: a round stayed below quorum, or the disk is full; running again continues.
        """
        self._enrol(names)
        found = self.store.latest()
        if found is None:
            state, notes = self.recipe.first_state(self.layout, max(self.config.ranks()), self.job.seed), _no_notes()
            self.store.save(state, notes)
        else:
            state, notes = found
        self._report(state, notes)
        while state.version < self.config.server.rounds:
            state, notes = self._round(state, notes)
            self._report(state, notes)
        return state

    # -- who -----------------------------------------------------------------------------------------------------

    def _enrol(self, names: Mapping[int, str]) -> None:
        payload = codec.encode_job(self.job)
        roster = sorted(names.values(), key=str.encode)
        ranks = self.config.ranks()
        self._nodes = {name: node for node, name in names.items()}
        self._ranks = {name: ranks[i % len(ranks)] for i, name in enumerate(roster)}
        if len(set(self._ranks.values())) > 1 and not self.recipe.unlike_ranks and self.layout.modules:
            raise ConfigError(
                f"[clients] rank: {self.recipe.name} needs one rank for all clients, got {sorted(set(ranks))}"
            )
        if self.recipe.adds_downloads and self.config.codec.down != "fp32":
            raise ConfigError(
                f"[codec] down: clients of {self.recipe.name} add up what they receive; wanted 'fp32', "
                f"got {self.config.codec.down!r}"
            )
        replies = self._exchange("query", dict.fromkeys(roster, payload), lambda name, reply: None, need=len(roster))
        for refusal in replies.refused:
            raise ConfigError(f"client {refusal['client']} did not enrol: {refusal['code']}: {refusal['reason']}")

    # -- one round -----------------------------------------------------------------------------------------------

    def _round(self, state: State, notes: dict[str, Any]) -> tuple[State, dict[str, Any]]:
        started, number = time.monotonic(), state.version
        barred = _quarantined(notes["refusals"], number, self.config.limits.quarantine_after)
        allowed = [c for c in self._nodes if c not in barred]
        asked = sampling.cohort(allowed, self.config.clients.per_round, self.job.seed, number)
        quorum = max(1, math.ceil(self.config.server.quorum * len(asked) - 1e-9))
        norms = [n for of_round in notes["norms"][-NORM_ROUNDS:] for n in of_round]
        cost, found, seen = Exchange(), {}, {}

        def accept(plan: Plan) -> Callable[[str, bytes], None]:
            def one(name: str, payload: bytes) -> None:
                update, norm = admission.admit(
                    payload, name, plan, self.recipe, self.layout, self.config.codec.up, self.config.limits, norms
                )
                self.store.journal(number, name, payload)
                found[name], seen[name] = norm, update.num_examples
                self.observe("admitted", {"round": number, "client": name, "metrics": update.metrics})

            return one

        self.observe("round", {"round": number, "asked": asked})
        for attempt in range(self.config.server.attempts):
            done = set(self.store.journalled(number))
            plans = {c: self._plan(state, c, attempt) for c in asked if c not in done}
            rules = {c: accept(p) for c, p in plans.items()}
            one = self._ask("train", plans, lambda c, payload: rules[c](c, payload), quorum - len(done), state)  # noqa: B023
            _add(cost, one)
            if len(self.store.journalled(number)) >= quorum:
                break
        else:
            raise RunPaused(
                f"round {number}: {len(self.store.journalled(number))} of {len(asked)} updates admitted in "
                f"{self.config.server.attempts} attempts, quorum is {quorum}; run again to continue"
            )
        trained = time.monotonic()
        counted = self.store.journalled(number)
        facts: list[tuple[float, Mapping[str, float]]] = []
        examples = {c: seen[c] if c in seen else self._update(state, c).num_examples for c in counted}
        weights = admission.capped(examples, self.config.limits.max_share)
        if cut := {c: n for c, n in weights.items() if n != examples[c]}:
            log.warning("round %d: weight of %s cut to %d examples; see [limits] max_share", number, *cut.popitem())
        change = self.recipe.aggregate(self._admitted(state, weights, facts))
        after = State(number + 1, self.recipe.server(state, change))
        total = sum(n for n, _ in facts)
        record = {
            "round": number,
            "train_loss": sum(n * m.get("loss", math.nan) for n, m in facts) / total,
            "participants": counted,
            "weights": weights,
            "refused": cost.refused,
            "bytes": {c: {"up": cost.up.get(c, 0), "down": cost.down.get(c, 0)} for c in asked},
            "seconds": {"train": trained - started, "aggregate": time.monotonic() - trained},
        }
        refusals = notes["refusals"] + [[number, r["client"], r["code"]] for r in cost.refused]
        norms_now = [found[c] for c in counted if c in found]
        kept = {"norms": (notes["norms"] + [norms_now])[-NORM_ROUNDS:], "refusals": refusals, "record": record}
        self.store.save(after, kept)
        return after, kept

    def _admitted(
        self, state: State, weights: Mapping[str, int], facts: list[tuple[float, Mapping[str, float]]]
    ) -> Iterator[Update]:
        """The journalled updates in roster order, one in memory at a time."""
        for client, weight in weights.items():
            update = replace(self._update(state, client), num_examples=weight)
            facts.append((update.num_examples, update.metrics))
            yield update

    def _update(self, state: State, client: str) -> Update:
        spec = self.recipe.upload(self.recipe, self.layout, self._bare_plan(state, client))
        payload = self.store.read(state.version, client)
        return replace(codec.decode_update(payload, spec, self.config.codec.up), client=client)

    def _bare_plan(self, state: State, client: str, **more: Any) -> Plan:
        c = self.config.local
        return Plan(
            self.job.run,
            state.version,
            state.version,
            rank=self._ranks[client] if self.layout.modules else 0,
            steps=c.steps,
            learning_rate=c.learning_rate,
            **more,
        )

    def _plan(self, state: State, client: str, attempt: int = 0, **more: Any) -> Plan:
        """What this client is to do, with what takes it from the version it stands at to `state`."""
        have = self._have.get(client)
        plan = self._bare_plan(state, client, have=have, attempt=attempt, **more)
        sent = self.recipe.downlink(state, have, plan)
        return replace(plan, tensors=sent)

    # -- what was measured -----------------------------------------------------------------------------------------

    def _report(self, state: State, notes: Mapping[str, Any]) -> None:
        """Evaluate where it is due and write the line of this version, unless it stands already."""
        last = state.version == self.config.server.rounds
        if self.metrics.has(state.version):
            return
        started = time.monotonic()
        line: dict[str, Any] = {"version": state.version, **notes["record"]}
        line["state_digest"] = tensors.digest(state.tensors)
        if last or state.version % self.config.eval.every == 0:
            rouge = self.config.eval.rouge and (last or state.version == 0)
            by_client, cost = self._evaluate(state, rouge)
            for name in next(iter(by_client.values()), {}):
                if name != "count":
                    line[name] = fmean(m[name] for m in by_client.values())
            line |= {"evaluation": by_client, "evaluation_bytes": {"up": cost.up, "down": cost.down}}
        line["bytes_up"], line["bytes_down"] = _total(line, "up"), _total(line, "down")
        line.setdefault("seconds", {})["evaluate"] = time.monotonic() - started
        self.metrics.append(line)
        self.observe("line", line)

    def _evaluate(self, state: State, rouge: bool) -> tuple[dict[str, dict[str, float]], Exchange]:
        found: dict[str, dict[str, float]] = {}

        def accept(name: str, payload: bytes) -> None:
            update = codec.decode_update(payload, {}, self.config.codec.up, max_bytes=EVALUATION_BYTES)
            if (update.run, update.round) != (self.job.run, state.version):
                raise RejectedUpdate("late", f"evaluation of round {update.round}, open is {state.version}")
            found[name] = dict(update.metrics)

        panel = sampling.panel(list(self._nodes), self.config.eval.clients, self.job.seed)
        extra = {"rouge": True} if rouge else {}
        self.observe("evaluating", {"version": state.version, "asked": panel})
        plans = {c: self._plan(state, c, evaluate=True, extra=extra) for c in panel}
        cost = self._ask("evaluate", plans, accept, len(panel), state)
        return dict(sorted(found.items())), cost

    # -- messages --------------------------------------------------------------------------------------------------

    def _ask(
        self,
        kind: transport.Kind,
        plans: Mapping[str, Plan],
        accept: Callable[[str, bytes], None],
        need: int,
        state: State,
    ) -> Exchange:
        """Send plans; a client that turns out to stand elsewhere is asked once more with what it lacks."""
        down = self.config.codec.down
        cost = self._exchange(kind, {c: codec.encode_plan(p, down) for c, p in plans.items()}, accept, need)
        behind = {r["client"]: r["reason"] for r in cost.refused if r["code"] == "behind"}
        for client in plans:
            if client in behind:
                self._have.pop(client, None)
                if behind[client].isdecimal() and int(behind[client]) <= state.version:
                    self._have[client] = int(behind[client])
            else:
                self._have[client] = state.version
        cost.refused = [r for r in cost.refused if r["code"] != "behind"]
        if behind:
            again = {c: self._catch_up(plans[c], state, c) for c in behind}
            _add(cost, self._exchange(kind, {c: codec.encode_plan(p, down) for c, p in again.items()}, accept, need))
            self._have |= dict.fromkeys(again, state.version)
        return cost

    def _catch_up(self, plan: Plan, state: State, client: str) -> Plan:
        have = self._have.get(client)
        plan = replace(plan, have=have)
        return replace(plan, tensors=self.recipe.downlink(state, have, plan))

    def _exchange(
        self, kind: transport.Kind, payloads: Mapping[str, bytes], accept: Callable[[str, bytes], None], need: int
    ) -> Exchange:
        """Send to each client, hand what comes back to `accept`, and stop when all answered or time is up.

        Time is up at `deadline_s`, or `grace_s` after `need` were accepted; without a deadline all are waited for.
        """
        cost = Exchange(down={c: len(p) for c, p in payloads.items()})
        messages = [transport.pack(kind, p, self._nodes[c], kind) for c, p in payloads.items()]
        waiting = dict(zip(self.grid.push_messages(messages), payloads, strict=True))
        largest = self.config.limits.max_bytes or 2**31 - 1
        started, accepted, enough_at = time.monotonic(), 0, math.inf
        while waiting:
            replies = list(self.grid.pull_messages([*waiting, *self._stale]))
            for reply in replies:
                to = reply.metadata.reply_to_message_id
                if to in self._stale:
                    self._stale.discard(to)
                    continue  # its round is closed; what it carries is late whatever it is
                if (client := waiting.pop(to, None)) is None:
                    continue
                if self._take(reply, client, accept, largest, cost):
                    accepted += 1
                    enough_at = time.monotonic() if accepted == need else enough_at
            now, s = time.monotonic(), self.config.server
            if s.deadline_s is not None and (now > started + s.deadline_s or now > enough_at + s.grace_s):
                break
            if not replies:
                time.sleep(POLL_S)
        for client in waiting.values():
            self._refuse(cost, client, "deadline", f"no answer within {time.monotonic() - started:.1f} s")
        self._stale |= set(waiting)
        return cost

    def _take(
        self, reply: transport.Message, client: str, accept: Callable[[str, bytes], None], largest: int, cost: Exchange
    ) -> bool:
        try:
            payload = transport.unpack(reply, largest)
            if isinstance(payload, transport.Refused):
                self._refuse(cost, client, payload.code, payload.reason)
                return False
            cost.up[client] = cost.up.get(client, 0) + len(payload)
            accept(client, payload)
        except RejectedUpdate as e:
            self._refuse(cost, client, e.code, str(e))
            return False
        return True

    def _refuse(self, cost: Exchange, client: str, code: str, reason: str) -> None:
        cost.refused.append({"client": client, "code": code, "reason": reason})
        if code != "behind":
            log.warning("%s refused: %s: %s", client, code, reason)
            self.observe("refused", {"client": client, "code": code, "reason": reason})


def _no_notes() -> dict[str, Any]:
    return {"norms": [], "refusals": [], "record": {}}


def _quarantined(refusals: list[list[Any]], round: int, limit: int) -> set[str]:
    """Clients refused `limit` times in the last rounds for what they sent (not for what the network did)."""
    blamed = [
        c for r, c, code in refusals if r > round - QUARANTINE_ROUNDS and code not in ("deadline", "client_error")
    ]
    return {c for c in blamed if blamed.count(c) >= limit}


def _add(cost: Exchange, more: Exchange) -> None:
    for total, part in ((cost.up, more.up), (cost.down, more.down)):
        for client, n in part.items():
            total[client] = total.get(client, 0) + n
    cost.refused += more.refused


def _total(line: Mapping[str, Any], way: str) -> int:
    train = sum(b[way] for b in line.get("bytes", {}).values())
    return train + sum(line.get("evaluation_bytes", {}).get(way, {}).values())
