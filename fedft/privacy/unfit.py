"""What in a run file cannot go together with its privacy, secure sums or robust sums, and the nearest that can.

One sentence each, which names both keys. The table of strategies is `fedft.privacy.strategy_table`; a strategy of
another package is judged by what its recipe declares.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from fedft import registry
from fedft.config import RunConfig
from fedft.privacy.strategy_table import (
    ALL_RULES,
    LINES,
    NO_RULES,
    NO_WALK,
    OPTIONS,
    SUMS,
    Line,
    Option,
    Why,
)
from fedft.privacy.tables import OF_RECORDS
from fedft.recipe import Recipe
from fedft.training.first_order import steps_within

MOVES_ONLY = frozenset({"fedopt", "fedprox"})
"""On another strategy, these are as it is."""
NOT_LINEAR = Why("it does not declare that a sum of uploads is enough (`Recipe.linear`)", "fedit, rolora or ffa_lora")
NO_RING = Why("it does not declare that all clients send like shapes (`Recipe.ring_summable`)", "fedit or ffa_lora")
NOT_CHANGES = Why("its clients send values, not changes", "fedit, rolora or ffa_lora")
NO_STEPS = Why("it has no gradient steps of `fedft.training.FirstOrder`", "fedit or ffa_lora")


def unfit(recipe: Recipe, config: RunConfig) -> str:
    """Why a run file's [privacy] and [robust] cannot be with the rest of it, in one sentence; "" where they can."""
    return next((why for of in (_strategy, _rule, _keys) for why in of(recipe, config)), "")


def columns(config: RunConfig) -> dict[str, str]:
    """The columns of the table that a run file asks for, each with the key that asks for it.

    >>> from fedft.privacy.tables import Privacy
    >>> columns(RunConfig(privacy=Privacy(mode="example-dp", secagg="on")))
    {'secagg': "[privacy] secagg = 'on'", 'example-dp': "[privacy] mode = 'example-dp'"}
    """
    privacy, found = config.privacy, {}
    secure, mode = f"[privacy] secagg = {privacy.secagg!r}", f"[privacy] mode = {privacy.mode!r}"
    if privacy.secagg != "off":
        found["secagg"] = secure
    if privacy.on:
        found[privacy.mode] = mode
    if privacy.secagg != "off" and privacy.mode == "central-dp":
        found["shares"] = f"{mode} with secagg = {privacy.secagg!r}"
    return found


def line_of(recipe: Recipe) -> Line:
    """The line of a strategy that is not in the table, from what it declares."""
    no: dict[str, Why] = {"zo-dp": NO_WALK} if recipe.walk is None else {}
    if recipe.upload_kind == "values":
        no |= dict.fromkeys(SUMS, NOT_CHANGES)
    if not recipe.ring_summable:
        no |= dict.fromkeys(("secagg", "shares"), NO_RING)
    if not recipe.linear or recipe.reveals_clients:
        no |= dict.fromkeys(SUMS, NOT_LINEAR)
    if steps_within(recipe.local) is None:
        no["example-dp"] = NO_STEPS
    return Line(no, ALL_RULES if recipe.linear else NO_RULES)


def _strategy(recipe: Recipe, config: RunConfig) -> Iterator[str]:
    """Cells of the table that say no."""
    asked = columns(config)
    for name, options in _tower(config):
        said = [(f"[strategy] {o.name} = {options[o.name]!r} of {name}", o.no) for o in _options(name, options)]
        if name not in MOVES_ONLY:
            said.append((f"[strategy] name = {name!r}", LINES.get(name, line_of(recipe)).no))
        for key, no in said:
            yield from (_sentence(key, asked[c], *no[c]) for c in asked if c in no)


def _rule(recipe: Recipe, config: RunConfig) -> Iterator[str]:
    """A robust rule that the strategy's updates do not fit."""
    rule = config.robust.rule
    for name, options in _tower(config) if rule != "none" else ():
        lines: list[Line | Option] = [*_options(name, options)]
        if name not in MOVES_ONLY:
            lines.append(LINES.get(name, line_of(recipe)))
        fits = ALL_RULES.intersection(*(line.rules for line in lines))
        if rule not in fits:
            why = "a rule goes by distances or entries that its updates do not have"
            wanted = f"one of {', '.join(sorted(fits))}" if fits else "rule = 'none', or ffa_lora, which any rule fits"
            yield _sentence(f"[strategy] name = {name!r}", f"[robust] rule = {rule!r}", why, wanted)


def _keys(recipe: Recipe, config: RunConfig) -> Iterator[str]:
    """Keys of other tables that cannot be beside what is asked for."""
    server, local, codec, plan = config.server, config.local, config.codec, config.clients.plan
    sums, secure, steps = ("secagg", "central-dp"), ("secagg",), OF_RECORDS
    coupled, alone = (
        "records of a batch would depend on each other",
        "gradients of single records are each client's own",
    )
    planned = "planners look at single clients, and may give them unlike shapes"
    rows_told = "steps would tell the server how many rows there are"
    many = isinstance(server.together, int) and server.together > 1
    beside: list[tuple[tuple[str, ...], bool, str, str, str]] = [
        (sums, server.buffer is not None, f"[server] buffer = {server.buffer}", "a sum is of one round", "it left out"),
        (sums, plan is not None, f"[clients] plan = {plan!r}", planned, "it left out"),
        (secure, codec.up != "fp32", f"[codec] up = {codec.up!r}", "masks are of integers", "'fp32', and value_bits"),
        (secure, bool(codec.error_feedback), "[codec] error_feedback", "integers leave nothing out", "it left out"),
        (steps, local.packing, "[local] packing", coupled, "it left out"),
        (steps, local.trainer is not None, f"[local] trainer = {local.trainer!r}", "it adds no noise", "it left out"),
        (steps, local.epochs is not None, f"[local] epochs = {local.epochs}", "records are drawn by coins", "steps"),
        (("local-dp",), local.epochs is not None, f"[local] epochs = {local.epochs}", rows_told, "steps"),
        (steps, many, f"[server] together = {server.together}", alone, "1, or it left out"),
    ]
    asked = columns(config)
    for wanting, holds, key, why, wanted in beside:
        yield from (_sentence(key, asked[c], why, wanted) for c in asked if holds and c in wanting)


def _tower(config: RunConfig) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(name, options with their defaults) of a run's strategy, of the one that it is on, and so on."""
    name, options = config.strategy.name, config.strategy.options
    while True:
        known = {option: p.default for option, p in registry.strategies.options(name).items()}
        yield name, known | dict(options)
        if not isinstance(on := (known | dict(options)).get("on"), str | dict):
            return
        name, options = registry.named(on, "strategy")


def _options(name: str, options: Mapping[str, Any]) -> Iterator[Option]:
    """The options of a strategy that are in the table, with a value that stands against something."""
    for option in OPTIONS:
        if name in option.strategies and option.name in options:
            value, default = options[option.name], registry.strategies.options(name)[option.name].default
            if value in option.values if option.values else value != default:
                yield option


def _sentence(key: str, other: str, why: str, wanted: str) -> str:
    return f"{key} and {other}: {why}; wanted {wanted}"
