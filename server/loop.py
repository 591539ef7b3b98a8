"""The round engine: asks clients, admits what fits, aggregates in roster order, commits. It knows no algorithm.

Every step that matters is durable before the next one starts: an admitted update is journalled before it counts, a
state is committed before its round is reported. Starting is recovery, so killing the process at any instant costs at
most the work of clients whose updates were not yet journalled, and the run ends with the same bytes.
"""

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fedft.carriers.interface import Post
from fedft.config import RunConfig
from fedft.contract import Gate, Layout, Member, State
from fedft.errors import ConfigError
from fedft.recipe import Recipe
from fedft.reports import columns
from fedft.reports.metric_log import MetricsFile
from fedft.reports.observers import Observer
from fedft.server import budget
from fedft.server.candidate_gates import Travels
from fedft.server.checkpoint import Store
from fedft.server.evaluation_round import EVALUATION_BYTES, evaluate
from fedft.server.exchange import Clock, Exchange, Traffic, Until
from fedft.server.federation import Federation
from fedft.server.round import Outcome, Round
from fedft.update import Job
from fedft.wire import messages

NORM_ROUNDS, QUARANTINE_ROUNDS = 5, 10


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
    gates: Sequence[Gate] = ()
    """What has to agree to a new state, behind that clients can decode it."""

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
        self._run = Federation(
            self.recipe, self.layout, self.config, self.job, self.store, self._talk, self.observe, self.deployed,
            self.caps,
        )  # fmt: skip
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
        self._run.enter(clients)
        state, notes = self._found()
        self._run.counted = notes.get("counted", {})
        for client, profile in notes.get("profiles", {}).items():
            self._know(client, profile)
        self._talk.have = {c: (version, label) for c, (version, label) in notes.get("have", {}).items()}
        self._enrol([c for c in self._run.members if c not in notes["barred"]])
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
                state = self.recipe.first_state(self.layout, self._run.rank, self.job.seed)
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

    def _enrol(self, clients: list[str]) -> None:
        """Send them the job. Who of a deployment is not there yet is sent it with its first plan."""
        self.observe("enrolling", {"clients": clients})
        until = Until(self._run.quorum(len(clients)), self.config.server.grace_s) if self.deployed else Until()
        traffic = Traffic()
        self._talk.enrol(clients, traffic, until)
        for refusal in traffic.refused:
            if not self.deployed:
                raise ConfigError(f"client {refusal['client']} did not enrol: {refusal['code']}: {refusal['reason']}")

    def _enrolled(self, client: str, payload: bytes) -> None:
        said = messages.decode_update(payload, {}, "fp32", max_bytes=EVALUATION_BYTES)
        self._held_out[client] = int(said.metrics.get("held_out", 0))
        self._know(client, {**said.metrics, "rows": said.num_examples})
        self.observe("enrolled", {"client": client})

    def _know(self, client: str, profile: Mapping[str, float]) -> None:
        if client in self._run.members:
            self._run.members[client] = Member(self._run.members[client].rank, dict(profile))

    def _round(self, state: State, notes: dict[str, Any]) -> tuple[State, dict[str, Any]]:
        norms = [n for of_round in notes["norms"] for n in of_round]
        gates: list[Gate] = [Travels(self.recipe, self._run.rank), *self.gates]
        outcome = Round(self._run, state, norms, gates, notes["barred"]).carry_out()
        kept = self._notes(state.version, notes, outcome)
        self.store.save(outcome.after, kept)
        return outcome.after, kept

    def _notes(self, number: int, notes: Mapping[str, Any], outcome: Outcome) -> dict[str, Any]:
        """What is kept beside the state that round `number` led to."""
        recent = [r for r in notes["refusals"] if r[0] > number - QUARANTINE_ROUNDS]
        refusals = recent + [[number, c] for c in sorted(outcome.blamed | self._contradicted, key=str.encode)]
        self._contradicted = set()
        barred = _barred(refusals, self.config.limits.quarantine_after)
        kept = {
            "run": self.job.run,
            "norms": [*notes["norms"], outcome.norms][-NORM_ROUNDS:],
            "refusals": refusals,
            "barred": sorted({*notes["barred"], *barred}, key=str.encode),
            "record": outcome.record,
            "have": dict(self._talk.have),
            "profiles": {c: member.profile for c, member in self._run.members.items() if member.profile},
        }
        if self.recipe.keeps:
            kept["counted"] = self._run.counted = {**self._run.counted, **dict.fromkeys(outcome.counted, number)}
        return kept

    def _report(self, state: State, notes: Mapping[str, Any]) -> None:
        """Evaluate where it is due and write the line of this version, unless it stands already."""
        if self.metrics.has(state.version):
            return
        started = time.monotonic()
        line: dict[str, Any] = {"version": state.version, "refused": [], "seconds": {}, **notes["record"]}
        line["state_digest"] = state.digest
        if "bytes" in line:
            adds = not self.recipe.replaces_what_is_held
            earlier = [] if self.recipe.evaluation_has_own_state else self.metrics.lines
            line["training_bytes"] = budget.training_bytes(line, earlier, adds)
        last = budget.over(self.config, [*self.metrics.lines, line])
        if last or state.version % self.config.eval.every == 0:
            rouge = self.config.eval.rouge and (last or state.version == 0)
            found, traffic = evaluate(self._run, state, self._held_out, notes["barred"], rouge=rouge)
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


def _barred(refusals: list[list[Any]], limit: int) -> list[str]:
    """Clients refused in `limit` of the last rounds for what they sent (not for what the network did)."""
    rounds = {(r, c) for r, c in refusals}
    clients = [c for _, c in rounds]
    return [c for c in set(clients) if clients.count(c) >= limit]


def _total(line: Mapping[str, Any], way: str) -> int:
    train = sum(b[way] for b in line.get("bytes", {}).values())
    return train + sum(line.get("evaluation_bytes", {}).get(way, {}).values())
