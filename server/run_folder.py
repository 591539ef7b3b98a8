"""A run's folder: made or taken up again, and held by one process at a time."""

from contextlib import AbstractContextManager
from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

from fedft import durable
from fedft import run_file as configs
from fedft.config import RunConfig
from fedft.errors import ConfigError
from fedft.models import dtypes
from fedft.privacy.audit import canaries
from fedft.reports.loggers import interface as loggers
from fedft.training.metrics import interface as metrics

INPUTS = "inputs"
"""The folder in it of what a Python caller gave in memory: rows, a base model."""


def prepare(config: RunConfig, folder: Path, resume: bool) -> RunConfig:
    """Make the run folder, or find it as it must be to be resumed; returns the config that its `config.toml` has.

    That is `config` itself where there is none yet.

    Raises ConfigError if it cannot be written, holds something else, holds a run though `resume` is not set, or a run
    of another config. `config.toml`, which makes a folder a run's, is not written here.
    """
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
        if keys := changed(dtypes.resolved(before), config):
            raise ConfigError(f"--resume {folder}: the run file has changed in {', '.join(keys)}; start a new run")
        return dtypes.resolved(before)
    return config


def _holds_more(folder: Path) -> bool:
    """Whether a folder holds more than an attempt leaves that ended before `config.toml` was written, or a site's plan
    of what is to be audited."""
    left = {"state", "state/lock", "state/journal", ".writable", "config.toml.tmp", canaries.FILE}
    found = (p.relative_to(folder) for p in folder.rglob("*"))
    return any(p.as_posix() not in left and p.parts[0] != INPUTS for p in found)


def check_rounds(folder: Path, version: int, config: RunConfig) -> None:
    """Raise ConfigError if the run in the folder, whose newest state has this version, is further than wanted."""
    if version > config.server.rounds:
        raise ConfigError(
            f"--resume {folder}: is at round {version}, wanted at least as many rounds, got {config.server.rounds}"
        )


def alone(folder: Path) -> AbstractContextManager[None]:
    """A lock on the run in `folder`, held inside the `with`. Raises ConfigError if another process holds the lock."""
    return durable.alone(folder / "state" / "lock", f"--out {folder}: another process is running this run")


def check_plugins(config: RunConfig) -> None:
    """Import what the run measures with and who logs it. Raises ConfigError in one line, before there is a folder."""
    metrics.chosen(config.eval, config.model)
    loggers.chosen(config.server.loggers)


KEYS = (
    *(f"server.{key}" for key in ("deadline_s", "quorum", "grace_s", "attempts", "rounds", "patience", "min_delta")),
    *(f"{table}.{f.name}" for table in ("eval", "limits") for f in fields(get_type_hints(RunConfig)[table])),
)
"""`table.key` of what may change while a run goes on, and when it is resumed; see `fedft.server.steering`."""
FREE = ("privacy.max_epsilon", "server.budget", "server.loggers", "server.archive", "server.workers", "server.ray")
"""What may be another one when a run is resumed, besides."""


def changed(before: RunConfig, now: RunConfig) -> list[str]:
    """`table.key` of each key that differs and may not: neither of KEYS nor of FREE."""
    a, b = before.to_dict(), now.to_dict()
    keys = [(t, k) for t in b for k in sorted(a[t].keys() | b[t].keys()) if a[t].get(k) != b[t].get(k)]
    return [key for key in (f"{t}.{k}" for t, k in keys) if key not in (*KEYS, *FREE)]
