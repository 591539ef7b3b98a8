"""example: the share of rows whose first learned token is predicted.

Say here what is measured, and which way is better.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from fedft.data.examples import IGNORED
from fedft.reports.columns import Column
from fedft.training.metrics.interface import MeasuredModel


class Example:
    """How often the model begins as it should."""

    columns = (Column("example", "example", better="higher", form=".3f"),)

    def measure(self, model: MeasuredModel, rows: Sequence[Any]) -> Mapping[str, float]:
        """`example`, over the rows."""
        right, count = 0, 0
        for batch in model.batches(rows):
            guesses, wanted = model.predictions(batch)
            for said, true in zip(guesses, wanted, strict=True):
                learned = (true != IGNORED).nonzero()
                right += int(len(learned) > 0 and bool(said[learned[0]] == true[learned[0]]))
                count += 1
        return {"example": right / count} if count else {}


example = Example()
