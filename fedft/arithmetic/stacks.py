"""The weighted mean of low-rank matrices as stacked factors, each written into its place as it comes (FLoRA, eq. 3).

    B = [p_1 B_1 ... p_n B_n], A = [A_1; ...; A_n],   p_k = n_k / sum_j n_j          B A = sum_k p_k B_k A_k, exactly

The shares p_k are known behind the last matrix only; then B is scaled where it lies. So a sum takes the memory of the
stack and of what is being added, however many there are. What the product of mean factors lacks of it (FedEx-LoRA) is
read off the same stack.
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
        shares = self._shares()
        if self._filled < len(self._A):
            self._resize(self._filled)
        at = 0
        for (rank, _), p in zip(self._parts, shares, strict=True):
            columns = self._B[:, at : at + rank]
            columns.copy_(columns.double() * p)
            at += rank
        return LowRank(self._A, self._B)

    def residual(self) -> LowRank:
        """The weighted mean less the product of the mean factors A = sum_k p_k A_k and B = sum_k p_k B_k.

        sum_k p_k B_k A_k - B A = sum_{k>1} p_k (B_k - B)(A_k - A_1), since the p_k (B_k - B) sum to zero: (n - 1) r
        ranks for n matrices of rank r.

        Returns:
            In float32, computed in float64 and rounded once per factor; a single matrix gives rank 0.
        Raises:
            ValueError: ranks differ, there was nothing, or the weights do not sum to more than zero.
        """
        ranks = {rank for rank, _ in self._parts}
        if len(ranks) > 1:
            raise ValueError(f"expected one rank for all pairs, got {sorted(ranks)}")
        shares = self._shares()
        (r,) = ranks
        blocks = [slice(k * r, (k + 1) * r) for k in range(len(shares))]
        b = sum(p * self._B[:, at].double() for p, at in zip(shares, blocks, strict=True))
        first = self._A[blocks[0]].double()
        rows = torch.empty(self._filled - r, self._A.shape[1])
        columns = torch.empty(self._B.shape[0], self._filled - r)
        for to, at, p in zip(blocks, blocks[1:], shares[1:], strict=False):
            rows[to] = self._A[at].double() - first
            columns[:, to] = p * (self._B[:, at].double() - b)
        return LowRank(rows, columns)

    def _shares(self) -> list[float]:
        """p_k of every matrix. Raises ValueError where they are not known."""
        total = sum(weight for _, weight in self._parts)
        if not total > 0:
            raise ValueError("expected at least one pair of positive weight, got none")
        return [weight / total for _, weight in self._parts]

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
    return _stacked(items).mean()


def mean_residual(items: Iterable[tuple[LowRank, float]]) -> LowRank:
    """What the product of `mean_factors` lacks of `stack`, in a block less than there are items; see `Stack.residual`.

    Args:
        items: pairs (D_k, n_k) of one shape [o, i] and one rank, read once.
    """
    return _stacked(items).residual()


def _stacked(items: Iterable[tuple[LowRank, float]]) -> Stack:
    found = Stack(len(items) if isinstance(items, Sequence) else 0)
    for d, weight in items:
        found.add(d, weight)
    return found
