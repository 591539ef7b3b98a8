"""One way to open a run, for a simulation, the server of a deployment, a baseline and a bench.

    with opened(config, folder, resume=False, observe=...) as held:      the folder is made or recovered, and locked
        run = held.begin(resident.load(held.config, held.recipe), who)   config.toml, the job, the metrics
        state = run.loop(post).run(clients)
        summary = run.finish(state, len(clients))                     model/, summary.json

`fresh` makes the run of a baseline or a bench: in an empty folder of its own, with nothing for others to read.
"""

import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedft import registry, strategies
from fedft.aggregation import robust_rules
from fedft.board.live_file import LiveFile
from fedft.carriers.interface import Post
from fedft.config import RunConfig
from fedft.contract import Forecast, State, Work
from fedft.models import dtypes
from fedft.models.resident import Resident
from fedft.recipe import Recipe
from fedft.reports.loggers import interface as loggers
from fedft.reports.metric_log import MetricsFile
from fedft.reports.observers import Audience, Observer, Observers, told_of_the_end
from fedft.server import archive, best_model, best_state, buffered, private_facts, run_folder, run_outputs, steering
from fedft.server.archive import Archive
from fedft.server.checkpoint import Store
from fedft.server.federation import Federation
from fedft.server.guard import Guard, Unguarded
from fedft.server.job import job_on
from fedft.server.loop import Loop
from fedft.server.membership import Roll
from fedft.server.prompted import PromptedTexts
from fedft.server.steering import RUN_FILE, Steering
from fedft.server.traffic import Clock
from fedft.update import Job

