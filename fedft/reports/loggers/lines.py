"""What the loggers of numbers have in common: the numbers of a line, losses of clients, the run file as plain values.

loss, accuracy, ...          every metric of the line, and `epsilon`
train_loss, bytes_up, ...    of the round that led to it, where it says them
participants, refused        how many, where the line does not hide it
seconds/<phase>              of the round and its evaluation
client_loss/<client>         of at most MOST_CLIENTS clients, those that come first; of nobody under a mode of
                             [privacy] or secure sums, where a tracker is no place for what a simulation alone can see
"""

import json
import logging
import re
import secrets
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from fedft import durable
from fedft.config import RunConfig
from fedft.reports import columns, metric_log
from fedft.reports.observers import Observer
from fedft.training.metrics.loss import LOSS

log = logging.getLogger(__name__)

MOST_CLIENTS = 20
"""Curves of single clients in one run: more cannot be told apart, and trackers slow down."""
OF_A_ROUND = (*metric_log.FACTS, "aggregation_error", "rounds_left")
IDENTITY = "logger-id"
"""File of a run's folder by which trackers outside it know the run again."""

Write = Callable[[int, dict[str, float]], None]
"""(version, numbers by name) -> nothing."""


def follow(who: str, folder: Path, config: RunConfig, write: Write, end: Callable[[bool], None]) -> Observer:
    """An observer that writes the numbers of every line: those that are in `folder` now, and each new one.

    Args:
        who: the logger's name, for what it has to say.
        folder: of the run.
        config: of the run; where it hides single clients, none is written.
        write: called once for each line, in order.
        end: called once, with whether the run has finished.
    """
    clients = ClientLosses(who)
    hidden = config.privacy.on or config.privacy.secagg != "off"

    def observe(kind: str, info: Mapping[str, Any]) -> None:
        if kind == "line":
            write(info["version"], {**numbers(info), **({} if hidden else clients.of(info))})
        elif kind == "ended":
            end(info["summary"] is not None)

    for line in metric_log.read(folder / "metrics.jsonl"):
        observe("line", line)
    return observe


def numbers(line: metric_log.Line) -> dict[str, float]:
    """The numbers of a line of metrics.jsonl that are of no single client, by name; see the module.

    >>> numbers({"version": 1, "loss": 0.5, "bytes_up": 9, "seconds": {"train": 2.0}, "refused": []})
    {'loss': 0.5, 'bytes_up': 9, 'refused': 0, 'seconds/train': 2.0}
    """
    names = (*columns.measured(line), *OF_A_ROUND)
    found = {name: line[name] for name in names if line.get(name) is not None}
    told = [name for name in ("participants", "refused") if name in line and name not in line.get("hidden", ())]
    found |= {name: len(line[name]) for name in told}
    return found | {f"seconds/{phase}": s for phase, s in line.get("seconds", {}).items()}


class ClientLosses:
    """The losses of a bounded number of clients, the same ones in every part of a run that is resumed."""

    def __init__(self, who: str) -> None:
        """`who`: the logger's name."""
        self._who, self._names = who, dict[str, str]()
        self._told = False

    def of(self, line: metric_log.Line) -> dict[str, float]:
        """Those of a line, as `client_loss/<client>`. Says once, in the log, that some are left out."""
        measured = {c: m[LOSS.name] for c, m in line.get("evaluation", {}).items() if LOSS.name in m}
        for client in sorted(measured.keys() - self._names.keys()):
            if len(self._names) < MOST_CLIENTS:
                self._names[client] = f"client_loss/{plain(client)}"
        left_out = len(measured.keys() - self._names.keys())
        if left_out and not self._told:
            self._told = True
            said = "%s: of single clients the losses of %d are written; those of %d more are in metrics.jsonl alone"
            log.warning(said, self._who, MOST_CLIENTS, left_out)
        return {name: measured[client] for client, name in self._names.items() if client in measured}


def plain(name: str) -> str:
    """A name in the letters that every tracker takes; one that has others has a digest behind it.

    >>> plain("north-1"), plain("n/1")
    ('north-1', 'n_1-e4ccf9')
    """
    clean = re.sub(r"[^A-Za-z0-9_. -]", "_", name)
    return clean if clean == name else f"{clean}-{sha256(name.encode()).hexdigest()[:6]}"


def settings(config: RunConfig) -> dict[str, str | float | bool]:
    """Every key of the run file as "table.key", lists as JSON: the hyper-parameters of trackers."""
    found: dict[str, str | float | bool] = {}

    def add(name: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for key, inner in value.items():
                add(f"{name}.{key}" if name else key, inner)
        else:
            found[name] = value if isinstance(value, str | int | float | bool) else json.dumps(value)

    add("", config.to_dict())
    return found


def identity(folder: Path) -> str:
    """Eight hex digits that are this run folder's own, kept in it: drawn by whoever asks first."""
    file = folder / IDENTITY
    if not file.is_file():
        durable.write(file, f"{secrets.token_hex(4)}\n".encode())
    return file.read_text(encoding="utf-8").strip()
