"""The mean of uploads that are sparse vectors (`fedft.compression.sparse_vector`), each with positions of its own."""

from collections.abc import Iterable

import torch
from torch import Tensor

from fedft.compression import sparse_vector
from fedft.update import Update


def sparse_mean(updates: Iterable[Update], uniform: bool = False) -> dict[str, Tensor]:
    """sum_k p_k x_k as one dense vector, "mean": float32 [32 ceil(P / 32)], zero behind P; summed in float64.

    p_k = n_k / sum n_j over those who answered, or the same for all if `uniform`; one update in memory at a time.
    Raises ValueError where nobody answered.
    """
    total, weight = torch.zeros(0, dtype=torch.float64), 0.0
    for u in updates:
        x, n = sparse_vector.unpacked(u.delta), 1 if uniform else u.num_examples
        total = n * x + (total if weight else 0)
        weight += n
    if not weight:
        raise ValueError("expected at least one update, got none")
    return {"mean": (total / weight).float()}