if TYPE_CHECKING:
    from fedft.privacy.audit.findings import Rows
    from fedft.server.masked_rounds import MaskedRounds

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class OpenRun:
    """A run whose base model is loaded: what its rounds need, and what is written once they are over."""

    steering: Steering
    """What was changed of the run since it began."""
    recipe: Recipe
    here: Resident
    folder: Path
    job: Job
    store: Store
    metrics: MetricsFile
    observe: Observer
    began: float
    """`time.monotonic()` when the folder was opened."""
    ended: dict[str, Any]
    """The facts that observers are told with "ended"; filled by `finish`."""
    deployed: bool = False
    """See `Federation`."""

    @property
    def config(self) -> RunConfig:
        """The run file as `resolved`, with what was changed since, as it holds in the round at work."""
        return self.steering.config_at(self.steering.version)

    def loop(
        self,
        post: Post,
        *,
        roll: Roll | None = None,
        lift: Collection[str] = (),
        clock: Clock = time,
        virtual: bool = False,
        cards: Callable[[], Mapping[str, bytes]] = dict,
    ) -> Loop:
        """The run's engine with these means to reach its clients.

        Args:
            post: reaches the run's clients.
            roll: who may take part at a moment, see `Federation`.
            lift: clients whose quarantine ends now.
            clock, virtual: see `Federation`.
            cards: gives the public keys of all who may take part, where updates are masked.
        """
        observe = private_facts.quiet(self.observe, self.config.privacy)
        guard, masked = self._guard(cards)
        federation = Federation(
            post, self.recipe, self.here.layout, self.config, self.job, self.store, observe, clock,
            virtual=virtual, deployed=self.deployed, roll=roll, steering=self.steering, forecast=self.forecast,
            guard=guard,
        )  # fmt: skip
        gates = [registry.gates.chosen(gate) for gate in self.config.server.gates]
        measured = {line["version"] for line in self.metrics.lines}
        texts = PromptedTexts(self.folder, self.config, self.recipe, self.here, measured)
        return Loop(federation, self.metrics, lift, gates, masked, texts)

    def _guard(self, cards: Callable[[], Mapping[str, bytes]]) -> "tuple[Guard, MaskedRounds | None]":
        """What stands between the run's updates and their sum, and what masks them."""
        said = self.config.privacy
        if not (said.on or said.secagg != "off" or self.config.robust.rule != "none"):
            return Unguarded(), None
        from fedft.server import guards

        masked = guards.masked_of(self.config, self.recipe, self.folder / "state", cards)
        return guards.guard_of(self.config, self.recipe, self.store, self.here, masked), masked

    def forecast(self, work: Work) -> Forecast:
        """What a work of this run takes at a client of whose rows nothing is known, for planners."""
        return self._forecast(work)

    @cached_property
    def _forecast(self) -> Callable[[Work], Forecast]:
        from fedft.forecast.anatomy import anatomy_of
        from fedft.forecast.work import forecaster

        anatomy = anatomy_of(self.here.base, self.config.model.modules_to_save)
        return forecaster(anatomy, self.here.layout, self.config, self.recipe)

    def finish(
        self, state: State, clients: int, more: Mapping[str, Any] | None = None, rows: "Rows | None" = None
    ) -> dict[str, Any]:
        """Set the model to the final `state` and write it with the summary; returns the summary.

        An audit comes first where `[audit] gate` bounds something; a model that is above a bound is not written, and
        the summary says why (`held_back`).

        Args:
            state: the run's last.
            clients: the number of those that could take part.
            more: what else the summary says, by its key.
            rows: of the clients, for the audit; None: they are not here.
        """
        base, handle = self.here.base, self.here.handle
        stand = partial(run_outputs.set_model_to, self.config, self.recipe, self.here.layout, handle, state)
        stand()
        held_back = self._judged(stand, rows) if self.config.audit.gate else ""
        seconds = time.monotonic() - self.began
        more = {**(more or {}), **best_model.write(self, stand, clients, seconds)}
        lines, steered = self.metrics.lines, self.steering.facts()
        if any(steered.values()):
            more |= {"steered": steered}
        self.ended["summary"] = run_outputs.write_outputs(
            self.folder, self.config, base, handle, state, clients, lines, seconds, more, held_back
        )
        found: dict[str, Any] = self.ended["summary"]
        return found

    def _judged(self, stand: Callable[[], None], rows: "Rows | None") -> str:
        """Why the model may not be given out, "" where it may; `stand` sets the model to the run's last state."""
        from fedft.privacy.audit import canaries, verdict
        from fedft.privacy.audit.findings import Rows
        from fedft.privacy.audit.two_models import TwoModels

        two = TwoModels(self.here.handle, self.here.base, stand, self.config.eval.batch_size)
        return verdict.judged(self.folder, two, self.config, canaries.read(self.folder), rows or Rows())


@dataclass(frozen=True)
class HeldFolder:
    """A run's folder that no other process can open, and the version of the newest state in it, -1 for none."""

    steering: Steering
    """What was changed of the run since it began."""
    recipe: Recipe
    folder: Path
    store: Store
    version: int
    observe: Audience
    began: float
    ended: dict[str, Any]
    deployed: bool
    changed: Mapping[str, list[Any]] = field(default_factory=dict)
    """What the run file says otherwise than when the run was begun, or resumed: key -> [before, now]."""
    run: str = ""
    """The run's identifier, where it has a state already."""

    @property
    def config(self) -> RunConfig:
        """The run file as `resolved`, with what was changed since, as it holds in the round at work."""
        return self.steering.config_at(max(self.version, 0))

    def begin(self, here: Resident, who: Iterable[bytes]) -> OpenRun:
        """Write `config.toml`, take up the metrics where the newest state stands, and begin `status.json`.

        Args:
            here: the base model of the config with the recipe's handle on it.
            who: tells the run from others of this config, see `job_of`; read once `config.toml` is written.
        """
        self.steering.publish = lambda config: run_outputs.write_config(self.folder, config, here.base)
        self.steering.publish(self.steering.latest())
        self.observe.add(LiveFile(self.folder, self.version))  # before lines are cut off: counters never fall
        run = self._on(here, who)
        loggers.begin(self.observe, self.folder, self.config)
        if self.changed:
            said = ", ".join(f"{key} from {was} to {now}" for key, (was, now) in self.changed.items())
            log.warning("the run goes on with what the run file has changed: %s", said)
            self.observe("changed", {"keys": self.changed, "by": RUN_FILE})
        return run

    def _on(self, here: Resident, who: Iterable[bytes]) -> OpenRun:
        job = job_on(self.config, here.base, who, self.run)
        metrics = MetricsFile(self.folder / "metrics.jsonl", self.version)
        return OpenRun(
            self.steering, self.recipe, here, self.folder, job, self.store, metrics, self.observe, self.began,
            self.ended, self.deployed,
        )  # fmt: skip


