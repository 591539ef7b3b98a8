"""Token F1, as SQuAD scores answers: the words that a greedy generation and the response have in common.

    P = common / words generated,   R = common / words of the response,   F = 2 P R / (P + R)    0 to 1; mean over rows

Words are compared in lower case, without punctuation and the articles a, an and the; each as often as both texts have
it. Of a text without words F is 1 where the other has none either, else 0.

Rajpurkar et al., "SQuAD: 100,000+ Questions for Machine Comprehension of Text", EMNLP 2016; the rules of its
evaluate-v2.0.py.
"""

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedft.data.examples import Example
from fedft.models.tasks import WRITING
from fedft.reports.columns import Column
from fedft.training.metrics.interface import MeasuredModel

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)


def words(text: str) -> list[str]:
    """The words that count.

    >>> words("The  cat's on a mat.")
    ['cats', 'on', 'mat']
    """
    return ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split()


def f1(said: str, wanted: str) -> float:
    """F of one text against another, 0 to 1.

    >>> f1("the red cat", "A red dog!")
    0.5
    """
    ours, theirs = words(said), words(wanted)
    if not ours or not theirs:
        return float(ours == theirs)
    common = (Counter(ours) & Counter(theirs)).total()
    return 2 * common / (len(ours) + len(theirs))


@dataclass(frozen=True)
class TokenF1:
    """Mean over rows, 0 to 1, of the F1 of words of the greedy generation and the response (SQuAD's)."""

    columns: tuple[Column, ...] = (Column("token_f1", "token F1", better="higher"),)
    tasks: tuple[str, ...] = WRITING

    def measure(self, model: MeasuredModel, rows: Sequence[Example]) -> Mapping[str, float]:
        """{"token_f1": mean over `rows`, 0 to 1}, {} of no rows. Raises DataError as `generate` does."""
        scores = [f1(model.generate(row), model.response(row)) for row in rows]
        return {"token_f1": sum(scores) / len(scores)} if scores else {}


token_f1 = TokenF1()
