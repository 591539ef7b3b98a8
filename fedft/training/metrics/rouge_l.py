"""ROUGE-L: the longest common subsequence of words of a greedy generation and the response, as an F-measure.

    P = LCS / words generated,   R = LCS / words of the response,   F = 2 P R / (P + R)       0 to 1; mean over rows

Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", ACL workshop 2004; computed by the package rouge-score.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedft.data.examples import Example
from fedft.models.tasks import WRITING
from fedft.reports.columns import Column
from fedft.training.metrics.interface import MeasuredModel


@dataclass(frozen=True)
class RougeL:
    """Mean ROUGE-L F-measure of greedy generations against the responses, between 0 and 1."""

    columns: tuple[Column, ...] = (Column("rouge_l", "ROUGE-L", better="higher"),)
    tasks: tuple[str, ...] = WRITING

    def measure(self, model: MeasuredModel, rows: Sequence[Example]) -> Mapping[str, float]:
        """{"rouge_l": mean over `rows`, 0 to 1}, {} of no rows. Raises DataError as `generate` does."""
        from rouge_score.rouge_scorer import RougeScorer

        scorer = RougeScorer(["rougeL"])
        scores = [scorer.score(model.response(row), model.generate(row))["rougeL"].fmeasure for row in rows]
        return {"rouge_l": sum(scores) / len(scores)} if scores else {}


rouge_l = RougeL()
