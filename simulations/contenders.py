"""Who runs in a race, and with what: labels, the config of each seed, and what an earlier start has left."""

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from fedft import check, strategies
from fedft import run_file as configs
from fedft.config import RunConfig
from fedft.errors import ConfigError
from fedft.reports.comparison import BASELINES
from fedft.server import open_run
from fedft.server.run_folder import changed, check_plugins
from fedft.simulations import baselines
from fedft.simulations.devices import check_devices

TABLE, PAGE, RESULT = "race.json", "race.html", "result.json"
LATEX, CSV, TUNING = "race.tex", "race.csv", "tuning"
TAKEN = (".", "..", TABLE, PAGE, LATEX, CSV, TUNING)
"""Names below a race's folder that no contender may have."""
DONE, STOPPED = {"config", "before", "after", "curve"}, {"config", "stopped"}
"""What a whole result.json has at least: of a run that came to an end, and of one that cannot."""
ENDS = ("server.rounds", "server.budget", "server.patience", "server.min_delta", "eval.best")
"""`table.key` of what says where a run ends: a run alone may go on with others, one that is compared may not."""


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


def check_labels(contenders: Sequence[Contender], seeds: int) -> None:
    """Return None where there is somebody to run and each label names a folder of its own. Raises ConfigError."""
    if not contenders or seeds < 1:
        raise ConfigError(f"a race needs a contender and a seed, got {len(contenders)} contenders and {seeds} seeds")
    seen: set[str] = set()
    for label in (c.label for c in contenders):
        plain = re.fullmatch(r"[\w.+-]+( +[\w.+-]+)*", label, flags=re.ASCII)
        if not plain or label in TAKEN:
            raise ConfigError(f"contender {label!r}: wanted a plain name of letters, digits, spaces and _ . + -")
        if label.casefold() in seen:
            raise ConfigError(f"contender {label!r} is there twice; 'LABEL: KEY=VALUE ...' gives one another label")
        seen.add(label.casefold())


def planned(
    file: Path,
    c: Contender,
    seed: int,
    overrides: Sequence[str],
    folder: Path,
    *,
    note: Callable[[str], None] = lambda text: None,
    tuning: Sequence[str] = (),
    free: Collection[str] = (),
) -> RunConfig:
    """The config of one run of a contender, after all that can be refused before any work.

    Args:
        file: run file of all.
        c: whose run it is.
        seed: of the run.
        overrides: hold for all contenders, their own win.
        folder: of the run; what is in it has to be of this config.
        note: hears what is changed for this contender.
        tuning: overrides of the race itself, which win over all others.
        free: `table.key` that what is in `folder` may have otherwise.
    Raises:
        ConfigError: nothing to measure on, a strategy that cannot run so, a folder that has a run of another config.
    """
    config = open_run.resolved(configs.load(file, [*overrides, *c.overrides, *tuning, f"server.seed={seed}"]))
    if config.data.test is None and not config.data.holdout:
        raise ConfigError(f"{file.name}: {baselines.NO_ROWS}")
    if config.local.epochs is not None:
        raise ConfigError(f"{file.name}: [local] epochs: a race compares by steps, which are then unlike; name steps")
    ranks = config.ranks()
    if len(set(ranks)) > 1 and (c.label in BASELINES or _needs_one_rank(config)):
        config = replace(config, clients=replace(config.clients, rank=round(fmean(ranks))))
        given = check.few([*map(str, ranks)], 8)
        note(f"{c.label} takes one rank: {config.clients.rank}, the mean of {given}")
    strategies.of(config)
    check_plugins(config)
    check_devices(config)
    if config.clients.devices is not None and c.label in BASELINES:
        note(f"{c.label} is on no virtual device: its seconds are this machine's")
    if keys := [key for key in _changed(folder, config) if key not in free]:
        raise ConfigError(f"{folder}: is of a run that differs in {', '.join(keys)}; name another --out")
    return config


def _needs_one_rank(config: RunConfig) -> bool:
    recipe = strategies.make(config.strategy.name, config.strategy.options)
    return not (recipe.space.rank_free or recipe.unlike_ranks)


def finished(folder: Path) -> dict[str, Any] | None:
    """What a finished run left here, with a reason under `stopped` where it will never have a result.

    None if there is none, or what is there is not whole.
    """
    try:
        found = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    whole = isinstance(found, dict) and any(keys <= found.keys() for keys in (DONE, STOPPED))
    return found if whole else None


def _changed(folder: Path, now: RunConfig) -> list[str]:
    """`table.key` of what the run in `folder`, finished or not, has otherwise than `now`; where it ends counts here."""
    if result := finished(folder):
        before = configs.from_dict(result["config"], where=str(folder / RESULT))
    elif (folder / "config.toml").exists():
        before = configs.load(folder / "config.toml", where=str(folder / "config.toml"))
    else:
        return []
    a, b = before.to_dict(), now.to_dict()
    ends = [key for key in ENDS if _at(a, key) != _at(b, key)]
    return [*(key for key in changed(before, now) if key not in ENDS), *ends]


def _at(tables: Mapping[str, Any], key: str) -> Any:
    """The value of a `table.key`; None where it is left out."""
    table, _, name = key.partition(".")
    return tables[table].get(name)
