"""Strategies by name: built in, from other packages (entry points), or `"package.module:factory"` from local config.

A name comes from the operator's own file or command line, never from a message.
"""

import inspect
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from fedft import check
from fedft.errors import ConfigError
from fedft.recipe import Recipe

GROUP = "fedft.strategies"
BUILT_IN = ("fedit", "fedkseed", "ffa_lora", "flora")


def installed() -> dict[str, str]:
    """Every strategy that can be named: name -> where it comes from."""
    found = {name: f"fedft.strategies.{name}:{name}" for name in BUILT_IN}
    for point in entry_points(group=GROUP):
        found.setdefault(point.name, point.value)
    return dict(sorted(found.items()))


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
    except (ImportError, AttributeError, ValueError) as e:
        raise ConfigError(f"strategy {name!r}: cannot load {where}: {e}") from e


def make(name: str, options: Mapping[str, Any]) -> Recipe:
    """The recipe of a strategy with the options of a `[strategy]` table; errors name the option."""
    factory = load(name)
    known = inspect.signature(factory).parameters
    for option in options:
        if option not in known:
            raise ConfigError(
                f"[strategy] {name} has no option {option!r}; it has {', '.join(known) or 'none'}"
                f"{check.nearest(option, known)}"
            )
    try:
        recipe = factory(**options)
    except (TypeError, ValueError) as e:
        raise ConfigError(f"[strategy] {name}: {e}") from e
    if not isinstance(recipe, Recipe):
        raise ConfigError(f"[strategy] {name}: the factory returned {type(recipe).__name__}, wanted a fedft.Recipe")
    return recipe
