"""Methods side by side: the same data, clients and budget, several seeds; one table, learning curves, one page.

Beside the federated contenders run two baselines that need no federation, `local` and `central` (`baselines.py`).
"""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fedft import durable
from fedft.config import RunConfig
from fedft.errors import ClientFailed, ConfigError, ModelHeldBack, RunPaused
from fedft.reports import finished_runs, html_report, run_result
from fedft.reports.comparison import BASELINES, compare
from fedft.reports.observers import Audience, Observer, Observers
from fedft.server import budget as budgets
from fedft.server.run_folder import prepare
from fedft.simulations import baselines
from fedft.simulations import run as runs
from fedft.simulations.contenders import PAGE, RESULT, TABLE, Contender, check_labels, finished, planned


def race(
    file: Path,
    contenders: Sequence[Contender],
    seeds: int,
    out: Path,
    *,
    budget: str | None = None,
    overrides: Sequence[str] = (),
    observe: Observers = (),
) -> dict[str, Any]:
    """Run every contender with seeds 0 .. seeds - 1 under `out` and return the comparison, saved as race.json.

    Beside it race.html shows the same to people; both are written anew after each contender. Finished runs found under
    `out` are not run again, so an interrupted race goes on where it stopped. A contender that cannot go on has no row
    but a reason under `stopped`; the others run all the same.

    Args:
        file: run file of all.
        contenders: who runs.
        seeds: how many, from 0.
        out: folder of the runs and the results.
        budget: `[server] budget` of all; None: what the run file says.
        overrides: hold for all contenders, their own win.
        observe: one or several; hears `note` (text), `run` (contender, seed, number, of), `preparing`, `step` (share
            from 0 to 1, note), and `ran` (contender, seed, result) or `stopped` (contender, seed, reason).
    Raises:
        ConfigError: no contenders, labels that cannot be told apart or name no folder, nothing to measure on, a
            strategy that cannot run so, an `out` that cannot be written or has runs of another config; before any work.
    """
    observe = Audience(observe)
    check_labels(contenders, seeds)
    bound = [f"server.budget={budget}"] if budget is not None else []
    configs = {c.label: planned(file, c, seeds, [*overrides, *bound], out, observe) for c in contenders}
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise ConfigError(f"--out {out}: cannot be written: {e.strerror}") from e
    about = {
        "run file": file.name,
        **finished_runs.about([config for of_seeds in configs.values() for config in of_seeds]),
    }
    about["contenders"] = {c.label: list(c.overrides) for c in contenders}
    results: dict[str, list[dict[str, Any]]] = {}
    stopped: dict[str, str] = {}
    for at, (label, of_seeds) in enumerate(configs.items()):
        folders = [out / label / f"seed-{seed}" for seed in range(seeds)]
        missing = any(finished(folder) is None for folder in folders)
        found, why = _contend(label, of_seeds, folders, observe, before=at * seeds, of=len(configs) * seeds)
        if why:
            stopped[label] = why
        else:
            results[label] = found
        if missing and at + 1 < len(configs):
            _save(compare(about, results, stopped, complete=False), out)
    done = compare(about, results, stopped)
    _save(done, out)
    return done


def _contend(
    label: str, of_seeds: Sequence[RunConfig], folders: Sequence[Path], observe: Observer, *, before: int, of: int
) -> tuple[list[dict[str, Any]], str]:
    """(results of a contender by seed, "" or why it stopped); `before` it come so many runs of the race's `of`."""
    results: list[dict[str, Any]] = []
    for seed, (config, folder) in enumerate(zip(of_seeds, folders, strict=True)):
        if (result := finished(folder)) is None:
            who = {"contender": label, "seed": seed}
            observe("run", {**who, "number": before + seed + 1, "of": of})
            try:
                result = {**_one(label, config, folder, observe), "config": config.to_dict()}
            except (
                ClientFailed,
                ConfigError,
                ModelHeldBack,
                RunPaused,
            ) as e:  # it diverged, say: the others run all the same
                observe("stopped", {**who, "reason": str(e)})
                return results, f"seed {seed}: {e}"
            durable.write(folder / RESULT, json.dumps(result).encode() + b"\n")
            observe("ran", {**who, "result": result})
        results.append({k: v for k, v in result.items() if k != "config"})
    return results, ""


def _save(comparison: Mapping[str, Any], out: Path) -> None:
    durable.write(out / TABLE, json.dumps(comparison, indent=1).encode() + b"\n")
    durable.write(out / PAGE, html_report.page(comparison).encode())


def _one(label: str, config: RunConfig, folder: Path, observe: Observer) -> dict[str, Any]:
    tell = partial(_tell, config, observe)
    if label in BASELINES:
        work = folder / "trained"
        if work.is_dir():
            shutil.rmtree(work)  # left by one that was stopped: they are short, and start afresh
        prepare(config, work, resume=False)
        torch.set_num_threads(config.local.threads)
        observe("preparing", {"folder": folder})
        found = baselines.result(label, config, work, tell)
    else:
        watch = _watch(config, observe, tell)
        done = runs.simulate(config, out=folder, resume=(folder / "config.toml").exists(), observe=watch)
        if "loss" not in done.lines[0]:
            raise ConfigError(baselines.NO_ROWS)
        found = run_result.result(done.lines, config.local.steps)
    if found is None:
        raise RunPaused("it diverged: its last state has no finite loss on held-out rows")
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
