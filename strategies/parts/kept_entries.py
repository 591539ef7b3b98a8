"""The mean of changes of a matrix of which clients have pruned rows, or columns: per entry, over those who hold it.

    rows     omega_k(a) = p_k [k keeps a] / sum_j p_j [j keeps a],      D = sum_k diag(omega_k) B_k A_k
    columns  the same by column c,                                      D = sum_k B_k A_k diag(omega_k)          0/0 = 0

Dividing entry by entry breaks low rank in general. Here it does not: a matrix is pruned on one side only, so that all
entries of a row (a column) have the same holders, and D is the stack of factors with scaled rows of B (columns of A).
Pruned entries of a factor are never read. What nobody keeps is zero in D and keeps the state's value (`completed`).

Source: our definition from the abstract of Yao, Xu, Xu, Liao, Xie, "Efficient Deployment of Large Language Models on
Resource-constrained Devices", 2025, arXiv:2501.02438, which gives no formula.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedft.arithmetic.lowrank import LowRank
from fedft.arithmetic.stacks import stack
from fedft.pruning.groups import Side


@dataclass(frozen=True)
class Holding:
    """What one client says of a matrix [o, i]."""

    change: LowRank
    """B A of shape [o, i]; entries that are not kept may hold anything finite."""
    weight: float
    """In proportion to which the client counts where it holds something; at least 0."""
    kept: Tensor
    """bool [o] or [i], by the side that is pruned: what the client still holds."""


def mean_of_kept(parts: Sequence[Holding], side: Side) -> LowRank:
    """The mean D over those who hold an entry, as stacked factors; zero where nobody does.

    Where everybody holds everything, this is `stack` to the bit.

    Args:
        parts: at least one; all of one shape [o, i], at any ranks.
        side: what `kept` is of.
    """
    held = torch.stack([p.kept for p in parts])
    if held.all():
        return stack([(p.change, p.weight) for p in parts])
    weights = held * torch.tensor([p.weight for p in parts], dtype=torch.float64)[:, None]
    shares = torch.where(weights.sum(0) > 0, weights / weights.sum(0), 0.0)
    return joined([only(p.change, share, side) for p, share in zip(parts, shares, strict=True)])


def completed(mean: LowRank, kept: Sequence[Tensor], state: LowRank, side: Side) -> LowRank:
    """`mean` with the state's entries in the rows (columns) that none of `kept`, bool [o] or [i] each, holds.

    The ranks of both are side by side; where everything is held by somebody it is `mean` as it is.
    """
    nobody = ~torch.stack([*kept]).any(0)
    return joined([mean, only(state, nobody.double(), side)]) if nobody.any() else mean


def only(change: LowRank, scale: Tensor, side: Side) -> LowRank:
    """diag(scale) B A, or B A diag(scale) for columns; where `scale` is zero so is the product.

    `scale`: float64 [o] or [i]. Rounded once to the factors' dtype.
    """
    if side == "rows":
        return LowRank(change.A, torch.where(scale[:, None] != 0, change.B * scale[:, None], 0.0).to(change.B.dtype))
    return LowRank(torch.where(scale != 0, change.A * scale, 0.0).to(change.A.dtype), change.B)


def joined(changes: Sequence[LowRank]) -> LowRank:
    """The sum of matrices of one shape: their factors side by side."""
    return LowRank(torch.cat([d.A for d in changes]), torch.cat([d.B for d in changes], dim=1))
