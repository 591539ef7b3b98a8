"""The round engine: asks clients, admits what fits, aggregates in roster order, commits. It knows no algorithm.

Every step that matters is durable before the next one starts: an admitted update is journalled before it counts, a
state is committed before its round is reported. Starting is recovery, so killing the process at any instant costs at
most the work of clients whose updates were not yet journalled, and the run ends with the same bytes.
"""

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import fedft
from fedft.config import RunConfig
from fedft.contract import Gate, State
from fedft.errors import ClientFailed, ConfigError
from fedft.reports.metric_log import MetricsFile
from fedft.server import best_state, between_rounds, budget, buffered, evaluated_state, planner_view
from fedft.server.admitted import EverybodyLeft, Outcome
from fedft.server.candidate_gates import Travels
from fedft.server.evaluation_round import brought
from fedft.server.exchange import Exchange
from fedft.server.federation import Federation
from fedft.server.guard import BudgetSpent, SumLost
from fedft.server.round import Round
from fedft.server.traffic import Traffic, Until
from fedft.training.metrics.loss import LOSS

if TYPE_CHECKING:
    from fedft.server.masked_rounds import MaskedRounds

log = logging.getLogger(__name__)

NORM_ROUNDS = 5  # whose updates' norms say what is usual: fewer would let one odd round decide, more would lag behind
DIVERGED = 1.5, 0.5  # times the first loss, and more than it: a run that learns does not get there, nor noise
QUARANTINE_ROUNDS = 10  # in which a client's refusals are counted: older mistakes are forgiven


