"""Methods side by side: the same data, clients, rounds and local steps, several seeds, one table.

Beside the federated contenders run two baselines that need no federation: `local` (every client of the panel trains
alone for as many steps as it would have taken, and is measured on everybody's held-out rows) and `central` (one client
owns all rows and takes the steps of the whole cohort).
"""

import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch

from fedft import config as configs
from fedft import durable, evaluate
from fedft.client.memory import Memory
from fedft.client.train import Client
from fedft.config import RunConfig
from fedft.errors import ConfigError
from fedft.progress import size
from fedft.recipe import State
from fedft.server import sampling
from fedft.server.checkpoint import Store
from fedft.server.folder import changed
from fedft.server.job import job_of
from fedft.server.loop import Loop
from fedft.server.metrics import MetricsFile
from fedft.simulations import run as runs

BASELINES = ("local", "central")
SPREAD = ("after", "gain", "accuracy", "rouge_l")
TABLE, RESULT = "race.json", "result.json"
NO_ROWS = "no client has held-out rows to measure on; see [data] holdout and test"


@dataclass(frozen=True)
class Contender:
    """One line of the table: a label and the `table.key=value` overrides that make it."""

    label: str
    overrides: tuple[str, ...]


def contender(text: str) -> Contender:
    """`flora` or `package.module:factory`, or `label: key=value key=value` for a variant; `local` and `central` are the
    baselines. A label names a folder, so what a folder should not be named is a dot in the label made from a strategy.
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
    overrides: Sequence[str] = (),
    say: Callable[[str], None] = lambda text: None,
) -> list[dict[str, Any]]:
    """Run every contender with seeds 0 .. seeds - 1 under `out` and return the table's rows, saved as race.json.

    `overrides` hold for all contenders, their own win. Bytes are those of training, per client asked and round; the
    first and the last state are evaluated on the panel, and what that takes is left out. Finished runs found under
    `out` are not run again, so an interrupted race goes on where it stopped.

    Raises:
        ConfigError: no contenders, labels that cannot be told apart or name no folder, nothing to measure on, or runs
            of another config under `out`; before any work where it can be seen.
    """
    _check(contenders, seeds)
    planned: dict[str, list[RunConfig]] = {c.label: [] for c in contenders}
    for c in contenders:
        for seed in range(seeds):
            config = configs.load(file, [*overrides, *c.overrides, f"server.seed={seed}"])
            if config.data.test is None and not config.data.holdout:
                raise ConfigError(f"{file.name}: {NO_ROWS}")
            config = replace(config, eval=replace(config.eval, every=config.server.rounds))
            if changed := _changed(_folder(out, c.label, seed), config):
                raise ConfigError(
                    f"--out {out}: {c.label}, seed {seed} in it is of a run that differs in {', '.join(changed)}; "
                    "name another --out"
                )
            planned[c.label].append(config)
    rows = []
    for label, of_seeds in planned.items():
        results = []
        for seed, config in enumerate(of_seeds):
            folder = _folder(out, label, seed)
            if (result := _finished(folder)) is None:
                say(f"{label}, seed {seed}")
                result = {**_one(label, config, folder), "config": config.to_dict()}
                durable.write(folder / RESULT, json.dumps(result).encode() + b"\n")
            results.append({k: v for k, v in result.items() if k != "config"})
        rows.append({"method": label, "seeds": seeds, **_summed(results)})
    durable.write(out / TABLE, json.dumps(rows, indent=2).encode() + b"\n")
    return rows


def readable(rows: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """The rows as a person reads them: mean +- spread, bytes with units."""
    shown = []
    for r in rows:
        row = {"method": r["method"], "before": f"{r['before']:.3f}", "seconds": f"{r['seconds']:.1f}"}
        for k in SPREAD:
            if k in r:
                row[k] = f"{r[k]:.3f}" + (f" ± {r[k + '_sd']:.3f}" if k + "_sd" in r else "")
        shown.append(row | {k: size(round(r[k])) if r[k] else "-" for k in ("up", "down")})
    return shown


def _check(contenders: Sequence[Contender], seeds: int) -> None:
    if not contenders or seeds < 1:
        raise ConfigError(f"a race needs a contender and a seed, got {len(contenders)} contenders and {seeds} seeds")
    seen: set[str] = set()
    for label in (c.label for c in contenders):
        if not re.fullmatch(r"[\w.+-]+( +[\w.+-]+)*", label, flags=re.ASCII) or label in (".", "..", TABLE):
            raise ConfigError(f"contender {label!r}: wanted a plain name of letters, digits, spaces and _ . + -")
        if label.casefold() in seen:
            raise ConfigError(f"contender {label!r} is there twice; 'LABEL: KEY=VALUE ...' gives one another label")
        seen.add(label.casefold())


def _folder(out: Path, label: str, seed: int) -> Path:
    return out / label / f"seed-{seed}"


def _finished(folder: Path) -> dict[str, Any] | None:
    """What a finished run left here; None if there is none, or what is there is not whole."""
    try:
        found = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and {"config", "before", "after"} <= found.keys() else None


def _changed(folder: Path, now: RunConfig) -> list[str]:
    """`table.key` of what the run in `folder`, finished or not, has otherwise than `now`; the rounds count here."""
    if result := _finished(folder):
        before = configs.from_dict(result["config"], where=str(folder / RESULT))
    elif (folder / "config.toml").exists():
        before = configs.load(folder / "config.toml", where=str(folder / "config.toml"))
    else:
        return []
    keys = [k for k in changed(before, now) if k != "eval.every"]  # that one follows the rounds
    return keys + ["server.rounds"] * (before.server.rounds != now.server.rounds)


def _one(label: str, config: RunConfig, folder: Path) -> dict[str, float]:
    if label in BASELINES:
        work = folder / "trained"
        if work.is_dir():
            shutil.rmtree(work)  # left by one that was stopped: they are short, and start afresh
        runs.prepare(config, work, resume=False)
        torch.set_num_threads(config.local.threads)
        return (_local if label == "local" else _central)(config, work)
    done = runs.simulate(config, out=folder, resume=(folder / "config.toml").exists())
    if not {"initial", "final"} <= {k for k, v in done.summary.items() if isinstance(v, dict) and "loss" in v}:
        raise ConfigError(NO_ROWS)
    s, trained = done.summary, [line for line in done.lines if "round" in line]
    # round 0 finds the panel supplied by the first evaluation; later rounds pay for what they need
    turns = [b for line in trained[1:] or trained for b in line["bytes"].values()]
    found = {
        "before": s["initial"]["loss"],
        "after": s["final"]["loss"],
        "accuracy": s["final"]["accuracy"],
        "up": fmean(b["up"] for b in turns),
        "down": fmean(b["down"] for b in turns),
        "seconds": sum(line["seconds"]["train"] + line["seconds"]["aggregate"] for line in trained),
    }
    return found | ({"rouge_l": s["final"]["rouge_l"]} if "rouge_l" in s["final"] else {})


def _summed(results: Sequence[dict[str, float]]) -> dict[str, float]:
    """Mean of everything, and the spread (sample standard deviation) over seeds of what is learned."""
    full = [{**r, "gain": r["before"] - r["after"]} for r in results]
    row = {k: fmean(r[k] for r in full) for k in full[0]}
    if len(full) > 1:
        row |= {f"{k}_sd": stdev([r[k] for r in full]) for k in SPREAD if k in row}
    return row


def _local(config: RunConfig, folder: Path) -> dict[str, float]:
    """Each client of the panel alone, for the rounds it would expect to be asked; mean over clients."""
    place = runs.workplace(config)
    share = min(1.0, (config.clients.per_round or len(place.clients)) / len(place.clients))
    rounds = max(1, round(config.server.rounds * share))
    panel = sampling.panel(list(place.clients), config.eval.clients, config.server.seed)
    alone = replace(config, clients=replace(config.clients, rank=_one_rank(config)))
    alone = replace(alone, server=replace(config.server, rounds=rounds), eval=replace(config.eval, every=rounds))
    place = replace(place, config=alone)
    found = [
        _train_and_measure(place, {name: place.clients[name]}, panel, folder / str(i)) for i, name in enumerate(panel)
    ]
    return {k: fmean(f[k] for f in found) for k in found[0]} | {"up": 0.0, "down": 0.0}


def _central(config: RunConfig, folder: Path) -> dict[str, float]:
    """All rows in one place: as many steps per round as the cohort takes together."""
    place = runs.workplace(config)
    panel = sampling.panel(list(place.clients), config.eval.clients, config.server.seed)
    cohort = min(config.clients.per_round or len(place.clients), len(place.clients))
    whole = replace(config, local=replace(config.local, steps=config.local.steps * cohort))
    whole = replace(whole, clients=replace(config.clients, rank=_one_rank(config), per_round=None))
    rows = [row for c in place.clients.values() for row in c.train_rows]
    anyone = next(iter(place.clients.values()))
    place = replace(place, config=whole)
    owner = replace(anyone, name="central", train_rows=rows, test_rows=anyone.test_rows[:1], config=whole)
    return _train_and_measure(place, {"central": owner}, panel, folder) | {"up": 0.0, "down": 0.0}


def _one_rank(config: RunConfig) -> int:
    return config.ranks()[0] if len(set(config.ranks())) == 1 else round(fmean(config.ranks()))


def _train_and_measure(
    place: runs.Workplace, owners: Mapping[str, Client], panel: Sequence[str], folder: Path
) -> dict[str, float]:
    """Train `owners` with the engine, then measure the result on the held-out rows of the panel."""
    config = place.config
    clients = {name: replace(c, config=config, memory=Memory()) for name, c in owners.items()}
    job = job_of(config, place.base.digest, runs.whose(clients))
    store, metrics = Store(folder / "state"), MetricsFile(folder / "metrics.jsonl", -1)
    post = runs.local_post(clients)
    state0 = place.recipe.first_state(place.layout, max(config.ranks()), job.seed)
    before = _measure(place, state0, panel, job.seed)
    state = Loop(post, place.recipe, place.layout, config, job, store, metrics).run(clients)
    after = _measure(place, state, panel, job.seed)
    seconds = sum(line["seconds"]["train"] for line in metrics.lines if "round" in line)
    return {"before": before["loss"], "after": after["loss"], "accuracy": after["accuracy"], "seconds": seconds}


def _measure(place: runs.Workplace, state: State, panel: Sequence[str], seed: int) -> dict[str, float]:
    place.stand(state)
    c, found = place.config.eval, []
    for name in panel:
        if rows := place.clients[name].test_rows[: c.max_rows]:
            if place.recipe.personal:
                place.stand(state, name)
            found.append(evaluate.evaluate(place.handle, rows, c.batch_size, place.base.pad_id))
    if not found:
        raise ConfigError(NO_ROWS)
    return {k: fmean(f[k] for f in found) for k in found[0]}
