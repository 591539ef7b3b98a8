"""Batches that are taken a few rows at a time, so that the activations of so many are in memory at once.

The gradient of a mean over n learned places is the sum over pieces of n_i / n times the gradient of the piece's own
mean, n_i being the places in it: the same step as of the whole batch, also where rows are of unlike length.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol

from torch import Tensor


class Among(Protocol):
    """Processes that share the pieces of every batch."""

    @property
    def rank(self) -> int:
        """The number of this one, from 0."""

    @property
    def count(self) -> int:
        """How many there are."""

    def add(self, parts: list[Tensor]) -> None:
        """Sum tensors of one dtype over the processes, in place."""


class MicroBatch:
    """How many rows a pass takes at once, for all batches of a client: it is halved where memory is not enough."""

    def __init__(self, rows: int | None = None, *, may_shrink: bool = False, among: Among | None = None) -> None:
        """Let a pass take so many rows.

        Args:
            rows: at most so many, None: all of a batch.
            may_shrink: whether `halve` is allowed.
            among: the processes that share each batch; None: there is this one only.
        """
        self.rows, self._may_shrink, self.among = rows, may_shrink, among

    def of(self, batch: int) -> int:
        """How many rows a pass takes of a batch of so many: no more than leave each process a piece."""
        most = batch if self.among is None else math.ceil(batch / self.among.count)
        return min(self.rows or batch, most)

    def within(self, rows: int) -> "MicroBatch":
        """The same with at most so many rows.

        >>> MicroBatch(4).within(2).rows, MicroBatch(4).within(8).rows, MicroBatch().within(8).rows
        (2, 4, 8)
        """
        return MicroBatch(min(rows, self.rows or rows), may_shrink=self._may_shrink, among=self.among)

    def halve(self, of: int) -> bool:
        """Take half as many rows of a batch of `of` rows from now on; False where there is no less, or it may not.

        >>> size = MicroBatch(may_shrink=True)
        >>> size.halve(6), size.rows, size.halve(6), size.rows, size.halve(6)
        (True, 3, True, 1, False)
        """
        now = min(of, self.rows or of)
        if not self._may_shrink or now < 2:
            return False
        self.rows = now // 2
        return True


def possible(objective: Any) -> bool:
    """Whether batches of this objective can be taken in pieces: it says what a piece counts (`weight`)."""
    return hasattr(objective, "weight")


def wanted(rows: int | Literal["auto"] | None, among: Among | None) -> MicroBatch | None:
    """How many rows a pass takes by `[local] micro_batch`; None: all of a batch, in this process alone."""
    if rows is None and among is None:
        return None
    return MicroBatch(may_shrink=True) if rows == "auto" else MicroBatch(rows, among=among)


class InPieces(Mapping[str, Tensor]):
    """A batch that can be taken a few rows at a time; whoever looks its tensors up gets the whole batch.

    >>> import torch
    >>> batch = InPieces([[5], [6], [7]], lambda rows: {"ids": torch.tensor(rows)}, MicroBatch(2))
    >>> [piece["ids"].tolist() for piece in batch.pieces()], batch["ids"].tolist()
    ([[[5], [6]], [[7]]], [[5], [6], [7]])
    """

    def __init__(
        self, rows: Sequence[Any], collate: Callable[[Sequence[Any]], Mapping[str, Tensor]], size: MicroBatch
    ) -> None:
        self.rows, self._collate, self.size = rows, collate, size
        self._whole: Mapping[str, Tensor] | None = None

    def pieces(self) -> list[Mapping[str, Tensor]]:
        """The rows in order, as batches of `size.of(all)` rows, each padded by itself."""
        step = self.size.of(len(self.rows))
        if step >= len(self.rows):
            return [self._tensors()]
        return [self._collate(self.rows[at : at + step]) for at in range(0, len(self.rows), step)]

    def _tensors(self) -> Mapping[str, Tensor]:
        if self._whole is None:
            self._whole = self._collate(self.rows)
        return self._whole

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors())

    def __len__(self) -> int:
        return len(self._tensors())


def shares(
    batch: InPieces, weight: Callable[[Mapping[str, Tensor]], float]
) -> list[tuple[Mapping[str, Tensor], float]]:
    """The pieces of a batch, each with its share of the batch's mean; those that count nothing are left out.

    Where nothing is learned in any of them it is the whole batch, whose loss says so.

    Args:
        batch: in as many pieces as its size says.
        weight: gives how many terms the mean loss of a piece is of.
    """
    pieces = batch.pieces()
    if len(pieces) == 1:
        return [(pieces[0], 1.0)]
    weights = [weight(b) for b in pieces]
    whole = sum(weights)
    return [(b, w / whole) for b, w in zip(pieces, weights, strict=True) if w] or [(dict(batch), 1.0)]
