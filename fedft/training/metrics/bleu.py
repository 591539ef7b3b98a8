"""BLEU of a corpus: n-grams of all greedy generations that the responses have too, n from 1 to 4, 0 to 100.

The corpus is the held-out rows of one client: what a run reports is the mean of its clients' BLEU. Computed by
sacrebleu with its defaults: tokens of 13a, case as it is, one reference, smoothing "exp".

Papineni et al., "BLEU: a Method for Automatic Evaluation of Machine Translation", ACL 2002; Post, "A Call for Clarity
in Reporting BLEU Scores", WMT 2018.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedft.data.examples import Example
from fedft.models.tasks import WRITING
from fedft.reports.columns import Column
from fedft.training.metrics.interface import MeasuredModel


@dataclass(frozen=True)
class Bleu:
    """Corpus BLEU, 0 to 100, of greedy generations against the responses, by sacrebleu."""

    columns: tuple[Column, ...] = (Column("bleu", "BLEU", better="higher", form=".2f"),)
    tasks: tuple[str, ...] = WRITING
    needs: tuple[str, str] = ("sacrebleu", "metrics")

    def measure(self, model: MeasuredModel, rows: Sequence[Example]) -> Mapping[str, float]:
        """{"bleu": of all `rows` as one corpus, 0 to 100}, {} of no rows. Raises DataError as `generate` does."""
        from sacrebleu.metrics import BLEU

        if not rows:
            return {}
        said, wanted = [model.generate(row) for row in rows], [model.response(row) for row in rows]
        return {"bleu": float(BLEU().corpus_score(said, [wanted]).score)}


bleu = Bleu()