@dataclass
class Loop:
    """A run in progress: the one thread that asks, admits, aggregates and commits."""

    federation: Federation
    """The run; its observer hears of everything that a person may want to see."""
    metrics: MetricsFile
    """A line for each version of the state."""
    lift: Collection[str] = ()
    """Clients whose quarantine ends now."""
    gates: Sequence[Gate] = ()
    """What has to agree to a new state, behind that clients can decode it."""
    masked: "MaskedRounds | None" = None
    """Hides the updates of rounds until they are summed; None: nothing does."""
    write: Callable[[State, RunConfig], None] = lambda state, config: None
    """Called with each state that was measured, before its line is written: keeps what the model writes."""

    def __post_init__(self) -> None:
        self._exchange = Exchange(self.federation)
        self._contradicted: set[str] = set()
        """Clients that have contradicted an update of theirs since the last round."""

    def run(self, clients: Collection[str]) -> State:
        """Carry the run to its last round and return the final state.

        Args:
            clients: names of all who may take part; of a run that was begun, its members are those kept with the state.
        Raises:
            ConfigError: the state found belongs to another run, or a client of a simulation does not take part.
            ClientFailed: a client of a simulation failed, and would again; as `LocalPost.pull` also other errors.
            RunPaused: a round stayed below quorum, a gate refused its state, or the disk is full; running again
                continues.
        """
        with fedft.started():
            return self._run(clients)

    def _run(self, clients: Collection[str]) -> State:
        run = self.federation
        if run.deployed:
            from fedft.server import client_noise

            client_noise.say_what_is_not_measured(run.config.privacy)
        self._pin()
        state, notes = self._found(clients)
        run.barred = notes["barred"]
        if run.private is not None:
            from fedft.server import noisy_evaluation

            run.private.begin(run.members, state, notes["record"], noisy_evaluation.measures(run))
        run.counted = notes.get("counted", {})
        for client, profile in notes.get("profiles", {}).items():
            run.know(client, profile)
        run.seen = planner_view.from_json(notes.get("seen", {}))
        self._exchange.have = {c: (version, label) for c, (version, label) in notes.get("have", {}).items()}
        if run.virtual:
            run.clock.sleep(notes.get("clock_s", 0.0))
            self._exchange.have |= brought(run.recipe, state, self.metrics.lines)
        self._enrol([c for c in run.still(run.members) if c not in notes["barred"]])
        if self.metrics.has(state.version) and between_rounds.over(run, self.metrics.lines):
            log.warning("nothing is left to do: %s", _all_there_is(run.config, self.metrics.lines))
        self._report(state, notes)
        try:
            while between_rounds.goes_on(run, self.metrics.lines, state.version):
                state, notes = self._round(state, between_rounds.lifted(run, state.version, notes))
                between_rounds.committed(run, state.version, notes)
                self._report(state, notes)
            self._exchange.end(run.members)
        finally:
            run.store.close()
        return state

    def _pin(self) -> None:
        """Have the best state that was measured stay on the disk, where the run asks for it."""
        found = best_state.best(self.federation.config, self.metrics.lines)
        self.federation.store.pinned = found and found[0]

    def _found(self, clients: Collection[str]) -> tuple[State, dict[str, Any]]:
        """The state to go on from: the newest on disk, or the first, whose founders are `clients`."""
        run = self.federation
        found = run.store.latest()
        run.number = found[0].version if found else 0
        run.enter(clients, found[1].get("members") if found else None)
        members = run.membership.to_dict()
        if found is None:
            try:
                state = run.recipe.first_state(run.layout, run.rank, run.job.seed)
            except ValueError as e:  # options that do not fit this model
                raise ConfigError(f"{run.recipe.name}: {e}") from e
            notes: dict[str, Any] = {"run": run.job.run, "norms": [], "refusals": [], "barred": [], "record": {}}
            notes["members"] = members
            run.store.save(state, notes)
            state = run.store.resting(state)
        else:
            state, notes = found
        if notes["run"] != run.job.run:
            raise ConfigError(
                f"the state found is of run {notes['run']}, this is run {run.job.run}: "
                "its config, base model or data have changed since; start in another folder"
            )
        if lifted := {*self.lift} & {*notes["barred"]}:
            notes = between_rounds.without(notes, lifted, run.observe)
        if lifted or "members" not in notes:  # a run of before places were kept: they are dealt once more, as ever
            notes["members"] = members
            run.store.save(state, notes)
        return state, notes

    def _enrol(self, clients: list[str]) -> None:
        """Send clients the job. A site of a deployment that is not there yet is sent the job before its first plan."""
        run = self.federation
        run.observe("enrolling", {"clients": clients, "run": run.job.run})

        def until() -> Until:
            return Until(run.quorum(len(run.still(clients))), run.config.server.grace_s) if run.deployed else Until()

        traffic = Traffic()
        self._exchange.enrol(clients, traffic, until)
        for refusal in traffic.refused:
            if not run.deployed:
                raise ConfigError(f"client {refusal['client']} did not enrol: {refusal['code']}: {refusal['reason']}")

    def _round(self, state: State, notes: dict[str, Any]) -> tuple[State, dict[str, Any]]:
        run = self.federation
        norms = [n for of_round in notes["norms"] for n in of_round]
        gates: list[Gate] = [Travels(run.recipe, run.rank), *self.gates]
        try:
            turns = buffered.from_json(notes.get(buffered.KEY, {}), run.clock.monotonic())
            outcome = Round(self._exchange, state, norms, gates, notes["barred"], turns, self.masked).carry_out()
        except (EverybodyLeft, SumLost) as e:
            log.warning("%s: it begins anew with those who are there now", e)
            run.store.drop(state.version)
            return state, notes
        except BudgetSpent as e:
            assert run.private is not None
            log.warning("round %d: %s; the run ends", state.version, e)
            run.private.schedule.over = True
            return state, notes
        except FloatingPointError as e:
            raise ClientFailed(f"{e}; {self._why_not_finite()}") from None
        self._say_what_is_cut(outcome.record)
        kept = self._notes(state.version, notes, outcome)
        with ThreadPoolExecutor(1, "digest") as pool:  # the next line and plan name it; the disk is waited for
            pool.submit(lambda: outcome.after.digest)
            run.store.save(outcome.after, kept)
        return run.store.resting(outcome.after), kept

    def _say_what_is_cut(self, record: Mapping[str, Any]) -> None:
        """Whose weight the round cut, unless the round before cut the same."""
        before = self.metrics.lines[-1].get("cut_weights") if self.metrics.lines else None
        if (cut := record.get("cut_weights", {})) != before:
            for client, (whole, left) in cut.items():
                said = "round %d: client %s's weight cut from %.0f %% to %.0f %% ([limits] max_share)"
                log.warning(said, record["round"], client, 100 * whole, 100 * left)

    def _why_not_finite(self) -> str:
        """What a person should look at whose clients train on numbers that are not finite."""
        if self.metrics.lines and "loss" not in self.metrics.lines[0] and self.federation.held_out:
            return "the base model itself has no finite loss on the held-out rows; see [model] dtype"
        return self._too_high()

    def _too_high(self) -> str:
        rate = self.federation.config.local.learning_rate
        return f"the learning rate is probably too high: [local] learning_rate = {rate:g}"

    def _say_if_it_diverges(self, line: Mapping[str, Any]) -> None:
        """That a state is far worse than the first one, the first time that it is."""
        losses = [x[LOSS.name] for x in self.metrics.lines if LOSS.name in x]
        if not losses or LOSS.name not in line:
            return
        bound = max(DIVERGED[0] * losses[0], losses[0] + DIVERGED[1])
        if line[LOSS.name] > bound >= max(losses):
            log.warning("held-out loss rose from %.4g to %.4g: %s", losses[0], line[LOSS.name], self._too_high())

    def _notes(self, number: int, notes: Mapping[str, Any], outcome: Outcome) -> dict[str, Any]:
        """Notes that are durable with the state which round `number` led to: all that the next round depends on."""
        run = self.federation
        recent = [r for r in notes["refusals"] if r[0] > number - QUARANTINE_ROUNDS]
        refusals = recent + [[number, c] for c in sorted(outcome.blamed | self._contradicted, key=str.encode)]
        self._contradicted = set()
        barred = _barred(refusals, run.config.limits.quarantine_after)
        for client in sorted(set(barred) - {*notes["barred"]}):
            log.warning("round %d: %s is quarantined, and not asked any more", number, client)
            run.observe("quarantined", {"client": client, "round": number})
        kept = {
            "run": run.job.run,
            "norms": [*notes["norms"], outcome.norms][-NORM_ROUNDS:],
            "refusals": refusals,
            "barred": sorted({*notes["barred"], *barred}, key=str.encode),
            "record": outcome.record,
            "roster": len(run.members),
            "have": dict(self._exchange.have),
            "profiles": {c: profile for c, profile in run.profiles.items() if profile},
            "members": run.membership.to_dict(),
        }
        if run.virtual:
            kept["clock_s"] = run.clock.monotonic()
        if run.recipe.plans_work:
            run.seen = dict(outcome.seen)
            kept["seen"] = planner_view.to_json(run.seen)
        if run.recipe.keeps:
            kept["counted"] = run.counted = {**run.counted, **outcome.counted}
        if run.config.server.buffer is not None:
            kept[buffered.KEY] = buffered.to_json(outcome.turns, virtual=run.virtual)
        return kept

    def _report(self, state: State, notes: Mapping[str, Any]) -> None:
        """Evaluate where it is due and write the line of this version, unless it stands already."""
        run, started = self.federation, time.monotonic()
        if self.metrics.has(state.version):
            self._reported(state.version)
            return
        line: dict[str, Any] = {"version": state.version, "refused": [], "seconds": {}, **notes["record"]}
        line["state_digest"] = state.digest
        if run.config.privacy.at_clients:
            from fedft.server import client_noise

            privacy, spent = run.config.privacy, run.spent and run.spent()
            fewest = run.steering.fewest_rounds() if run.steering else run.config.server.rounds
            line |= client_noise.said(privacy, state.version, spent, privacy.rounds or fewest)
        if "bytes" in line:
            adds = not run.recipe.replaces_what_is_held
            earlier = [] if run.recipe.evaluation_has_own_state else self.metrics.lines
            line["training_bytes"] = budget.training_bytes(line, earlier, adds)
        last = between_rounds.over(run, [*self.metrics.lines, line])
        if last or state.version % run.config.eval.every == 0:
            ends = last or best_state.may_end(run.config, self.metrics.lines)
            rouge = run.config.eval.rouge and (ends or state.version == 0)
            if last:
                self._exchange.end(run.members)
            busy = self._exchange.at_work() if run.deployed else ()  # who trains would hold it up
            line, false = evaluated_state.evaluated(
                self._exchange, self.masked, state, line, [*notes["barred"], *busy], rouge=rouge
            )
            self._contradicted |= false
            self.write(state, run.config)
        if run.private is not None:
            line |= run.private.schedule.report(state.version, run.config.server.rounds)
        line["bytes_up"], line["bytes_down"] = _total(line, "up"), _total(line, "down")
        line["seconds"] = {**line["seconds"], "evaluate": time.monotonic() - started}
        self._say_if_it_diverges(line)
        self.metrics.append(line)
        self._pin()
        run.observe("line", line)
        self._reported(state.version)

    def _reported(self, version: int) -> None:
        """The line of this version is on the disk, perhaps since before a kill."""
        if self.federation.private is not None:
            self.federation.private.measured(version)


