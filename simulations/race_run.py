"""One run of a race, of whatever contender: trained to its end, measured, and its result written beside it.

outcome = carry_out(Task("fedit", 0, config, folder), observe)      numbers, or a Stopped that says why there are none
"""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fedft import durable
from fedft.config import RunConfig
from fedft.errors import ClientFailed, ConfigError, ModelHeldBack, RunPaused
from fedft.reports import run_result
from fedft.reports.comparison import BASELINES
from fedft.reports.observers import Observer
from fedft.server import budget as budgets
from fedft.server.run_folder import prepare
from fedft.simulations import baselines
from fedft.simulations import run as runs
from fedft.simulations.contenders import RESULT, finished


@dataclass(frozen=True)
class Task:
    """A run that is to be there in the end: whose it is, its config, and its folder."""

    label: str
    seed: int
    config: RunConfig
    folder: Path
    setting: str = ""
    """What of a grid is tried, where the run is a trial of its tuning."""
    number: int = 0
    """Which of the race's runs it is, from 1."""

    @property
    def who(self) -> dict[str, Any]:
        """What events of the run say of it."""
        return {"contender": self.label, "seed": self.seed, "setting": self.setting, "number": self.number}


@dataclass(frozen=True)
class Stopped:
    """Why a run has no result."""

    reason: str
    for_good: bool = False
    """Whether the same run would come to the same again: its numbers were not finite, say."""


Outcome = dict[str, Any] | Stopped
"""What `run_result.result` has of a run, with `jobs`, how many ran side by side; or why there is none."""


def left_by(task: Task) -> Outcome | None:
    """The outcome that an earlier start has left in the task's folder; None where the task is still to be done."""
    found = finished(task.folder)
    if found is None:
        return None
    if "stopped" not in found:
        return {k: v for k, v in found.items() if k != "config"}
    return Stopped(str(found["stopped"]), for_good=True) if task.setting else None  # a contender is tried again


def carry_out(task: Task, observe: Observer, jobs: int = 1) -> Outcome:
    """Run a task to its end and write result.json into its folder; returns what came of it.

    A trial that would fail again leaves its reason there, so that it is not tried again.

    Args:
        task: the run.
        observe: hears `preparing` and `step` of the run, see `race.race`.
        jobs: how many runs are side by side on this machine, which is noted with the seconds.
    """
    try:
        result = {**train(task, observe), "jobs": jobs}
    except (ClientFailed, ConfigError, ModelHeldBack, RunPaused) as e:
        for_good = isinstance(e, ClientFailed)  # it diverged, say
        if for_good and task.setting:
            _write(task, {"stopped": str(e)})
        return Stopped(str(e), for_good)
    _write(task, result)
    return result


def _write(task: Task, found: Mapping[str, Any]) -> None:
    durable.write(task.folder / RESULT, json.dumps({**found, "config": task.config.to_dict()}).encode() + b"\n")


def train(task: Task, observe: Observer) -> dict[str, Any]:
    """The result of a task that is trained here. Raises ClientFailed where it diverged, and whatever stops a run."""
    config, folder = task.config, task.folder
    tell = partial(_tell, config, observe)
    if task.label in BASELINES:
        work = folder / "trained"
        if work.is_dir():
            shutil.rmtree(work)  # left by one that was stopped: they are short, and start afresh
        prepare(config, work, resume=False)
        torch.set_num_threads(config.local.threads)
        observe("preparing", {"folder": folder})
        found = baselines.result(task.label, config, work, tell)
    else:
        watch = _watch(config, observe, tell)
        done = runs.simulate(config, out=folder, resume=(folder / "config.toml").exists(), observe=watch)
        if "loss" not in done.lines[0]:
            raise ConfigError(baselines.NO_ROWS)
        found = run_result.result(done.lines, config.local.steps)
    if found is None:
        raise ClientFailed("it diverged: its last state has no finite loss on held-out rows")
    return found


def _tell(config: RunConfig, observe: Observer, share: float, line: Mapping[str, Any]) -> None:
    at = f"{line['client']} alone, " if "client" in line else ""
    said = f"{at}round {line['version']}" + (f"/{config.server.rounds}" if config.server.budget is None else "")
    said += f", loss {line['loss']:.4f}" if "loss" in line else ""
    observe("step", {"share": share, "note": said, "version": line["version"]})


def _watch(config: RunConfig, observe: Observer, tell: Callable[[float, Mapping[str, Any]], None]) -> Observer:
    """What makes the race's events of the engine's."""
    lines: list[Mapping[str, Any]] = []
    newest: dict[str, Any] = {"version": 0}
    answered: list[str] = []
    asked: list[str] = []

    def watch(kind: str, info: Mapping[str, Any]) -> None:
        if kind == "preparing":
            observe(kind, info)
        elif kind == "round":
            asked[:], answered[:] = info["asked"], []
        elif kind == "admitted":
            answered.append(info["client"])
            share = budgets.share(config, lines)
            of_round = share / max(1, newest["version"]) or 1 / config.server.rounds
            tell(min(1.0, share + of_round * len(answered) / len(asked)), newest)
        elif kind == "line":
            lines.append(info)
            newest.update(info)  # a line that was not measured keeps the loss of the one before
            tell(budgets.share(config, lines), newest)

    return watch
