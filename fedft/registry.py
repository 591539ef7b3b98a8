"""What can be named in a run file: built in, or declared by installed packages as entry points."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from fedft import check
from fedft.errors import ConfigError

GROUP = "fedft.strategies"

BUILT_IN = (
    "fedavg",
    "fedex_lora",
    "fedit",
    "fedkseed",
    "fedopt",
    "fedprox",
    "fedsa_lora",
    "ferret",
    "ffa_lora",
    "flasc",
    "flexlora",
    "flora",
    "hetlora",
    "lora_fair",
    "mezo",
    "rolora",
    "scaffold",
    "zo_fedavg",
)


def installed() -> dict[str, str]:
    """Every strategy that can be named: name -> where it comes from."""
    found = {name: f"fedft.strategies.{name}:{name}" for name in BUILT_IN}
    for point in entry_points(group=GROUP):
        found.setdefault(point.name, point.value)
    return dict(sorted(found.items()))


@dataclass(frozen=True)
class Registry:
    """Values of one kind that a run file names: built in, or declared by installed packages as entry points."""

    kind: str
    """What one of them is called in a message, such as "metric"."""
    group: str
    """Entry point group of other packages, such as "fedft.metrics"."""
    built_in: Mapping[str, str]
    """Name -> "module:attribute"."""

    def names(self) -> dict[str, str]:
        """Every name that can be chosen -> where it comes from; what is built in is never replaced."""
        found = {point.name: point.value for point in entry_points(group=self.group)}
        return dict(sorted((found | dict(self.built_in)).items()))

    def load(self, name: str) -> Any:
        """The value called `name`, or at "package.module:attribute"; only for names of the operator's own files.

        Raises ConfigError: no such name (the nearest one is suggested), or it cannot be imported.
        """
        known = self.names()
        where = known.get(name, name)
        module, colon, attribute = where.partition(":")
        if not colon:
            raise ConfigError(
                f"no {self.kind} {name!r}; there are {', '.join(known) or 'none'}{check.nearest(name, known)}"
            )
        try:
            return getattr(import_module(module), attribute)
        except Exception as e:  # a plug-in's module runs when it is imported, and may raise what it likes
            said = " ".join(f"{type(e).__name__}: {e}".split())[:300]
            raise ConfigError(f"{self.kind} {name!r}: cannot load {where}: {said}") from e
