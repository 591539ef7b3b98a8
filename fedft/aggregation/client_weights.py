"""Clients' shares in a mean of low-rank pairs: by the norm of what they changed, with a bound on the largest."""

from collections.abc import Sequence

import torch

from fedft.arithmetic.lowrank import LowRank


def by_norm(items: Sequence[tuple[LowRank, float]]) -> list[float]:
    """w_k = |D_k|_F / sum_j |D_j|_F of pairs (D_k, n_k); p_k of `by_examples` where all matrices are zero."""
    norms = [d.norm() for d, _ in items]
    total = sum(norms)
    return [v / total for v in norms] if total > 0 else by_examples(items)


def by_examples(items: Sequence[tuple[LowRank, float]]) -> list[float]:
    """p_k = n_k / sum_j n_j of pairs (D_k, n_k)."""
    total = sum(float(n) for _, n in items)
    return [n / total for _, n in items]


def capped(shares: list[float], most: float) -> list[float]:
    """Shares of which none is above `most`: the excess goes to the others in proportion, or equally if they have none.

    All are equal where their number does not allow `most`.

    >>> capped([0.1, 0.1, 0.8], 0.5)
    [0.25, 0.25, 0.5]
    """
    if most * len(shares) <= 1:
        return [1 / len(shares)] * len(shares)
    new, full = shares, set[int]()
    while above := {k for k, w in enumerate(new) if w > most * (1 + 1e-12)}:
        full |= above
        free, rest = sum(w for k, w in enumerate(shares) if k not in full), 1 - most * len(full)
        others = len(shares) - len(full)
        new = [most if k in full else (w * rest / free if free else rest / others) for k, w in enumerate(shares)]
    return new


def undiluted(mean: LowRank, ranks: Sequence[int], shares: Sequence[float]) -> LowRank:
    """A mean of padded pairs with rank j divided by the shares of those who hold j, so that padding shrinks nothing.

    Args:
        mean: sum_k shares[k] pad(D_k), factor by factor.
        ranks: how many ranks of its pair each client holds; the rest of the pair is padding.
        shares: they sum to one. A rank that nobody holds is left as it is.
    """
    of_rank = [sum(w for w, r in zip(shares, ranks, strict=True) if r > j) or 1.0 for j in range(mean.rank)]
    return LowRank(mean.A / torch.tensor(of_rank)[:, None], mean.B / torch.tensor(of_rank))
