"""The guard that a run file asks for."""

from collections.abc import Callable, Mapping
from pathlib import Path

from fedft.config import RunConfig
from fedft.models.resident import Resident
from fedft.privacy.secure_sum.integer_uploads import integers_of
from fedft.recipe import Recipe
from fedft.server.checkpoint import Store
from fedft.server.guard import Guard, Unguarded
from fedft.server.integer_sum import IntegerSum
from fedft.server.masked_rounds import MaskedRounds
from fedft.server.private_sum import PrivateSum
from fedft.server.robust_sum import RobustSum
from fedft.server.root_update import root_update
from fedft.server.shared_noise import SharedNoiseSum


def masked_of(
    config: RunConfig, recipe: Recipe, state: Path, cards: Callable[[], Mapping[str, bytes]]
) -> MaskedRounds | None:
    """What hides the updates of a run's rounds until they are summed; None: nothing does.

    `cards` gives the public keys of all clients by name; `state` is the folder of the run's states.
    """
    integers = integers_of(recipe)
    return MaskedRounds(integers, cards, state / "secagg") if integers and config.privacy.secagg == "on" else None


def guard_of(
    config: RunConfig, recipe: Recipe, store: Store, here: Resident, masked: MaskedRounds | None = None
) -> Guard:
    """How the updates of a run's rounds are summed. What a guard makes durable lies beside the states of `store`.

    `here` is the base model of the run's engine, with the recipe's handle.
    """
    if (integers := integers_of(recipe)) is not None:
        summed = IntegerSum(integers, masked.total if masked else None)
        return SharedNoiseSum(config, store.folder, summed) if config.privacy.shared else summed
    if config.privacy.mode == "central-dp":
        return PrivateSum(config, store.folder)
    if config.robust.rule == "fltrust":
        return RobustSum(config, root_update(config, recipe, here).of)
    if config.robust.rule != "none":
        return RobustSum(config)
    return Unguarded()
