"""Examples to batches of tensors, and the order in which a client's rows are drawn.

    for batch in batches(examples, batch_size=8, steps=40, seed=7, pad_id=0): ...

The order depends on the seed alone: no global random state is read or set.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from fedft import check
from fedft.data.examples import IGNORED, Example
from fedft.data.micro_batches import InPieces, MicroBatch
from fedft.errors import DataError


def collate(examples: Sequence[Example], pad_id: int) -> dict[str, Tensor]:
    """One batch of examples, padded on the right to the longest of them; of two sides, each to its own longest.

    `pad_id` is the token id to fill up with; it is masked, so its value does not matter.

    Returns:
        input_ids, attention_mask: int64 [B, T]; labels: int64 [B, T], IGNORED on padding, of an encoder-decoder with a
        length of their own; of a classification int64 [B] for classes, bool [B, L] for several labels, float32 [B, L]
        for numbers.

    >>> batch = collate([Example([5, 6, 7], [IGNORED, 6, 7], 1), Example([8], [8], 0)], pad_id=0)
    >>> batch["input_ids"].tolist(), batch["attention_mask"].tolist(), batch["labels"].tolist()
    ([[5, 6, 7], [8, 0, 0]], [[1, 1, 1], [1, 0, 0]], [[-100, 6, 7], [8, -100, -100]])
    """

    def padded(lists: Sequence[list[int]], value: int) -> Tensor:
        longest = max(map(len, lists))
        return torch.tensor([ids + [value] * (longest - len(ids)) for ids in lists])

    sequences = [e.labels for e in examples if isinstance(e.labels, list)]
    return {
        "input_ids": padded([e.input_ids for e in examples], pad_id),
        "attention_mask": padded([[1] * len(e.input_ids) for e in examples], 0),
        "labels": padded(sequences, IGNORED) if sequences else torch.tensor([e.labels for e in examples]),
    }


def drawn(rows: Sequence[Any], *, batch_size: int, steps: int, seed: int) -> Iterator[list[Any]]:
    """Exactly `steps` lists of rows, drawn without replacement, one shuffle after the other.

    A list that the end of an epoch leaves short is filled up from the next shuffle, so no row waits longer than two
    epochs and none is dropped. With fewer rows than `batch_size`, every list has all of them. The same seed gives the
    same lists. Raises DataError if there are no rows.

    >>> [sorted(rows) for rows in drawn("abc", batch_size=5, steps=2, seed=7)]
    [['a', 'b', 'c'], ['a', 'b', 'c']]
    """
    if not rows:
        raise DataError("there is no example to train on")
    check.at_least(1, batch_size=batch_size)
    order, size = _shuffles(len(rows), seed), min(batch_size, len(rows))
    for _ in range(steps):
        yield [rows[i] for i in islice(order, size)]


def batches(
    examples: Sequence[Example], *, batch_size: int, steps: int, seed: int, pad_id: int
) -> Iterator[dict[str, Tensor]]:
    """Exactly `steps` batches of examples; rows as in `drawn`, tensors as in `collate`."""
    for rows in drawn(examples, batch_size=batch_size, steps=steps, seed=seed):
        yield collate(rows, pad_id)


@dataclass(frozen=True)
class ClientRows:
    """A client's own training rows, and how batches are made of them: `fedft.contract.Data`."""

    rows: Sequence[Any]
    """Encoded as the run's objective trains on them."""
    batch_size: int
    """Rows per batch."""
    collate: Callable[[Sequence[Any]], Mapping[str, Tensor]]
    """Rows -> a batch of tensors."""
    begun: Callable[[int], None] = lambda step: None
    """Is called with the number of every batch, from 1, when the batch is asked for."""
    micro_batch: MicroBatch | None = None
    """Batches can be taken in pieces of so many rows; None: they are whole."""

    def batch(self, rows: Sequence[Any]) -> Mapping[str, Tensor]:
        """These rows as one batch."""
        return self.collate(rows)

    def of_step(self, rows: Sequence[Any], step: int) -> Mapping[str, Tensor]:
        """These rows, of which there is one at least, as the batch of a step, from 1; in pieces with `micro_batch`."""
        self.begun(step)
        return self.batch(rows) if self.micro_batch is None else InPieces(rows, self.collate, self.micro_batch)

    def batches(self, turn: Any) -> Iterator[Mapping[str, Tensor]]:
        """`turn.plan.steps` batches, whose rows are drawn by `turn.seed`; see `drawn`."""
        lists = drawn(self.rows, batch_size=self.batch_size, steps=turn.plan.steps, seed=turn.seed)
        for step, rows in enumerate(lists, 1):
            yield self.of_step(rows, step)


def _shuffles(n: int, seed: int) -> Iterator[int]:
    """The numbers 0 to n - 1, shuffled, again and again without end."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from torch.randperm(n, generator=generator).tolist()
