"""A plain function as a metric: `(predictions, references) -> float`, named as "package.module:function".

    def same_length(predictions, references):
        return sum(len(p) == len(r) for p, r in zip(predictions, references)) / len(references)

    same_length.better = "higher"          which way it is better, for `[eval] best`; left out: neither

It is called with two lists, an entry for each held-out row of one client: greedy generations and responses; of a
classification the numbers of classes, or of several labels a list of 0 and 1 each.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedft.errors import ConfigError
from fedft.reports.columns import Column

if TYPE_CHECKING:
    from fedft.data.examples import Example
    from fedft.training.metrics.interface import MeasuredModel


@dataclass(frozen=True)
class Compared:
    """What a function makes of predictions and references, under the function's name."""

    function: Callable[[list[Any], list[Any]], float]
    columns: tuple[Column, ...]

    def measure(self, model: "MeasuredModel", rows: "Sequence[Example]") -> Mapping[str, float]:
        """{name: the number} of all `rows`, {} of no rows. Raises whatever the function raises."""
        if not rows:
            return {}
        if isinstance(getattr(rows[0], "labels", []), list):  # a pair of answers has none
            said, wanted = [model.generate(row) for row in rows], [model.response(row) for row in rows]
            return {self.columns[0].name: float(self.function(said, wanted))}
        pairs = [model.predictions(batch) for batch in model.batches(rows)]
        said, wanted = ([value for batch in of for value in batch.int().tolist()] for of in zip(*pairs, strict=True))
        return {self.columns[0].name: float(self.function(said, wanted))}


def of(name: str, function: Callable[..., Any]) -> Compared:
    """The metric of a function, which a run file calls `name`. Raises ConfigError where it does not take two lists."""
    try:
        inspect.signature(function).bind([], [])
    except (TypeError, ValueError) as e:
        raise ConfigError(
            f"metric {name!r}: wanted a function of two arguments, predictions and references: {e}"
        ) from e
    called = name.rpartition(":")[2].lower()
    try:
        return Compared(function, (Column(called, called[:40], better=getattr(function, "better", "")),))
    except ValueError as e:
        raise ConfigError(f"metric {name!r}: {e}") from e
