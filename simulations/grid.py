"""The settings that a race tries for every contender: all combinations of the values of some keys.

grid.parsed(["local.learning_rate=1e-3,3e-3", "local.steps=5,10"])      two keys, two values each: four settings
"""

import re
from collections.abc import Mapping, Sequence
from itertools import product

from fedft.errors import ConfigError
from fedft.simulations.contenders import Contender

Grid = Mapping[str, Sequence[str]]
"""Values, as text, by `table.key`."""
Setting = tuple[str, ...]
"""One combination, as overrides."""
FIXED = ("server.seed", "server.rounds", "server.budget", "strategy.name")
"""Keys that all settings have in common; and so are the tables `[data]` and `[eval]`, what is measured and how."""
VALUE = re.compile(r"(?:\[[^\]]*\]|\{[^}]*\}|\"[^\"]*\"|'[^']*'|[^,])+")


def parsed(texts: Sequence[str]) -> Grid:
    """The grid of texts `table.key=value,value`. Raises ConfigError for one that is none.

    >>> parsed(["local.learning_rate=1e-3,3e-3", "clients.rank=[2, 4],8"])
    {'local.learning_rate': ['1e-3', '3e-3'], 'clients.rank': ['[2, 4]', '8']}
    """
    found: dict[str, list[str]] = {}
    for text in texts:
        key, _, rest = text.partition("=")
        key = key.strip()
        values = [value.strip() for value in VALUE.findall(rest)]
        if "." not in key or not all(values) or not values:
            raise ConfigError(f"--grid {text!r}: wanted table.key=value,value, as in local.learning_rate=1e-3,3e-3")
        if key in FIXED or key.split(".")[0] in ("data", "eval"):
            raise ConfigError(f"--grid {text!r}: {key} is one for all, or nothing could be compared; see --set")
        if key in found or len({*values}) < len(values):
            raise ConfigError(f"--grid {text!r}: {key if key in found else 'a value'} is there twice")
        found[key] = values
    return found


def settings(grid: Grid, c: Contender) -> list[Setting]:
    """The overrides of every setting that is tried for a contender: of keys that it does not itself say.

    One setting, perhaps without any override, where there is nothing to try.
    """
    own = {override.partition("=")[0].strip() for override in c.overrides}
    varied = {key: values for key, values in grid.items() if key not in own}
    return [tuple(f"{k}={v}" for k, v in zip(varied, of, strict=True)) for of in product(*varied.values())]


def at_an_end(grid: Grid, setting: Setting) -> list[str]:
    """The keys whose value in a setting is the least or the largest that was tried: one beyond might be better.

    Keys whose values are no numbers have no ends.

    >>> at_an_end({"a.b": ["1", "2", "3"], "a.c": ["1e-3", "1e-2"], "a.d": ["x", "y"]}, ("a.b=2", "a.c=1e-2", "a.d=x"))
    ['a.c']
    """
    found = []
    for key, _, value in (override.partition("=") for override in setting):
        try:
            numbers = [float(one) for one in grid[key]]
        except ValueError:
            continue
        if len(numbers) > 1 and float(value) in (min(numbers), max(numbers)):
            found.append(key)
    return found
