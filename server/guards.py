"""The guard that a run file asks for."""

from collections.abc import Callable, Mapping
from pathlib import Path

from fedft.config import RunConfig
from fedft.privacy.secure_sum.integer_uploads import integers_of
from fedft.recipe import Recipe
from fedft.server.checkpoint import Store
from fedft.server.guard import Guard, Unguarded
from fedft.server.integer_sum import IntegerSum
from fedft.server.masked_rounds import MaskedRounds
from fedft.server.robust_sum import RobustSum


def masked_of(
    config: RunConfig, recipe: Recipe, state: Path, cards: Callable[[], Mapping[str, bytes]]
) -> MaskedRounds | None:
    """What hides the updates of a run's rounds until they are summed; None: nothing does.

    `cards` gives the public keys of all clients by name; `state` is the folder of the run's states.
    """
    integers = integers_of(recipe)
    return MaskedRounds(integers, cards, state / "secagg") if integers and config.privacy.secagg == "on" else None


def guard_of(config: RunConfig, recipe: Recipe, store: Store, masked: MaskedRounds | None = None) -> Guard:
    """How the updates of a run's rounds are summed. What a guard makes durable lies beside the states of `store`."""
    if (integers := integers_of(recipe)) is not None:
        return IntegerSum(integers, masked.total if masked else None)
    if config.robust.rule != "none":
        return RobustSum(config)
    return Unguarded()