def _all_there_is(config: RunConfig, lines: Sequence[Mapping[str, Any]]) -> str:
    """That the run with these lines has ended, and what would make it go on."""
    version = lines[-1]["version"]
    if version >= config.server.rounds:
        return f"the run has all its {version} rounds; a larger server.rounds goes on, as {2 * version}"
    if best_state.over(config, lines):
        return f"the run has ended at [server] patience, after {version} rounds; a larger one goes on"
    if not budget.over(config, lines):
        return f"the run has ended at [privacy] max_epsilon, after {version} rounds; a larger one goes on"
    return f"the run has ended at its budget, after {version} rounds; a larger server.budget goes on"


def _barred(refusals: list[list[Any]], limit: int) -> list[str]:
    """Clients refused in `limit` of the last rounds for bytes that they sent (not for faults of the network)."""
    rounds = {(r, c) for r, c in refusals}
    clients = [c for _, c in rounds]
    return [c for c in set(clients) if clients.count(c) >= limit]


def _total(line: Mapping[str, Any], way: str) -> int:
    train = sum(b[way] for b in line["bytes"].values()) if "bytes" in line else line.get(f"bytes_{way}", 0)
    return train + sum(sum(line.get(what, {}).get(way, {}).values()) for what in ("secagg_bytes", "evaluation_bytes"))