def resolved(config: RunConfig, *, deployed: bool = False) -> RunConfig:
    """The run file with what it leaves to the machine and to the kind of run: a dtype, and `[limits] max_share`.

    This is what `config.toml` and the job hold: a simulation of a deployment's `config.toml` has its weights.
    """
    limits = replace(config.limits, max_share=config.limits.share(deployed))
    return replace(dtypes.resolved(config), limits=limits)


@contextmanager
def opened(
    config: RunConfig, folder: Path, *, resume: bool, observe: Observers, deployed: bool = False
) -> Iterator[HeldFolder]:
    """Make the run's folder, or take it up again, and hold it until the block ends.

    Args:
        config: the run file.
        folder: of the run; left alone if the config makes no sense.
        resume: whether there has to be a run in it, or must not be one.
        observe: who hears of "preparing", of whatever the run's engine tells, and of "ended": one or several.
        deployed: whether the clients are sites.
    Raises:
        ConfigError: the folder is not to be used, belongs to another run file, is further than the config wants it or
            in use, or the strategy cannot be what the config says.
    """
    config = resolved(config, deployed=deployed)
    recipe = strategies.of(config)
    buffered.check(config, recipe, deployed)
    if config.privacy.on:
        from fedft.server import private_checks

        private_checks.check(config, deployed)
    robust_rules.check(config, recipe, deployed)
    run_folder.check_plugins(config)
    best_state.check(config, deployed)
    before = run_folder.prepare(config, folder, resume)
    audience = Audience(observe)
    with run_folder.alone(folder), told_of_the_end(audience, folder) as ended:
        began = time.monotonic()
        kept = Archive(folder / archive.FOLDER, config.codec.up) if config.server.archive else None
        store = Store(folder / "state", kept, sync_all=deployed or kept is not None)  # it is filled from the journal
        found = store.latest()
        version = found[0].version if found else -1
        steered = _steering(folder, config, deployed, store, version)
        changed = steered.take_run_file(before)
        run_folder.check_rounds(folder, version, steered.latest())
        audience("preparing", {"folder": folder})
        begun = str(found[1].get("run", "")) if found else ""
        yield HeldFolder(steered, recipe, folder, store, version, audience, began, ended, deployed, changed, begun)


def _steering(folder: Path, config: RunConfig, deployed: bool, store: Store, version: int) -> Steering:
    """What was changed of the run in a folder, whose newest state has this version."""
    version = max(version, 0)
    resolve = partial(resolved, deployed=deployed)
    fits = partial(best_state.check, deployed=deployed)
    return Steering(folder / steering.FILE, config, resolve, version, open=bool(store.plans(version)), fits=fits)


def fresh(
    config: RunConfig,
    recipe: Recipe,
    here: Resident,
    folder: Path,
    who: Iterable[bytes],
    observe: Observer = lambda kind, info: None,
) -> OpenRun:
    """A run from its beginning, in an empty folder that nobody else knows of."""
    began, store = time.monotonic(), Store(folder / "state", sync_all=False)
    steered = _steering(folder, resolved(config), False, store, -1)
    held = HeldFolder(steered, recipe, folder, store, -1, Audience(observe), began, {}, deployed=False)
    return held._on(here, who)
