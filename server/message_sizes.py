"""How large a run's messages will be, from shapes alone: what none can carry is refused before anybody is asked."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle

from fedft.aggregation import robust_rules
from fedft.config import RunConfig
from fedft.contract import Layout, Member, Roster, State
from fedft.errors import ConfigError
from fedft.forecast.messages import message_bytes
from fedft.recipe import Recipe, spec_of
from fedft.reports.quantities import size
from fedft.update import Plan, Spec
from fedft.wire.messages import MAX_MESSAGE_BYTES


def check_sizes(config: RunConfig, recipe: Recipe, layout: Layout, clients: int) -> None:
    """Return None if every message of the run's first round is one that can be sent, and of any that may be planned.

    Codecs whose length depends on the numbers count as their longest; what a strategy gathers in later rounds does not
    count. Raises ConfigError with both sizes and the keys that make messages smaller, or for options that do not fit.

    Args:
        config: the run file.
        recipe: of its strategy.
        layout: of the base model.
        clients: how many there are.
    """
    if config.privacy.secagg != "off":
        from fedft.server import integer_sum

        integer_sum.check_clients(config, clients)
    robust_rules.check_clients(config, clients)
    state, plans = first_round(config, recipe, layout, clients)
    by_shape = {p.shape.key: p for p in largest_plans(config, recipe, plans)}.values()
    asked = min(config.clients.per_round or clients, clients)
    up = max(message_bytes(recipe.spec(layout, p), config.codec.up) for p in by_shape)
    if recipe.downlink_is_increment:
        down, codec = asked * max(message_bytes(recipe.spec(layout, p), "fp32") for p in by_shape), "fp32"
    else:
        down, codec = max(message_bytes(sent_down(recipe, state, p), config.codec.plans) for p in by_shape), ""
    for what, key, said, found in (
        ("an update", "up", config.codec.up, up),
        ("a state", "down", codec or config.codec.plans, down),
    ):
        if found > MAX_MESSAGE_BYTES:
            raise ConfigError(
                f"{what} of {recipe.name} has up to {size(found)} in {said}, a message carries at most "
                f"{size(MAX_MESSAGE_BYTES)}; smaller: [codec] {key}, [clients] rank, fewer [model] targets"
            )


def first_round(config: RunConfig, recipe: Recipe, layout: Layout, clients: int) -> tuple[State, list[Plan]]:
    """(the first state, what each of so many clients is to do from it).

    Raises ConfigError for options that do not fit the model.
    """
    ranks = [0] if recipe.space.rank_free else config.ranks()
    roster = {f"{i:09}": Member(ranks[i % len(ranks)]) for i in range(clients)}
    largest = max(member.rank for member in roster.values())
    try:
        seed = config.server.seed
        state = recipe.first_state(layout, largest, seed)
        bare = Plan("", 0, 0, steps=config.local.steps, learning_rate=config.local.learning_rate)
        return state, list(recipe.plans(state, Roster(roster, 0, seed, tuple(roster)), bare, largest).values())
    except ValueError as e:
        raise ConfigError(f"{recipe.name}: {e}") from e


def largest_plans(config: RunConfig, recipe: Recipe, plans: Sequence[Plan]) -> Sequence[Plan]:
    """`plans` of the first round as they are; where somebody plans, with all modules at each client's own rank.

    So much may be planned in a later round, however little the first one asks for.
    """
    if not recipe.plans_work or recipe.space.rank_free:
        return [replace(p, chosen=()) for p in plans]
    return [replace(p, rank=r, ranks={}, chosen=()) for p, r in zip(plans, cycle(config.ranks()), strict=False)]


def sent_down(recipe: Recipe, state: State, plan: Plan) -> Spec:
    """Names, shapes and dtypes of what is sent down to somebody new."""
    return spec_of(recipe.downlink(state, None, plan))
