"""Methods side by side: the same data, clients and budget, several seeds; one table, learning curves, one page.

Beside the federated contenders run two baselines that need no federation, `local` and `central` (`baselines.py`).
"""

import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from fedft import check, durable, strategies
from fedft import run_file as configs
from fedft.config import RunConfig
from fedft.errors import ClientFailed, ConfigError, RunPaused
from fedft.reports import finished_runs, html_report, run_result
from fedft.reports.comparison import BASELINES, compare
from fedft.reports.observers import Audience, Observer, Observers
from fedft.server import budget as budgets
from fedft.server import open_run
from fedft.server.run_folder import changed, check_plugins, prepare
from fedft.simulations import baselines
from fedft.simulations import run as runs
from fedft.simulations.devices import check_devices

TABLE, PAGE, RESULT = "race.json", "race.html", "result.json"


@dataclass(frozen=True)
class Contender:
    """One line of the table: a label and the `table.key=value` overrides that make it."""

    label: str
    overrides: tuple[str, ...]


def contender(text: str) -> Contender:
    """The contender of a text: `flora`, `package.module:factory`, or `label: key=value key=value` for a variant;
    `local` and `central` are the baselines. A label names a folder: other signs in a strategy's name become dots.

    >>> contender("small: strategy.name=fedit clients.rank=2")
    Contender(label='small', overrides=('strategy.name=fedit', 'clients.rank=2'))
    """
    label, colon, rest = text.partition(": ")
    if label in BASELINES:
        return Contender(label, ("strategy.name=fedit", *rest.split()))
    if colon:
        return Contender(label, tuple(rest.split()))
    return Contender(re.sub(r"[^\w.+-]", ".", text, flags=re.ASCII), (f"strategy.name={text}",))


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
    _check(contenders, seeds)
    bound = [f"server.budget={budget}"] if budget is not None else []
    planned = {c.label: _planned(file, c, seeds, [*overrides, *bound], out, observe) for c in contenders}
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise ConfigError(f"--out {out}: cannot be written: {e.strerror}") from e
    about = {
        "run file": file.name,
        **finished_runs.about([config for of_seeds in planned.values() for config in of_seeds]),
    }
    about["contenders"] = {c.label: list(c.overrides) for c in contenders}
    results: dict[str, list[dict[str, Any]]] = {}
    stopped: dict[str, str] = {}
    for at, (label, of_seeds) in enumerate(planned.items()):
        folders = [out / label / f"seed-{seed}" for seed in range(seeds)]
        missing = any(_finished(folder) is None for folder in folders)
        found, why = _contend(label, of_seeds, folders, observe, before=at * seeds, of=len(planned) * seeds)
        if why:
            stopped[label] = why
        else:
            results[label] = found
        if missing and at + 1 < len(planned):
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
        if (result := _finished(folder)) is None:
            who = {"contender": label, "seed": seed}
            observe("run", {**who, "number": before + seed + 1, "of": of})
            try:
                result = {**_one(label, config, folder, observe), "config": config.to_dict()}
            except (ClientFailed, ConfigError, RunPaused) as e:  # it diverged, say: the others run all the same
                observe("stopped", {**who, "reason": str(e)})
                return results, f"seed {seed}: {e}"
            durable.write(folder / RESULT, json.dumps(result).encode() + b"\n")
            observe("ran", {**who, "result": result})
        results.append({k: v for k, v in result.items() if k != "config"})
    return results, ""


def _save(comparison: Mapping[str, Any], out: Path) -> None:
    durable.write(out / TABLE, json.dumps(comparison, indent=1).encode() + b"\n")
    durable.write(out / PAGE, html_report.page(comparison).encode())


def _check(contenders: Sequence[Contender], seeds: int) -> None:
    if not contenders or seeds < 1:
        raise ConfigError(f"a race needs a contender and a seed, got {len(contenders)} contenders and {seeds} seeds")
    seen: set[str] = set()
    for label in (c.label for c in contenders):
        plain = re.fullmatch(r"[\w.+-]+( +[\w.+-]+)*", label, flags=re.ASCII)
        if not plain or label in (".", "..", TABLE, PAGE):
            raise ConfigError(f"contender {label!r}: wanted a plain name of letters, digits, spaces and _ . + -")
        if label.casefold() in seen:
            raise ConfigError(f"contender {label!r} is there twice; 'LABEL: KEY=VALUE ...' gives one another label")
        seen.add(label.casefold())


def _planned(
    file: Path, c: Contender, seeds: int, overrides: Sequence[str], out: Path, observe: Observer
) -> list[RunConfig]:
    """The config of each seed, after all that can be refused before any work."""
    planned = []
    for seed in range(seeds):
        config = open_run.resolved(configs.load(file, [*overrides, *c.overrides, f"server.seed={seed}"]))
        if config.data.test is None and not config.data.holdout:
            raise ConfigError(f"{file.name}: {baselines.NO_ROWS}")
        if config.local.epochs is not None:
            raise ConfigError(
                f"{file.name}: [local] epochs: a race compares by steps, which are then unlike; name steps"
            )
        ranks = config.ranks()
        if len(set(ranks)) > 1 and (c.label in BASELINES or _needs_one_rank(config)):
            config = replace(config, clients=replace(config.clients, rank=round(fmean(ranks))))
            if seed == 0:
                given = check.few([*map(str, ranks)], 8)
                observe("note", {"text": f"{c.label} takes one rank: {config.clients.rank}, the mean of {given}"})
        strategies.of(config)
        check_plugins(config)
        check_devices(config)
        if seed == 0 and config.clients.devices is not None and c.label in BASELINES:
            observe("note", {"text": f"{c.label} is on no virtual device: its seconds are this machine's"})
        folder = out / c.label / f"seed-{seed}"
        if keys := _changed(folder, config):
            raise ConfigError(
                f"--out {out}: {c.label}, seed {seed} in it is of a run that differs in {', '.join(keys)}; "
                "name another --out"
            )
        planned.append(config)
    return planned


def _needs_one_rank(config: RunConfig) -> bool:
    recipe = strategies.make(config.strategy.name, config.strategy.options)
    return not (recipe.space.rank_free or recipe.unlike_ranks)


def _finished(folder: Path) -> dict[str, Any] | None:
    """What a finished run left here; None if there is none, or what is there is not whole."""
    try:
        found = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and {"config", "before", "after", "curve"} <= found.keys() else None


def _changed(folder: Path, now: RunConfig) -> list[str]:
    """`table.key` of what the run in `folder`, finished or not, has otherwise than `now`; where it ends counts here."""
    if result := _finished(folder):
        before = configs.from_dict(result["config"], where=str(folder / RESULT))
    elif (folder / "config.toml").exists():
        before = configs.load(folder / "config.toml", where=str(folder / "config.toml"))
    else:
        return []
    keys = [k for k in changed(before, now) if k != "server.budget"]
    ends = [k for k in ("rounds", "budget") if getattr(before.server, k) != getattr(now.server, k)]
    return keys + [f"server.{k}" for k in ends]


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
