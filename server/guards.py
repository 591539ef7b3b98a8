"""The guard that a run file asks for."""

from fedft.config import RunConfig
from fedft.models.resident import Resident
from fedft.recipe import Recipe
from fedft.server.checkpoint import Store
from fedft.server.guard import Guard, Unguarded
from fedft.server.private_sum import PrivateSum
from fedft.server.robust_sum import RobustSum
from fedft.server.root_update import root_update


def guard_of(config: RunConfig, recipe: Recipe, store: Store, here: Resident) -> Guard:
    """How the updates of a run's rounds are summed. What a guard makes durable lies beside the states of `store`.

    `here` is the base model of the run's engine, with the recipe's handle.
    """
    if config.privacy.mode == "central-dp":
        return PrivateSum(config, store.folder)
    if config.robust.rule == "fltrust":
        return RobustSum(config, root_update(config, recipe, here).of)
    if config.robust.rule != "none":
        return RobustSum(config)
    return Unguarded()
