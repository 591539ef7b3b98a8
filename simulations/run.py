"""Many clients on one machine: the server's loop, the clients' training and the codec of a deployment, in one process.

    run = fedft.simulate()                           the built-in quickstart
    run = fedft.simulate("run.toml", out="runs/a")   a run file
    run.summary["final"]["loss"], run.model

The run folder is written as the run goes: `config.toml`, `metrics.jsonl`, `state/`, and at the end `model/`,
`summary.json` and TensorBoard events. A run that was interrupted or killed continues with `resume=True`.
"""

import hashlib
import importlib.metadata
import json
import logging
import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tomli_w
import torch

from fedft import config as configs
from fedft import model, strategies, tensors
from fedft.client.memory import Memory
from fedft.client.train import Client
from fedft.config import RunConfig
from fedft.errors import ConfigError
from fedft.handle import ModelHandle
from fedft.model import Base
from fedft.recipe import Layout, Recipe, State, Turn
from fedft.server import checkpoint
from fedft.server.checkpoint import Store
from fedft.server.loop import Loop, Observer
from fedft.server.metrics import MetricsFile
from fedft.simulations import population
from fedft.transport import LocalGrid
from fedft.update import Job, Plan

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

FIRST_NODE = 1000
QUICKSTART = Path(__file__).with_name("quickstart.toml")
VERSIONS = ("fedft", "flwr", "torch", "transformers", "peft", "numpy", "datasets")


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
    folder = prepare(config, choose_folder(name, out, resume), resume)
    with alone(folder):
        return _simulate(config, folder, observe)


def _simulate(config: RunConfig, folder: Path, observe: Observer) -> Run:
    started = time.monotonic()
    store = Store(folder / "state")
    found = store.latest()
    if found and found[0].version > config.server.rounds:
        raise ConfigError(
            f"--resume {folder}: is at round {found[0].version}, wanted at least as many rounds, "
            f"got {config.server.rounds}"
        )
    torch.set_num_threads(config.local.threads)
    observe("preparing", {"folder": folder})
    place = workplace(config)
    _write_config(folder, config, place.base)
    job = job_of(config, place.base, place.clients)
    metrics = MetricsFile(folder / "metrics.jsonl", found[0].version if found else -1)
    nodes = {FIRST_NODE + i: name for i, name in enumerate(place.clients)}
    if config.server.mode == "ray":
        from fedft.simulations import ray

        state = ray.carry(config, place, job, nodes, store, metrics, observe)
    else:
        grid = LocalGrid(nodes, lambda node, message: place.clients[nodes[node]].answer(message))
        state = Loop(grid, place.recipe, place.layout, config, job, store, metrics, observe).run(nodes)
    stand(place, state, job.seed)
    model.save_adapter(folder / "model", place.handle, place.base, base_name(place.base))
    summary = _summary(config, place, state, metrics.lines, time.monotonic() - started)
    _write_json(folder / "summary.json", summary)
    _write_events(folder, metrics.lines)
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


def prepare(config: RunConfig, folder: Path, resume: bool) -> Path:
    """Make the run folder and see that it is ours: writable, empty or to be resumed, of the same config."""
    there = (folder / "config.toml").exists()
    if there and not resume:
        raise ConfigError(f"--out {folder}: holds a run already; --resume continues it, another folder starts anew")
    if resume and not there:
        raise ConfigError(f"--resume {folder}: there is no run to resume, no config.toml")
    try:
        if not there and folder.is_dir() and _holds_more(folder):
            raise ConfigError(f"--out {folder}: is not empty and holds no run; another folder starts one")
        (folder / "state").mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as e:
        raise ConfigError(f"--out {folder}: cannot be written: {e.strerror}") from e
    if there:
        before = configs.load(folder / "config.toml", where=str(folder / "config.toml"))
        if changed := _changed(before, config):
            raise ConfigError(f"--resume {folder}: the run file has changed in {', '.join(changed)}; start a new run")
    return folder


