"""Macro F1: the plain mean of the F1 of every class or label, so that a rare one counts as much as a frequent one.

F1_k = 2 hits_k / (k there + k guessed)          over the k that occur in the rows, there or guessed
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedft.data.examples import Example
from fedft.data.labels import MULTI, SINGLE
from fedft.reports.columns import Column
from fedft.training.metrics.interface import MeasuredModel


@dataclass(frozen=True)
class MacroF1:
    """Mean over the classes or labels that occur of each one's F1, between 0 and 1."""

    columns: tuple[Column, ...] = (Column("macro_f1", "macro F1", better="higher"),)
    tasks: tuple[str, ...] = ("sequence-classification",)
    problem_types: tuple[str, ...] = (SINGLE, MULTI)

    def measure(self, model: MeasuredModel, rows: Sequence[Example]) -> Mapping[str, float]:
        """{"macro_f1": 0 to 1}, {} where no class or label occurs. Raises DataError for a regression."""
        import torch

        pairs = [model.predictions(batch) for batch in model.batches(rows)]
        if not pairs:
            return {}
        guess, wanted = (torch.cat(of) for of in zip(*pairs, strict=True))
        if wanted.ndim == 1:
            kinds = torch.cat([guess, wanted]).unique()
            guess, wanted = guess[:, None] == kinds, wanted[:, None] == kinds
        hits, seen = (guess & wanted).sum(0), guess.sum(0) + wanted.sum(0)
        found = (2 * hits.double() / seen)[seen > 0]
        return {"macro_f1": float(found.mean())} if len(found) else {}


macro_f1 = MacroF1()
