"""Which state of a run was the best, and whether better ones still come: `[eval] best` and `[server] patience`.

All is read from the lines of metrics.jsonl, so a run that was killed knows what it would have known. The first of equal
states is the best. For `patience`, one is better than the best before only by more than `[server] min_delta`; what is
smaller adds up until it is.
"""

import math
from collections.abc import Sequence
from typing import Any

from fedft import registry
from fedft.config import RunConfig
from fedft.errors import ConfigError
from fedft.registry import named
from fedft.reports import columns
from fedft.reports.metric_log import Line
from fedft.training.metrics import interface as metrics
from fedft.training.metrics.loss import LOSS

KEPT = "model-best"
"""Folder of the best state's model in that of a run."""


def measure(config: RunConfig) -> str | None:
    """The metric by which a run keeps its best state; None: it keeps none."""
    return config.eval.best or (None if config.server.patience is None else LOSS.name)


def check(config: RunConfig, deployed: bool) -> None:
    """Return None if evaluations of the run have the metric that it goes by, which says whether lower is better.

    Imports the run's objective; its metrics are declared already. Raises ConfigError.
    """
    if (name := measure(config)) is None:
        return
    registry.objectives.load(named(config.local.objective, "objective")[0])  # declares what it measures
    unlisted = name in registry.metrics.built_in and name not in config.eval.metrics
    if unlisted or not columns.of(name).better:
        why = "no evaluation has a number of this name for which lower or higher is better"
        raise ConfigError(f"[eval] best is {name!r}: {why}; wanted loss, accuracy, or one of [eval] metrics")
    if not deployed:
        return
    privacy = config.privacy
    asked = "[eval] best" if config.eval.best else "[server] patience"
    if privacy.at_clients or privacy.shared:
        raise ConfigError(f"{asked}: sites of [privacy] mode = {privacy.mode!r} are not measured; leave it out")
    if not privacy.on and privacy.secagg == "off":
        return
    from fedft.server.noisy_evaluation import RANGES

    releases = "summed" if privacy.secagg != "off" else "noisy"
    if not (privacy.evaluate == releases and name in RANGES):
        able = " and ".join(RANGES)
        raise ConfigError(
            f"{asked}: sites' {name} is hidden; with [privacy] evaluate = {releases!r} {able} are released"
        )


def best(config: RunConfig, lines: Sequence[Line]) -> tuple[int, float] | None:
    """(version, value) of the best state in these lines; None where none was measured, or nobody asks."""
    found = _measured(config, lines)
    return min(found, key=lambda one: (_sign(config) * one[1], one[0])) if found else None


def evaluations_since(config: RunConfig, lines: Sequence[Line]) -> int:
    """How many evaluations have come behind the last that was better than all before it by more than `min_delta`."""
    least, since = math.inf, -1
    for _, value in _measured(config, lines):
        if _sign(config) * value < least - config.server.min_delta:
            least, since = _sign(config) * value, 0
        else:
            since += 1
    return max(since, 0)


def over(config: RunConfig, lines: Sequence[Line]) -> bool:
    """Whether so many evaluations in a row as `[server] patience` says have brought nothing better."""
    patience = config.server.patience
    return patience is not None and evaluations_since(config, lines) >= patience


def may_end(config: RunConfig, lines: Sequence[Line]) -> bool:
    """Whether the run ends with the next evaluation if that brings nothing better."""
    patience = config.server.patience
    return patience is not None and evaluations_since(config, lines) + 1 >= patience


def summary(config: RunConfig, lines: Sequence[Line], kept: bool) -> dict[str, Any]:
    """{"best": metric, round, value, folder of the model or None} for summary.json; {} where there is no best state.

    `kept`: whether its model is written.
    """
    if (found := best(config, lines)) is None:
        return {}
    said = {"metric": measure(config), "round": found[0], "value": found[1]}
    return {"best": {**said, "model": KEPT if kept else None}}


def _measured(config: RunConfig, lines: Sequence[Line]) -> list[tuple[int, float]]:
    """(version, value) of each state of which the metric that the run goes by was measured."""
    name = measure(config)
    return [(line["version"], line[name]) for line in lines if name is not None and name in line]


def _sign(config: RunConfig) -> int:
    """1 where lower is better, -1 where higher is."""
    name = measure(config) or LOSS.name
    if not columns.of(name).better:  # nobody has loaded the run's metrics yet
        metrics.load(config.eval.metrics)
    return -1 if columns.of(name).better == "higher" else 1
