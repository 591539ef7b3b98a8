"""Sums that are taken entry by entry, where clients' numbers of one place mean the same.

    median          the middle one of n numbers, or the mean of the two in the middle                          2 f < n
    trimmed_mean    the mean without the k largest and the k smallest, k = max(1, floor(trim n))                f <= k

Not for two factors that learn together: what an entry of one means depends on the other.

Yin et al., "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates", ICML 2018, arXiv:1803.01498.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from fedft.aggregation.entry_blocks import of_clients
from fedft.aggregation.robust_weights import MORE, NoSum
from fedft.arithmetic.norms import BLOCK
from fedft.arithmetic.tensors import Tensors


def median(rows: Tensor) -> Tensor:
    """The middle of every column, or the mean of its two middle ones: float64 [entries] of rows [clients, entries].

    >>> median(torch.tensor([[0.0], [1.0], [1.1], [0.9], [10.0]])).tolist()
    [1.0]
    """
    ordered, n = rows.sort(dim=0).values, len(rows)
    return (ordered[(n - 1) // 2].double() + ordered[n // 2].double()) / 2


def left_out(clients: int, trim: float) -> int:
    """How many of the largest, and as many of the smallest, `trimmed_mean` leaves out."""
    return max(1, int(trim * clients + 1e-9))


def trimmed_mean(rows: Tensor, trim: float) -> Tensor:
    """The mean of every column without its extremes: float64 [entries] of rows [clients, entries].

    Raises NoSum where nothing would be left.

    >>> trimmed_mean(torch.tensor([[0.0], [1.0], [2.0], [3.0], [10.0]]), 0.2).tolist()
    [2.0]
    """
    n = len(rows)
    k = left_out(n, trim)
    if n <= 2 * k:
        raise NoSum(f"{n} updates, of which [robust] trim = {trim:g} leaves out {k} at either end; {MORE}")
    return rows.sort(dim=0).values[k : n - k].double().mean(dim=0)


def of_clients_tensors(clients: Sequence[Tensors], rule: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """What `rule` makes of every entry, by name, over the clients that have the name; float32, in the first's shapes.

    Args:
        clients: named float tensors of each; those that lie in files are read when they are needed.
        rule: [clients, entries] -> [entries].
    """
    found: dict[str, Tensor] = {}
    for name in dict.fromkeys(n for x in clients for n in x):
        having = [x for x in clients if name in x]
        whole = torch.empty(having[0][name].shape)
        flat = whole.view(-1)
        for here, rows in of_clients([partial(x.__getitem__, name) for x in having]):
            parts = rows.split(max(1, BLOCK // len(having)), dim=1)
            flat[here] = torch.cat([rule(part) for part in parts]).float()
        found[name] = whole
    return found
