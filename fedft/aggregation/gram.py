"""Inner products of clients' changes, each with each: all that a weight by distances needs to know of them.

    H_ij = <D_i, D_j>,   |D_i - D_j|^2 = H_ii + H_jj - 2 H_ij
    D_i = B_i A_i:   <D_i, D_j> = sum((B_i^T B_j) * (A_i A_j^T))          matrices of the ranks' size, no product made

Distances between products do not see in which of their many pairs (B Q^-1, Q A) they came; those between factors do.
Everything is summed in float64. Of one module the factors of some clients are in memory at a time, of one tensor some
entries of all; so a journal is read once where a module of all clients fits.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fedft.aggregation.entry_blocks import of_clients
from fedft.arithmetic.lowrank import LowRank
from fedft.arithmetic.norms import BLOCK

HELD = 2**23  # numbers of one group of clients' factors, in float64: 64 MiB


class _Group(NamedTuple):
    """Pairs of several clients side by side."""

    A: Tensor
    """float64 [R, i], R the sum of their ranks."""
    B: Tensor
    """float64 [o, R]."""
    owner: Tensor
    """int64 [R]: whose each rank is."""


def of_pairs(reads: Sequence[Callable[[], LowRank | None]]) -> Tensor:
    """H of one module's low-rank changes: float64 [n, n], symmetric.

    Args:
        reads: of each client, makes its pair; None: its change is zero. Ranks may differ. A pair is asked for once
            where the pairs of all fit HELD, else once for every group of clients that does.
    """
    n = len(reads)
    found = torch.zeros(n, n, dtype=torch.float64)
    size = next((d.A.numel() + d.B.numel() for read in reads if (d := read()) is not None), 0)
    if not size:
        return found
    each = max(1, HELD // size)
    groups = [range(at, min(at + each, n)) for at in range(0, n, each)]
    for k, rows in enumerate(groups):
        left = _side_by_side(reads, rows)
        for columns in groups[k:]:
            right = left if columns is rows else _side_by_side(reads, columns)
            if left is None or right is None:
                continue
            terms = (left.B.T @ right.B) * (left.A @ right.A.T)
            by_row = torch.zeros(n, terms.shape[1], dtype=torch.float64).index_add_(0, left.owner, terms)
            part = torch.zeros(n, n, dtype=torch.float64).index_add_(1, right.owner, by_row)
            found += part if right is left else part + part.T
    return (found + found.T) / 2  # what rounding leaves unlike


def of_tensors(reads: Sequence[Callable[[], Tensor]]) -> Tensor:
    """H of one tensor's changes, each taken as a vector: float64 [n, n], symmetric.

    `reads`: of each client, makes its tensor; all have one shape.
    """
    found = torch.zeros(len(reads), len(reads), dtype=torch.float64)
    for _, rows in of_clients(reads):
        for block in rows.split(max(1, BLOCK // len(reads)), dim=1):
            doubles = block.double()
            found += doubles @ doubles.T
    return (found + found.T) / 2


def squared_distances(H: Tensor) -> Tensor:
    """|D_i - D_j|^2 of all pairs: float64 [n, n], none below zero."""
    squares = H.diagonal()
    return (squares[:, None] + squares[None, :] - 2 * H).clamp(min=0)


def _side_by_side(reads: Sequence[Callable[[], LowRank | None]], clients: range) -> _Group | None:
    """The pairs of these clients; None where none of them has one."""
    pairs = [(k, d.double()) for k in clients if (d := reads[k]()) is not None and d.rank]
    if not pairs:
        return None
    owner = torch.cat([torch.full((d.rank,), k) for k, d in pairs])
    return _Group(torch.cat([d.A for _, d in pairs]), torch.cat([d.B for _, d in pairs], dim=1), owner)
