"""What a shell proposes: names of strategies, keys of run files. `fedft --install-completion` turns it on.

A shell waits for each answer, so none of them loads more than the tables and the names of strategies.
"""

from collections.abc import Iterable


def set_key(incomplete: str) -> list[str]:
    """`table.key=` of a run file; behind `strategy.name=` the strategies."""
    if incomplete.startswith("strategy.name="):
        return _from((f"strategy.name={name}" for name in _strategies()), incomplete)
    return _from((f"{key}=" for key in ("strategy.name", *_keys())), incomplete)


def explained(incomplete: str) -> list[str]:
    """A table, a key of one, or `strategy.` and a strategy; keys only once their table is begun."""
    words = [*_keys(), *(f"strategy.{name}" for name in _strategies())]
    if "." not in incomplete:
        words = list(dict.fromkeys(word.partition(".")[0] for word in words))
    return _from(words, incomplete)


def contenders(incomplete: str) -> list[str]:
    """Strategies, and the baselines of a race, behind the last comma; none that is there already."""
    before, comma, last = incomplete.rpartition(",")
    names = (name for name in (*_strategies(), "local", "central") if name not in before.split(","))
    return [f"{before}{comma}{name}" for name in _from(names, last)]


def strategy(incomplete: str) -> list[str]:
    """Installed strategies."""
    return _from(_strategies(), incomplete)


def _from(words: Iterable[str], incomplete: str) -> list[str]:
    return [word for word in words if word.startswith(incomplete)]


def _strategies() -> Iterable[str]:
    from fedft import registry

    return registry.strategies.names()


def _keys() -> Iterable[str]:
    """`table.key` of every key of a run file, in order; the options of strategies are not among them."""
    from dataclasses import fields
    from typing import get_type_hints

    from fedft.config import RunConfig

    tables = get_type_hints(RunConfig).items()
    return [f"{table}.{f.name}" for table, kind in tables if table != "strategy" for f in fields(kind)]
