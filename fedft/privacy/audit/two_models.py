"""The model that a run gives out and the base that it began from, on one handle: what an audit compares."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedft.models.handle import ModelHandle
from fedft.models.load import Base


@dataclass(frozen=True)
class TwoModels:
    """Both models, one of them at a time: the tuned one outside of `as_base`."""

    handle: ModelHandle
    base: Base
    stand: Callable[[], None]
    """Puts the handle at the state that is audited, where it stands already when this is made."""
    batch_size: int = 16
    """Rows per forward pass."""

    @contextmanager
    def as_base(self) -> Iterator[None]:
        """Inside, forward passes are those of the base."""
        if not self.handle.kind.of_base:
            with self.handle.without_adapter():
                yield
            return
        self.handle.reset()
        try:
            yield
        finally:
            self.stand()

    def losses(self, rows: Sequence[Any]) -> list[float]:
        """The run's own loss of each encoded row, of tokens their mean, under the model that stands at the moment."""
        found: list[float] = []
        self.handle.training(False)
        # rows of like length share a batch: little padding, and no row's loss depends on whose its neighbours are
        order = sorted(range(len(rows)), key=lambda n: len(getattr(rows[n], "input_ids", ())))
        with torch.no_grad():
            for at in range(0, len(order), self.batch_size):
                found += self._of_batch([rows[n] for n in order[at : at + self.batch_size]])
        placed = dict(zip(order, found, strict=True))
        return [placed[n] for n in range(len(rows))]

    def _of_batch(self, rows: Sequence[Any]) -> list[float]:
        objective = self.handle.objective
        if hasattr(objective, "losses"):
            return [float(x) for x in self.handle.losses(objective.collate(rows, self.base.pad_id)).cpu()]
        each = (objective.measure(self.handle, objective.collate([row], self.base.pad_id))["loss"] for row in rows)
        return [total / weight if weight else math.nan for total, weight in each]

    def next_logits(self, ids: Tensor) -> Tensor:
        """Logits float32 [n, vocabulary] on the CPU of what follows each of n texts, int64 [n, length]."""
        with torch.no_grad():
            logits = self.handle.forward({"input_ids": ids, "attention_mask": torch.ones_like(ids)}).logits
        return logits[:, -1].float().cpu()
