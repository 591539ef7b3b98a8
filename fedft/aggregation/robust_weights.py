"""Weights of clients' changes D_k from their inner products H (`gram`), which a few dishonest clients cannot choose.

    change = sum_k w_k D_k,   n clients, d_ij = |D_i - D_j|

norm_clip          w_k = min(1, median of the norms / |D_k|) / n                         against changes too large
multi_krum         score_i = sum of the n - f - 2 smallest d_ij^2; the n - f lowest count alike        2 f + 3 <= n
geometric_median   w minimises sum_k |D_k - sum_j w_j D_j| (smoothed Weiszfeld)                              2 f < n
fltrust            w_k = max(0, cos(D_k, D_root)) |D_root| / |D_k| / sum_j max(0, cos(D_j, D_root))

No weight counts examples: a liar would have its weight back.

Blanchard et al., "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent", NeurIPS 2017,
arXiv:1703.02757. Pillutla, Kakade, Harchaoui, "Robust Aggregation for Federated Learning", IEEE Transactions on Signal
Processing 2022, arXiv:1912.13445. Cao et al., "FLTrust", NDSS 2021, arXiv:2012.13995.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from fedft.aggregation.gram import squared_distances

MORE = "a higher [server] quorum or more clients would do"
STEPS, CLOSE = 64, 1e-8  # of Weiszfeld: at most so many, or until no weight moves by more
SMOOTH = 1e-6  # of the median norm: distances below it count as this
NOTHING = 1e-150  # a distance where most changes are zero; its inverse is a number still


class NoSum(ValueError):
    """A rule has too few updates, or lets none count; the text is for the operator."""


class Weighed(NamedTuple):
    """What a rule makes of the clients' changes."""

    weights: Tensor
    """float64 [n]."""
    scores: Tensor
    """float64 [n]: what the rule went by: norms, sums of squared distances, distances or cosines."""


def norm_clip(H: Tensor) -> Weighed:
    """All alike, but changes above the median norm as if they had it; scores are norms."""
    norms = H.diagonal().clamp(min=0).sqrt()
    middle = norms.quantile(0.5)
    factors = torch.where(norms > middle, middle / norms.clamp(min=torch.finfo(norms.dtype).tiny), 1.0)
    return Weighed(factors / len(norms), norms)


def most_dishonest(n: int) -> int:
    """The largest f that multi-Krum stands among n clients; below 0 where n is below 3."""
    return (n - 3) // 2


def multi_krum(H: Tensor, f: int) -> Weighed:
    """The n - f clients that are nearest to their n - f - 2 neighbours, alike; of equal ones the first.

    Raises NoSum unless 0 <= f and 2 f + 3 <= n.

    >>> x = torch.tensor([[0.0], [1.0], [1.1], [0.9], [10.0]], dtype=torch.float64)
    >>> multi_krum(x @ x.T, f=1).weights.tolist()
    [0.25, 0.25, 0.25, 0.25, 0.0]
    """
    n = len(H)
    if f < 0 or n < 2 * f + 3:
        raise NoSum(f"{n} updates, and [robust] f = {f} needs {2 * f + 3}; {MORE}")
    apart = squared_distances(H)
    apart.fill_diagonal_(torch.inf)  # nobody is its own neighbour
    scores = apart.sort(dim=1).values[:, : n - f - 2].sum(dim=1)
    weights = torch.zeros_like(scores)
    weights[scores.argsort(stable=True)[: n - f]] = 1 / (n - f)
    return Weighed(weights, scores)


def geometric_median(H: Tensor) -> Weighed:
    """The weights of the point to which all changes together are nearest; scores are distances to it."""
    squares = H.diagonal()
    least = SMOOTH * float(squares.clamp(min=0).sqrt().quantile(0.5))
    weights = torch.full_like(squares, 1 / len(H))
    for _ in range(STEPS):
        near = 1 / _distances(H, weights).clamp(min=least or NOTHING)
        before, weights = weights, near / near.sum()
        if float((weights - before).abs().max()) <= CLOSE:
            break
    return Weighed(weights, _distances(H, weights))


def fltrust(H: Tensor, *, grow: bool = True) -> Weighed:
    """Those who point the way of a change that is known to be honest, each as long as that one; scores are cosines.

    Args:
        H: of the clients' changes and, last, the honest one: [n + 1, n + 1].
        grow: whether changes shorter than the honest one count as if they were as long.
    """
    norms = H.diagonal().clamp(min=0).sqrt()
    own, root = norms[:-1], norms[-1]
    cosines = torch.where(own * root > 0, H[:-1, -1] / (own * root).clamp(min=torch.finfo(H.dtype).tiny), 0.0)
    trust = cosines.clamp(min=0)
    factors = torch.where(own > 0, root / own.clamp(min=torch.finfo(H.dtype).tiny), 0.0)
    weights = trust * (factors if grow else factors.clamp(max=1))
    return Weighed(weights / trust.sum() if float(trust.sum()) > 0 else weights, cosines)


def _distances(H: Tensor, weights: Tensor) -> Tensor:
    """|D_k - sum_j w_j D_j| of every k: float64 [n]."""
    across = H @ weights
    return (H.diagonal() - 2 * across + weights @ across).clamp(min=0).sqrt()
