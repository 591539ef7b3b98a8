"""Strategies by name: built in, from other packages (entry points), or `"package.module:factory"` from local config.

A name comes from the operator's own file or command line, never from a message.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib import import_module
from typing import Any

from fedft import check
from fedft.compression import codec, delta_downloads
from fedft.compression.error_feedback import Feedback
from fedft.config import RunConfig
from fedft.errors import ConfigError
from fedft.recipe import Recipe
from fedft.registry import installed


def load(name: str) -> Callable[..., Recipe]:
    """The factory of a strategy; its keyword arguments are the strategy's options.

    Raises ConfigError: no such strategy (the nearest one is suggested), or it cannot be imported.
    """
    known = installed()
    where = known.get(name, name)
    module, colon, attribute = where.partition(":")
    if not colon:
        raise ConfigError(f"no strategy {name!r}; there are {', '.join(known)}{check.nearest(name, known)}")
    try:
        return getattr(import_module(module), attribute)
    except Exception as e:  # a plug-in's module runs when it is imported, and may raise what it likes
        raise ConfigError(f"strategy {name!r}: cannot load {where}: {_reason(e)}") from e


def make(name: str, options: Mapping[str, Any]) -> Recipe:
    """The recipe of a strategy with the options of a `[strategy]` table; errors name the option."""
    factory = load(name)
    if not callable(factory):
        raise ConfigError(f"[strategy] {name} is a {type(factory).__name__}, wanted a factory that returns a Recipe")
    known = _options(factory, name)
    given: dict[str, Any] = {}
    for option, value in options.items():
        if option not in known:
            raise ConfigError(
                f"[strategy] {name} has no option {option!r}; it has {', '.join(known) or 'none'}"
                f"{check.nearest(option, known)}"
            )
        try:
            given[option] = check.typed(known[option], value, option)
        except ValueError as e:
            raise ConfigError(f"[strategy] {name}: {e}") from e
    try:
        recipe = factory(**given)
    except Exception as e:  # the factory may be another package's
        raise ConfigError(f"[strategy] {name}: {_reason(e)}") from e
    if not isinstance(recipe, Recipe):
        raise ConfigError(f"[strategy] {name}: the factory returned {type(recipe).__name__}, wanted a fedft.Recipe")
    return recipe


def of(config: RunConfig) -> Recipe:
    """The recipe of a run file. Raises ConfigError, with the reason, where the run file makes no sense with it."""
    recipe = make(config.strategy.name, config.strategy.options)
    name, ranks = recipe.name, sorted(set(config.ranks()))
    if len(ranks) > 1 and recipe.space.kind == "lora" and not recipe.unlike_ranks:
        raise ConfigError(f"[clients] rank: {name} needs one rank for all clients, got {ranks}")
    if config.codec.changes and (why := delta_downloads.unfit(recipe)):
        raise ConfigError(f"[codec] down = {config.codec.down!r}: {why}; wanted 'fp32'")
    if recipe.adds_downloads and config.codec.down != "fp32":
        raise ConfigError(
            f"[codec] down: clients of {name} add up what they receive; wanted 'fp32', got {config.codec.down!r}"
        )
    try:
        recipe.check(config)
    except ValueError as e:
        raise ConfigError(f"{name}: {e}") from e
    recipe = _coded(recipe, config)
    return delta_downloads.wrapped(recipe, config.codec.changes) if config.codec.changes else recipe


def _coded(recipe: Recipe, config: RunConfig) -> Recipe:
    """The recipe with error feedback where the run file's codec wants it; ConfigError where the two do not fit."""
    up, wanted, name = codec.parse(config.codec.up), config.codec.error_feedback, recipe.name
    said = f"[codec] up = {config.codec.up!r}"
    # of random starting values the largest are all of A: what was learned, in B, would be left out
    if recipe.sends == "values" and not (up.plain or (up.linear and up.idempotent and not up.ring_summable)):
        raise ConfigError(f"{said}: {name} sends whole factors, not changes; wanted fp32, fp16, bf16 or int8")
    changes = recipe.sends == "changes"
    if not changes and (up.coarse or up.drawn):
        raise ConfigError(f"{said}: {name} sends a few numbers that all count; wanted 8 bits or more of each of them")
    if wanted and (not changes or up.exact or up.drawn):
        raise ConfigError(
            f"[codec] error_feedback: with {name} and {config.codec.up!r} nothing is left out that could be"
        )
    if wanted or (wanted is None and up.coarse and changes):
        return replace(recipe, local=Feedback(recipe.local, config.codec.up), keeps=True)
    return recipe


def _options(factory: Callable[..., Recipe], name: str) -> dict[str, Any]:
    """Option -> its type, of a factory's parameters; Any where none is said."""
    try:
        parameters = inspect.signature(factory, eval_str=True).parameters
    except NameError:  # types that are imported for type checkers only
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError) as e:
        raise ConfigError(f"[strategy] {name}: the factory does not say its options: {_reason(e)}") from e
    hints = {n: p.annotation for n, p in parameters.items()}
    return {n: Any if h is inspect.Parameter.empty or isinstance(h, str) else h for n, h in hints.items()}


def _reason(e: Exception) -> str:
    """An exception in one line."""
    said = " ".join(str(e).split())
    return said if said and isinstance(e, TypeError | ValueError | ImportError) else f"{type(e).__name__}: {said}"
