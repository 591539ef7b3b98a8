"""What a run's privacy will cost, by whom its seed draws: said by plans, simulations and servers before it starts."""

import logging
from collections.abc import Mapping
from typing import Any

from fedft.config import RunConfig
from fedft.contract import Layout
from fedft.forecast import privacy_cost
from fedft.privacy import idle_keys
from fedft.privacy.schedule import Schedule
from fedft.privacy.secure_sum import noisy_integers
from fedft.privacy.secure_sum.integer_uploads import integers_of
from fedft.recipe import Recipe
from fedft.server.cohort import cohort
from fedft.update import Plan

log = logging.getLogger(__name__)


def scheduled(config: RunConfig, rows: Mapping[str, int | None], *, deployed: bool = True) -> Schedule:
    """`privacy_cost.scheduled` of a run, whose seed says who is asked in a round."""

    def drawn(round: int) -> list[str]:
        return cohort(list(rows), config.clients.per_round, config.server.seed, round)

    return privacy_cost.scheduled(config, rows, drawn, deployed=deployed)


def of_run(
    config: RunConfig, recipe: Recipe, layout: Layout, rows: Mapping[str, int | None], *, deployed: bool = True
) -> dict[str, Any]:
    """The facts of `fedft.forecast.privacy_cost.cost`; {} where the run file protects nothing.

    Warns of keys of `[privacy]` that count for nothing.

    Args:
        config, recipe, layout: of the run.
        rows: records to train on by client; None: not known here.
        deployed: whether it is over a network; a simulation's evaluations are outside of epsilon.
    Raises:
        ConfigError: a delta that is too large, an epsilon that no noise reaches, or dp-accounting is not installed.
    """
    said = config.privacy
    for line in idle_keys.lines(said):
        log.warning("%s", line)
    if not said.on:
        return {} if said.secagg == "off" else {"mode": "none", "secagg": said.secagg}

    rank = 0 if recipe.space.rank_free else max(config.ranks()[: len(rows)])
    if said.shared and (integers := integers_of(recipe)) is not None:
        spec = integers.spec(layout, Plan("", 0, 0, rank=rank, steps=config.local.steps))
        noisy_integers.check(spec, len(rows))
    d = privacy_cost.numbers(recipe, layout, rank, said.mode)
    return privacy_cost.cost(scheduled(config, rows, deployed=deployed), d)
