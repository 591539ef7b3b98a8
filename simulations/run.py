"""Many clients on one machine: the server's loop, the clients' training and the codec of a deployment, in one process.

    run = fedft.simulate()                           the built-in quickstart
    run = fedft.simulate("run.toml", out="runs/a")   a run file
    run.summary["final"]["loss"], run.model

The run folder is written as the run goes: `config.toml`, `metrics.jsonl`, `state/`, and at the end `model/`,
`summary.json`; those of `[server] loggers` write beside them. A run that was interrupted or killed continues with
`resume=True`.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedft import run_file as configs
from fedft import strategies
from fedft.config import RunConfig
from fedft.errors import ConfigError
from fedft.recipe import Recipe
from fedft.reports.loggers import interface as loggers
from fedft.reports.metric_log import MetricsFile
from fedft.reports.observers import Audience, Observers, told_of_the_end
from fedft.server import result
from fedft.server.checkpoint import Store
from fedft.server.job import job_of
from fedft.server.loop import Loop
from fedft.server.run_folder import alone, check_plugins, check_rounds, prepare
from fedft.simulations.workplace import local_post, whose, workplace

QUICKSTART = Path(__file__).with_name("quickstart.toml")


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, its summary and its metrics lines."""

    folder: Path
    summary: dict[str, Any]
    lines: list[dict[str, Any]]

    @property
    def model(self) -> Path:
        """Folder of the trained adapter (or of the changes, in the full space)."""
        return self.folder / "model"


def simulate(
    run: RunConfig | str | Path | None = None,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    observe: Observers = (),
) -> Run:
    """Run a simulation to its end.

    Args:
        run: a run file, a config, or None for the quickstart.
        out: run folder; None: a new one under `fedft-runs/`.
        resume: continue the run in `out` where it stands.
        observe: who hears of rounds, admitted updates and metrics as they come, one or several. An observer that fails
            is told once and does not end the run.
    Raises:
        ConfigError, DataError: a user's mistake, before any work.
        RunPaused: the run stopped where it can go on.
    """
    config = run if isinstance(run, RunConfig) else configs.load(Path(run) if run else QUICKSTART)
    name = f"{Path(run).stem if isinstance(run, str | Path) else 'quickstart'}-{config.strategy.name}"
    recipe = strategies.of(config)  # a run that makes no sense leaves no folder behind
    check_plugins(config)
    folder = prepare(config, choose_folder(name, out, resume), resume)
    audience = Audience(observe)
    with alone(folder), told_of_the_end(audience, folder) as ended:
        done = _simulate(config, recipe, folder, audience)
        ended["summary"] = done.summary
    return done


def _simulate(config: RunConfig, recipe: Recipe, folder: Path, observe: Audience) -> Run:
    started = time.monotonic()
    store = Store(folder / "state")
    found = store.latest()
    check_rounds(folder, found, config)
    observe("preparing", {"folder": folder})
    place = workplace(config, recipe, folder=folder)
    result.write_config(folder, config, place.base)
    clients = place.clients
    job = job_of(config, place.base.digest, whose(clients))
    metrics = MetricsFile(folder / "metrics.jsonl", found[0].version if found else -1)
    loggers.begin(observe, folder, config)
    if config.server.mode == "ray":
        from fedft.simulations import workers

        state = workers.carry(config, place, job, clients, store, metrics, observe, folder)
    else:
        post = local_post(clients)
        state = Loop(post, place.recipe, place.layout, config, job, store, metrics, observe).run(clients)
    place.stand(state)
    seconds = time.monotonic() - started
    summary = result.finish(folder, config, place.base, place.handle, state, len(clients), metrics.lines, seconds)
    return Run(folder, summary, metrics.lines)


def choose_folder(name: str, out: str | Path | None, resume: bool) -> Path:
    """The run folder: as told; else the newest `fedft-runs/<name>...` to resume, or the next free one."""
    if out is not None:
        return Path(out)
    root, number = Path("fedft-runs"), 1
    while (root / (name if number == 1 else f"{name}-{number}")).exists():
        number += 1
    if resume:
        number -= 1
        while number and not (root / (name if number == 1 else f"{name}-{number}") / "config.toml").exists():
            number -= 1  # an attempt that ended before its run began
        if not number:
            raise ConfigError(f"{root}: no run {name!r} to resume; name it with --out")
    return root / (name if number == 1 else f"{name}-{number}")
