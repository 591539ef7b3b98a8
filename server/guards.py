"""The guard that a run file asks for."""

from fedft.config import RunConfig
from fedft.recipe import Recipe
from fedft.server.checkpoint import Store
from fedft.server.guard import Guard, Unguarded
from fedft.server.robust_sum import RobustSum


def guard_of(config: RunConfig, recipe: Recipe, store: Store) -> Guard:
    """How the updates of a run's rounds are summed. What a guard makes durable lies beside the states of `store`."""
    if config.robust.rule != "none":
        return RobustSum(config)
    return Unguarded()
