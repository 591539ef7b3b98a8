"""The weighted mean of low-rank matrices as stacked factors, each written into its place as it comes (FLoRA, eq. 3).

    B = [p_1 B_1 ... p_n B_n], A = [A_1; ...; A_n],   p_k = n_k / sum_j n_j          B A = sum_k p_k B_k A_k, exactly

The shares p_k are known behind the last matrix only; then B is scaled where it lies. So a sum takes the memory of the
stack and of what is being added, however many there are.
"""

from collections.abc import Iterable, Sequence

import torch

from fedft.arithmetic.lowrank import LowRank


class Stack:
    """A stack that grows by one matrix at a time; all have one shape [o, i] and the dtype of the first."""

    def __init__(self, expected: int = 0) -> None:
        """`expected`: how many matrices will come, so that room is made once; 0 where nobody knows."""
        self._expected = expected
        self._filled = 0
        self._A, self._B = torch.empty(0), torch.empty(0)
        self._parts: list[tuple[int, float]] = []

    def add(self, d: LowRank, weight: float) -> None:
        """Take in a copy of the factors of `d`, whose share is in proportion to `weight`.

        Raises ValueError where it has another shape than those before.
        """
        if not self._parts:
            self._A, self._B = d.A.new_empty(0, d.shape[1]), d.B.new_empty(d.shape[0], 0)
        if d.shape != (shape := (self._B.shape[0], self._A.shape[1])):
            raise ValueError(f"expected matrices of one shape, got {d.shape} behind {shape}")
        end = self._filled + d.rank
        if end > len(self._A):
            to_come = max(self._expected - len(self._parts), 1 if self._expected else len(self._parts), 1)
            self._resize(self._filled + to_come * d.rank)
        self._A[self._filled : end], self._B[:, self._filled : end] = d.A, d.B
        self._parts.append((d.rank, weight))
        self._filled = end

    def mean(self) -> LowRank:
        """The weighted mean of what was added; the stack is used up.

        A share is multiplied into its B once, in float64, and rounded to B's dtype. Raises ValueError where there was
        nothing, or the weights do not sum to more than zero.
        """
        total = sum(weight for _, weight in self._parts)
        if not total > 0:
            raise ValueError("expected at least one pair of positive weight, got none")
        if self._filled < len(self._A):
            self._resize(self._filled)
        at = 0
        for rank, weight in self._parts:
            columns = self._B[:, at : at + rank]
            columns.copy_(columns.double() * (weight / total))
            at += rank
        return LowRank(self._A, self._B)

    def _resize(self, rows: int) -> None:
        """Move what is there to memory for so many rows of A and columns of B."""
        held = self._filled
        a, b = self._A.new_empty(rows, self._A.shape[1]), self._B.new_empty(self._B.shape[0], rows)
        a[:held], b[:, :held] = self._A[:held], self._B[:, :held]
        self._A, self._B = a, b


def stack(items: Iterable[tuple[LowRank, float]]) -> LowRank:
    """The weighted mean of matrices, sum_k n_k D_k / sum_k n_k, exactly, as stacked factors; see `Stack`.

    Args:
        items: pairs (D_k, n_k) of one shape [o, i], read once; the weights need not sum to one.
    Raises:
        ValueError: there is no item, or the weights do not sum to more than zero.

    >>> one = LowRank(A=torch.ones(1, 2), B=torch.ones(2, 1))
    >>> mean = stack([(one, 3), (-one, 1)])
    >>> mean.rank, mean.dense().tolist()
    (2, [[0.5, 0.5], [0.5, 0.5]])
    """
    found = Stack(len(items) if isinstance(items, Sequence) else 0)
    for d, weight in items:
        found.add(d, weight)
    return found.mean()
