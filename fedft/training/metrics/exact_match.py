"""Exact match: the share of rows whose greedy generation is the response, but for white space at either end.

A response longer than `[eval] generate_tokens` is never matched. For short answers: numbers, names, labels in words.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedft.data.examples import Example
from fedft.models.tasks import WRITING
from fedft.reports.columns import Column
from fedft.training.metrics.interface import MeasuredModel


@dataclass(frozen=True)
class ExactMatch:
    """Share of rows, 0 to 1, whose greedy generation equals the response."""

    columns: tuple[Column, ...] = (Column("exact_match", "exact match", better="higher"),)
    tasks: tuple[str, ...] = WRITING

    def measure(self, model: MeasuredModel, rows: Sequence[Example]) -> Mapping[str, float]:
        """{"exact_match": share of `rows`, 0 to 1}, {} of no rows. Raises DataError as `generate` does."""
        hits = [model.generate(row).strip() == model.response(row).strip() for row in rows]
        return {"exact_match": sum(hits) / len(hits)} if hits else {}


exact_match = ExactMatch()