def _holds_more(folder: Path) -> bool:
    """Whether a folder holds more than an attempt leaves that ended before `config.toml` was written."""
    left = {"state", "state/lock", "state/journal", ".writable", "config.toml.tmp"}
    return any(p.relative_to(folder).as_posix() not in left for p in folder.rglob("*"))


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep other processes from running this run; a killed process holds no lock."""
    try:
        lock = (folder / "state" / "lock").open("wb")
    except OSError as e:
        raise ConfigError(f"--out {folder}: cannot be written: {e.strerror}") from e
    with lock:
        if fcntl is not None:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as e:
                raise ConfigError(f"--out {folder}: another process is running this run") from e
            except OSError:
                log.warning("%s: this file system has no locks; do not run the run twice at once", folder)
        yield


def _changed(before: RunConfig, now: RunConfig) -> list[str]:
    """`table.key` of what differs, but for the number of rounds: a run may be made longer."""
    a, b = before.to_dict(), replace(now, server=replace(now.server, rounds=before.server.rounds)).to_dict()
    return [f"{t}.{k}" for t in b for k in sorted(a[t].keys() | b[t].keys()) if a[t].get(k) != b[t].get(k)]


def workplace(config: RunConfig) -> Workplace:
    """Load the base once, cut the data into clients, and put one client on each part."""
    recipe = strategies.make(config.strategy.name, config.strategy.options)
    m = config.model
    # cheap and likely mistakes (a file that is not there) come before the model is loaded
    parts = population.rows_by_client(config)
    base = model.load(m.id, m.task, labels=len(m.labels), dtype=m.dtype, device=m.device, seed=config.server.seed)
    model.check_length(base, config.data.max_length)
    layout = model.layout_of(base, m.targets)
    layout = replace(layout, modules={}, head={}) if recipe.space.kind == "full" else layout
    handle = ModelHandle(base.model, layout, recipe.space, lora_alpha=m.lora_alpha, dropout=m.lora_dropout)
    pool: dict[str, State] = {}
    clients = {
        name: Client(name, train, test, base, handle, recipe, config, Memory(pool))
        for name, (train, test) in population.encode(parts, config, base).items()
    }
    memories = [c.memory for c in clients.values()]
    for memory in memories:
        memory.everyone = memories
    return Workplace(config, recipe, base, layout, handle, clients)


def stand(place: Workplace, state: State, run_seed: int) -> None:
    """Put the resident model at `state`, as a new client would."""
    rank = max(place.config.ranks()) if place.layout.modules else 0
    lr = place.config.local.learning_rate
    plan = Plan("", state.version, state.version, rank=rank, learning_rate=lr)
    plan = replace(plan, tensors=place.recipe.downlink(state, None, plan))
    held = place.recipe.receive(None, plan)
    place.recipe.start(place.handle, Turn(plan, held, tensors.digest(held), place.config.local, run_seed, run_seed))


def reopen(folder: Path) -> tuple[Workplace, State]:
    """The workplace of a finished or interrupted run, its model standing at the newest state."""
    if not (folder / "config.toml").exists():
        raise ConfigError(f"{folder}: not a run folder, there is no config.toml")
    config = configs.load(folder / "config.toml", where=str(folder / "config.toml"))
    torch.set_num_threads(config.local.threads)
    found = Store(folder / "state").latest()
    if found is None:
        raise ConfigError(f"{folder}: the run has no state yet")
    place = workplace(config)
    stand(place, found[0], config.server.seed)
    return place, found[0]


def job_of(config: RunConfig, base: Base, clients: Mapping[str, Client]) -> Job:
    """What the run is: its identifier changes with config (rounds, limits, evaluation apart), base and rows."""
    tables = config.to_dict()
    fixed = {t: v for t, v in tables.items() if t not in ("server", "eval", "limits")}
    h = hashlib.sha256(json.dumps([fixed, config.server.seed, base.digest], sort_keys=True).encode())
    for name, client in sorted(clients.items()):
        h.update(name.encode())
        for row in client.train_rows:
            h.update(str((row.input_ids, row.labels)).encode())
    agreed = {"task": config.model.task, "digest": base.digest}
    run = h.hexdigest()[:16]
    return Job(run, config.server.seed, tables["strategy"], tables["local"], agreed, tables["codec"])


def base_name(base: Base) -> str:
    """What `from_pretrained` takes on this machine."""
    return str(getattr(base.model.config, "_name_or_path", "") or base.source)


def _summary(
    config: RunConfig, place: Workplace, state: State, lines: list[dict[str, Any]], seconds: float
) -> dict[str, Any]:
    measured = [line for line in lines if "evaluation" in line]
    names = sorted({n for line in measured for n in line} & {"loss", "accuracy", "rouge_l"})
    ends = [{n: line[n] for n in names if n in line} for line in (measured[0], measured[-1])] if measured else [{}, {}]
    return {
        "strategy": config.strategy.name,
        "rounds": state.version,
        "clients": len(place.clients),
        "seed": config.server.seed,
        "initial": ends[0],
        "final": ends[1],
        "bytes_up": sum(line["bytes_up"] for line in lines),
        "bytes_down": sum(line["bytes_down"] for line in lines),
        "seconds": round(max(seconds, sum(sum(line["seconds"].values()) for line in lines)), 3),  # resumed: all of it
        "refused": sum(len(line.get("refused", [])) for line in lines),
        "state_digest": tensors.digest(state.tensors),
        "model": "model",
        "task": config.model.task,
        "base": place.base.source,
        "base_digest": place.base.digest,
    }


def _write_config(folder: Path, config: RunConfig, base: Base) -> None:
    made = {p: _version(p) for p in VERSIONS} | {"python": platform.python_version()}
    head = "".join(f"# {k} {v}\n" for k, v in {**made, "base": base.digest}.items() if v)
    text = f"# The run as it was resolved, made with\n{head}\n{tomli_w.dumps(config.to_dict())}"
    checkpoint.write(folder / "config.toml", text.encode())


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _write_json(path: Path, value: Any) -> None:
    checkpoint.write(path, (json.dumps(value, indent=2, sort_keys=True) + "\n").encode())


def _write_events(folder: Path, lines: list[dict[str, Any]]) -> None:
    """TensorBoard events, written once from the metrics so that a resumed run has each point once."""
    from torch.utils.tensorboard import SummaryWriter

    events = folder / "events"
    for old in events.glob("*tfevents*"):
        old.unlink()
    with SummaryWriter(str(events)) as writer:
        for line in lines:
            for name in ("loss", "accuracy", "rouge_l", "train_loss", "bytes_up", "bytes_down"):
                if name in line:
                    writer.add_scalar(name, line[name], line["version"])
