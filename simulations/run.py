"""Many clients on one machine: the server's loop, the clients' training and the codec of a deployment, in one process.

    run = fedft.simulate()                           the built-in quickstart
    run = fedft.simulate("run.toml", out="runs/a")   a run file
    run.summary["final"]["loss"], run.model

The run folder is written as the run goes: `config.toml`, `metrics.jsonl`, `state/`, and at the end `model/`,
`summary.json` and TensorBoard events. A run that was interrupted or killed continues with `resume=True`.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fedft import config as configs
from fedft import resident, strategies
from fedft.client.kept import Kept
from fedft.client.memory import Memory, Pool
from fedft.client.train import Client
from fedft.config import RunConfig
from fedft.errors import ConfigError
from fedft.handle import ModelHandle
from fedft.model import Base
from fedft.recipe import Layout, Recipe, State
from fedft.server import result
from fedft.server.checkpoint import Store
from fedft.server.folder import alone, check_rounds, prepare
from fedft.server.job import job_of
from fedft.server.loop import Loop, Observer
from fedft.server.metrics import MetricsFile
from fedft.simulations import population, together
from fedft.transport import GridPost, LocalGrid

FIRST_NODE = 1000
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


@dataclass(frozen=True)
class Workplace:
    """What every client of this process shares, resident from start to end."""

    config: RunConfig
    recipe: Recipe
    base: Base
    layout: Layout
    handle: ModelHandle
    clients: Mapping[str, Client]
    counted: Mapping[str, int] = field(default_factory=dict)
    """The last round in which a client's update counted, where clients keep something."""

    def stand(self, state: State, client: str | None = None) -> None:
        """Put the resident model at `state`, as a new client would, or as `client` does with what it keeps."""
        kept = self.clients[client].kept.after(self.counted.get(client)) if client is not None else {}
        result.stand(self.config, self.recipe, self.layout, self.handle, state, kept)


def simulate(
    run: RunConfig | str | Path | None = None,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    observe: Observer = lambda kind, info: None,
) -> Run:
    """Run a simulation to its end.

    Args:
        run: a run file, a config, or None for the quickstart.
        out: run folder; None: a new one under `fedft-runs/`.
        resume: continue the run in `out` where it stands.
        observe: hears of rounds, admitted updates and metrics as they come.
    Raises:
        ConfigError, DataError: a user's mistake, before any work.
        RunPaused: the run stopped where it can go on.
    """
    config = run if isinstance(run, RunConfig) else configs.load(Path(run) if run else QUICKSTART)
    name = f"{Path(run).stem if isinstance(run, str | Path) else 'quickstart'}-{config.strategy.name}"
    recipe = strategies.of(config)  # a run that makes no sense leaves no folder behind
    folder = prepare(config, choose_folder(name, out, resume), resume)
    with alone(folder):
        return _simulate(config, recipe, folder, observe)


def _simulate(config: RunConfig, recipe: Recipe, folder: Path, observe: Observer) -> Run:
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
    if config.server.mode == "ray":
        from fedft.simulations import ray

        state = ray.carry(config, place, job, clients, store, metrics, observe, folder)
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


def workplace(
    config: RunConfig, recipe: Recipe | None = None, *, data: bool = True, folder: Path | None = None
) -> Workplace:
    """Load the base once, cut the data into clients, and put one client on each part; without `data`, none.

    The recipe is the config's. What clients keep for themselves lies in the run's `folder`, or in memory only.
    """
    recipe = recipe or strategies.of(config)
    # cheap and likely mistakes (a file that is not there) come before the model is loaded
    parts = population.rows_by_client(config) if data else {}
    here = resident.load(config, recipe)
    pool = Pool()
    own = folder and folder / "clients"
    clients = {
        name: Client(
            name, train, test, here.base, here.handle, recipe, config, Memory(pool), Kept(own and own / quote(name, ""))
        )
        for name, (train, test) in population.encode(parts, config, here.base).items()
    }
    pool.members += [c.memory for c in clients.values()]
    return Workplace(config, recipe, here.base, here.layout, here.handle, clients)


def reopen(folder: Path, *, data: bool = True) -> tuple[Workplace, State]:
    """The workplace of a finished or interrupted run, its model standing at the newest state."""
    if not (folder / "config.toml").exists():
        raise ConfigError(f"{folder}: not a run folder, there is no config.toml")
    config = configs.load(folder / "config.toml", where=str(folder / "config.toml"))
    found = Store(folder / "state").latest(recover=False)
    if found is None:
        raise ConfigError(f"{folder}: the run has no state yet")
    place = replace(workplace(config, data=data, folder=folder), counted=found[1].get("counted", {}))
    for client in place.clients.values():
        client.kept.open(found[1]["run"])
    place.stand(found[0])
    return place, found[0]


def local_post(clients: Mapping[str, Client]) -> GridPost:
    """Carries letters to these clients in this process, one at a time but for `[server] together`."""
    names = dict(enumerate(clients, FIRST_NODE))
    begin, most = together.starter({node: clients[name] for node, name in names.items()})
    grid = LocalGrid(names, lambda node, message: clients[names[node]].answer(message), begin, most)
    return GridPost(grid, {name: node for node, name in names.items()})


def whose(clients: Mapping[str, Client]) -> Iterator[bytes]:
    """Whose rows the run trains on, for its identifier."""
    for name, client in sorted(clients.items()):
        yield name.encode()
        for row in client.train_rows:
            yield str((row.input_ids, row.labels)).encode()
