"""FlexLoRA's redistribution of one module: the mean of the clients' products, cut to the rank that the server keeps.

    published       sum_k p_k B_k A_k multiplied out client by client, then torch.linalg.svd of it
    svd_lowrank     the same sum, then torch.svd_lowrank, which is randomised
    QR              the factors stacked, QR of both, SVD of an R x R matrix: what ours falls back on
    ours            the factors stacked, two R x R Gram matrices in float64 (`LowRank.svd`)

The limit is the arithmetic of the Gram matrices alone, 2 (o + i) R^2 / 2 flops as they are symmetric, at the speed of
torch's float64 product of the same factors. `residual` is |sum - what is kept| / |sum|; what is kept of the best rank
has the least. The published way takes so long that it runs twice, of which the second is the figure.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from fedft.arithmetic import product_svd
from fedft.arithmetic.lowrank import LowRank
from fedft.arithmetic.stacks import stack
from fedft.benchmarks.measure import LIMIT, Act, take_turns
from fedft.benchmarks.results import Result

RANKS = (8, 8, 8, 16, 16, 16, 24, 64, 64, 64)
SVD = tuple[Tensor, Tensor, Tensor]
"""U: [o, q], S: [q], V: [q, i]."""


def clients(o: int, i: int, ranks: tuple[int, ...]) -> list[tuple[LowRank, float]]:
    """Pairs of Gaussian factors and unlike numbers of examples."""
    g = torch.Generator().manual_seed(0)
    pairs = (LowRank(torch.randn(r, i, generator=g) / i**0.5, 0.01 * torch.randn(o, r, generator=g)) for r in ranks)
    return [(d, k + 1) for k, d in enumerate(pairs)]


def dense_sum(items: list[tuple[LowRank, float]]) -> Tensor:
    """sum_k p_k B_k A_k, [o, i], client by client as published."""
    total, weights = torch.zeros(items[0][0].shape), sum(n for _, n in items)
    for d, n in items:
        total += n / weights * (d.B @ d.A)
    return total


def bench(*, quick: bool = False, turns: int = 7) -> Result:
    """Ten clients of rank 8 to 64, a module of 4096 x 4096, rank 64 kept."""
    o, i, ranks = (256, 192, tuple(r // 8 for r in RANKS)) if quick else (4096, 4096, RANKS)
    keep, items = max(ranks), clients(o, i, ranks)
    what = f"{o} x {i}, R = {sum(ranks)}"

    def published() -> SVD:
        u, s, v = torch.linalg.svd(dense_sum(items), full_matrices=False)
        return u[:, :keep], s[:keep], v[:keep]

    def randomised() -> SVD:
        u, s, v = torch.svd_lowrank(dense_sum(items), q=keep)
        return u, s, v.T

    def by_qr() -> SVD:
        stacked = stack(items)
        return product_svd.by_qr(stacked.B, stacked.A, keep)

    def ours() -> SVD:
        return stack(items).svd(keep)

    whole = stack(items).double()
    ways = {"published": published, "svd_lowrank": randomised, "QR": by_qr, "ours": ours}
    last: dict[str, SVD] = {}

    def keep_last(way: str, svd: Callable[[], SVD]) -> None:
        last[way] = svd()

    acts = [Act(what, way, partial(keep_last, way, svd)) for way, svd in ways.items()]
    limit = Act(what, LIMIT, lambda: (whole.B.T @ whole.B, whole.A @ whole.A.T), times=0.5)
    first = take_turns(acts[:1], turns=1)[0]
    others = take_turns([*acts[1:], limit], turns)
    least = others[-1].seconds

    rows = []
    for r in (first, *others):
        r = replace(r, ratio=first.seconds / r.seconds, of_limit=r.seconds / least)
        if r.way in last:
            u, s, v = (x.double() for x in last[r.way])
            r = replace(r, facts={"residual": (whole + -LowRank(v, u * s)).norm() / whole.norm()})
        rows.append(r)
    title = "SVD redistribution of one module, against a dense sum and its SVD; limit: its Gram matrices"
    settings = {"o": o, "i": i, "ranks": list(ranks), "kept": keep, "turns": turns, "published_runs": 2}
    return Result("svd", title, settings, tuple(rows))
