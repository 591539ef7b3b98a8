"""Loss, accuracy and the chosen metrics of the resident model, with the values now in it, over held-out rows."""

import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from fedft.config import Eval
from fedft.contract import Batch
from fedft.data.examples import Example
from fedft.errors import DataError
from fedft.models.handle import ModelHandle
from fedft.models.load import Base
from fedft.models.tasks import WRITING
from fedft.training import generation
from fedft.training.metrics import interface

log = logging.getLogger(__name__)


def evaluate(handle: ModelHandle, rows: Sequence[Any], batch_size: int, pad_id: int) -> dict[str, float]:
    """Means of the numbers that the run's objective measures on these rows, and `count`, the places they are means of.

    Args:
        handle: the model, put in evaluation mode and not changed otherwise.
        rows: encoded for the objective.
        batch_size: rows per forward pass; results do not depend on it beyond rounding.
        pad_id: the token id that fills up shorter rows.
    Returns:
        `loss` (nan where nothing is measured, or there are no rows), whatever else the objective measures there, such
        as `accuracy`, and `count`: learned tokens, or rows of a classification.
    """
    sums: dict[str, float] = {}
    weights: dict[str, float] = {}
    handle.training(False)
    with torch.no_grad():
        for at in range(0, len(rows), batch_size):
            batch = handle.objective.collate(rows[at : at + batch_size], pad_id)
            for name, (total, weight) in handle.objective.measure(handle, batch).items():
                sums[name] = sums.get(name, 0.0) + total
                weights[name] = weights.get(name, 0.0) + weight
    means = {n: x / weights[n] for n, x in sums.items() if weights[n]}
    return {"loss": math.nan, **means, "count": weights.get("loss", 0.0)}


@dataclass
class Measured:
    """`metrics.interface.MeasuredModel` on a handle. A text is generated once, however many metrics ask for it."""

    handle: ModelHandle
    tokenizer: Any
    batch_size: int = 16
    new_tokens: int = 48
    """Tokens that a generation has at most, where a metric does not say."""
    rows: Sequence[Example] = ()
    """That will be asked for: of those behind a prompt, texts are generated in one go with its own."""
    pad_id: int = 0
    """A token id that the model has; see `Base.pad_id`."""
    _said: dict[tuple[tuple[int, ...], int], str] = field(default_factory=dict)

    def batches(self, rows: Sequence[Example]) -> Iterator[Batch]:
        """The rows in order, `batch_size` at a time, padded on the right."""
        pad = 0 if (id_ := self.tokenizer.pad_token_id) is None else id_
        for at in range(0, len(rows), self.batch_size):
            yield self.handle.objective.collate(rows[at : at + self.batch_size], pad)

    def predictions(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(most likely, wanted) classes or labels of every row or token of every place; see `ModelHandle.predictions`.

        Raises DataError for a regression.
        """
        return self.handle.predictions(batch)

    def generate(self, row: Example, new_tokens: int | None = None) -> str:
        """The greedy continuation of the row's prompt, or what a decoder writes of it, without special tokens.

        `new_tokens`: at most so many; None: those of this model. Raises DataError for a model that generates no text,
        or an empty prompt where the tokenizer has no special token to begin with.
        """
        # a generation starts from something, also where a record's prompt is empty
        t = self.tokenizer
        given = row.given or [t.eos_token_id if t.bos_token_id is None else t.bos_token_id]
        if None in given:
            raise DataError("generation after an empty prompt needs a tokenizer with a first or a last token")
        if not hasattr(self.handle.model, "generate"):
            raise DataError(
                f"a metric of generated text needs a model that generates text, task {' or '.join(WRITING)}"
            )
        wanted = new_tokens or self.new_tokens
        if (tuple(given), wanted) not in self._said:
            prompts = self._with_the_next(tuple(given), wanted)
            said = generation.continued(self.handle, t, prompts, wanted, self.pad_id)
            self._said |= zip(((p, wanted) for p in prompts), said, strict=True)
        return self._said[tuple(given), wanted]

    def _with_the_next(self, given: tuple[int, ...], wanted: int) -> list[tuple[int, ...]]:
        """A prompt, and those of the rows behind it that will likely be asked for: as many as a batch has."""
        prompts = [tuple(row.given) for row in self.rows]
        behind = prompts[prompts.index(given) + 1 :] if given in prompts else []
        new = (p for p in behind if p and p != given and (p, wanted) not in self._said)
        return [given, *islice(dict.fromkeys(new), self.batch_size - 1)]

    def response(self, row: Example) -> str:
        """The text that should follow the row's prompt, without special tokens."""
        return self.tokenizer.decode(row.response, skip_special_tokens=True)


def measure(
    handle: ModelHandle, base: Base, rows: Sequence[Example], wanted: Eval, more: Iterable[str] = ()
) -> dict[str, float]:
    """Loss, accuracy, count and the chosen metrics of the first `[eval] max_rows` of `rows`, by name.

    Args:
        handle: the model, put in evaluation mode and not changed otherwise.
        base: the base model, for its tokenizer.
        rows: held-out examples.
        wanted: the run's `[eval]` table.
        more: names of metrics to measure beside those of `wanted.metrics`.
    Returns:
        name -> number. A metric that fails is left out with one line in the log, and so is a number that is not finite
        or that the metric does not declare: a measurement never ends a run.
    Raises:
        DataError: a metric cannot be measured on these rows or this model.
    """
    rows = rows[: wanted.max_rows]
    found = evaluate(handle, rows, wanted.batch_size, base.pad_id)
    model = Measured(handle, base.tokenizer, wanted.batch_size, wanted.generate_tokens, rows, base.pad_id)
    for name, metric in interface.load([*wanted.metrics, *more]).items():
        handle.training(False)
        try:
            with torch.no_grad():
                given = dict(metric.measure(model, rows))
        except DataError:
            raise
        except Exception as e:  # another package's code
            log.warning("metric %s failed and is left out: %s", name, f"{type(e).__name__}: {e}".split("\n")[0])
            continue
        declared = {c.name for c in metric.columns}
        usable = {k: float(v) for k, v in given.items() if k in declared and math.isfinite(v)}
        if len(usable) < len(given):
            log.warning("metric %s: %s left out: not declared or not finite", name, sorted(given.keys() - usable))
        found |= usable
    return found
