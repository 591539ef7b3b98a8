"""Finished runs and races, read back from their folders as one comparison."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedft import check, run_file
from fedft.config import RunConfig
from fedft.errors import ConfigError
from fedft.registry import named
from fedft.reports import energy, run_result
from fedft.reports.comparison import compare


def about(runs: Sequence[RunConfig]) -> dict[str, Any]:
    """The settings of runs by name, for people: a value that all have, or up to four values where they differ."""

    def said(*values: object) -> str:
        """`values`, one of each run: those that are unlike each other."""
        unlike = list(dict.fromkeys(map(str, values)))
        return "; ".join(unlike[:4]) + ("; ..." if len(unlike) > 4 else "")

    return {
        "model": said(*(f"{_name(c.model.id)}, {c.model.task}, {c.model.dtype}" for c in runs)),
        "data": said(*(_data(c) for c in runs)),
        "clients per round": said(*(c.clients.per_round or "all" for c in runs)),
        "LoRA rank": said(*(", ".join(map(str, c.ranks())) for c in runs)),
        "local": said(*(f"{c.local.steps} steps of {c.local.batch_size} rows" for c in runs)),
        "optimizer": said(
            *(f"{named(c.local.optimizer, 'optimizer')[0]}, learning rate {c.local.learning_rate:g}" for c in runs)
        ),
        "codec": said(*(f"{c.codec.up} up, {c.codec.down} down" for c in runs)),
        "rounds": said(*(c.server.rounds for c in runs)),
        "budget": said(*(c.server.budget or "none" for c in runs)),
        "seeds": ", ".join(map(str, sorted({c.server.seed for c in runs}))),
    }


def _data(c: RunConfig) -> str:
    """The data of a run: file or hub id, partitioner, test file or share held out."""
    test = f"tested on {_name(c.data.test)}" if c.data.test else f"{c.data.holdout:g} held out"
    return f"{_name(c.data.train)}, {named(c.data.partition, 'partitioner')[0]}, {test}"


def _name(path: str | list[str]) -> str:
    """The last part of a path on this machine; a hub id as it is; of a list, those of the first few."""
    if isinstance(path, list):
        return check.few([_name(one) for one in path])
    return Path(path).name if Path(path).is_absolute() else path


def known(result: Mapping[str, Any], config: RunConfig) -> dict[str, Any]:
    """A result with what its run's config says of it: `seed`, and clients by names that mean the same in other seeds.

    Where clients are made by the seed, those of two seeds are different ones, and are called so.
    """
    seed = config.server.seed
    same = named(config.data.partition, "partitioner")[0] == "natural"
    clients = {c if same else f"{c}, seed {seed}": loss for c, loss in result.get("clients", {}).items()}
    return {**result, "seed": seed, "clients": clients}


def gather(folders: Sequence[Path], *, watts: float | None = None, against: str | None = None) -> dict[str, Any]:
    """The comparison (`comparison.compare`) of the finished runs and races in these folders.

    Runs that differ in the seed alone are one method, called by the strategy; a race's methods keep their labels.
    Labels that occur twice get the folder's name behind them.

    Args:
        folders: of runs and races.
        watts: for the estimate of energy; None: those of the races, or what is assumed for the runs' devices.
        against: the method that others are compared with in pairs; None: that of a race, or the best.
    Raises:
        ConfigError: a folder holds neither a race nor a finished run, or nothing was measured in it; or there is no
            method `against`.
    """
    results: dict[str, list[dict[str, Any]]] = {}
    alike: dict[str, str] = {}
    found: list[RunConfig] = []
    facts: dict[str, Any] = {}
    stopped: dict[str, str] = {}
    said: dict[str, Any] = {}
    tuning: dict[str, Any] = {}
    assumed: list[float] = []
    complete, wanted = True, against
    for folder in folders:
        if (folder / "race.json").exists():
            of, methods = _race(folder / "race.json")
            facts = {**of["about"], **facts}
            facts["contenders"] = {**of["about"].get("contenders", {}), **facts.get("contenders", {})}
            stopped |= of.get("stopped", {})
            said |= of.get("columns", {})
            complete = complete and bool(of.get("complete", True))
            tuning = tuning or of.get("tuning", {})
            assumed += [of["watts"]] if of.get("watts") else []
            against = against or (None if of.get("picked", True) else of.get("against"))
            for label, seeds in methods.items():
                results[_free(label, folder, results)] = seeds
            continue
        config, result, shown = _run(folder)
        found.append(config)
        said |= shown
        text = json.dumps(replace(config, server=replace(config.server, seed=0)).to_dict(), sort_keys=True)
        if text not in alike:
            alike[text] = _free(config.strategy.name, folder, results)
        results.setdefault(alike[text], []).append(known(result, config))
    of_runs = about(found) if found else {}
    facts = {**of_runs, **facts, "folders": ", ".join(f.resolve().name for f in folders)}
    if wanted is not None and wanted not in results:
        raise ConfigError(f"--against {wanted!r}: there is no such method; there are {', '.join(results)}")
    watts = energy.watts((c.model.device for c in found), watts if watts is not None else max(assumed, default=None))
    return compare(facts, results, stopped, complete=complete, said=said, watts=watts, against=against, tuning=tuning)


def _free(label: str, folder: Path, taken: Mapping[str, Any]) -> str:
    """`label`, or, where a method is called so already, the label with the folder's name and a number behind it."""
    if label in taken:
        label = f"{label} ({folder.resolve().name})"
    number, first = 2, label
    while label in taken:
        label, number = f"{first} {number}", number + 1
    return label


def _race(path: Path) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
    """(the comparison in a race.json, its results by method with their curves). Raises ConfigError."""
    try:
        of = json.loads(path.read_text(encoding="utf-8"))
        if of["version"] != 1:
            raise ValueError
        dict(of["about"])
        dict(of.get("columns", {}))
        pairs = {label: zip(of["results"][label], seeds, strict=True) for label, seeds in of["curves"].items()}
        results = {label: [{**r, "curve": c} for r, c in seeds] for label, seeds in pairs.items()}
        compare({}, results)  # has all the numbers that are shown
        return of, results
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ArithmeticError) as e:
        raise ConfigError(f"{path}: is no race of this version") from e


def _run(folder: Path) -> tuple[RunConfig, dict[str, Any], dict[str, Any]]:
    """(config, result, how its metrics are shown) of a finished run. Raises ConfigError."""
    if not (folder / "config.toml").exists():
        raise ConfigError(f"{folder}: holds neither a run (config.toml) nor a race (race.json)")
    if not (folder / "summary.json").exists():
        raise ConfigError(f"{folder}: the run is not finished, there is no summary.json; see --resume")
    config = run_file.load(folder / "config.toml", where=str(folder / "config.toml"))
    try:
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        result = run_result.result(lines, config.local.steps)
        shown = dict(json.loads((folder / "summary.json").read_text(encoding="utf-8")).get("columns", {}))
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise ConfigError(f"{folder / 'metrics.jsonl'}: cannot be read, or summary.json beside it") from e
    if result is None:
        raise ConfigError(f"{folder}: no loss was measured at its start and its end; see [data] holdout and test")
    return config, result, shown
