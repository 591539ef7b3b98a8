"""LoRA-FAIR: averaged factors whose B is corrected towards the mean of the products, without moving it far.

    A = sum_k p_k A_k,   B = sum_k p_k B_k,   D* = sum_k p_k B_k A_k
    dB = argmin  distance(D*, (B + dB) A) + lam |dB|_F^2;   broadcast A and B + dB

solver="ridge", ours: distance |D* - (B + dB) A|_F^2, solved exactly. With G = A A^T and lam scale-free,

    dB = (D* A^T - B G)(G + lam tr(G) / r I)^-1

Then |D* - (B + dB) A|^2 <= |D* - B A|^2 - lam tr(G) / r |dB|^2: never further from D* than plain averaging. After
rounding to float32 this is checked again on what is broadcast, and B stays as it was where it fails.
solver="cosine", as published: distance 1 - cos, by gradient descent from zero with a line search. A cosine does not see
lengths, so this one may end further from D*. Neither multiplies D* out: D* A^T = sum_k p_k B_k (A_k A^T). Uploads are
the factors themselves; unlike ranks are padded with zeros first.

Bian, Wang, Zhang, Xu, "LoRA-FAIR: Federated LoRA Fine-Tuning with Aggregation and Initialization Refinement", ICCV
2025, arXiv:2411.14961.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from fedft import check
from fedft.adapters.lora import LoRA
from fedft.arithmetic import lowrank, named_pairs
from fedft.arithmetic.lowrank import LowRank
from fedft.recipe import Recipe, cut_to_rank
from fedft.strategies.fedit import keep_largest_rank
from fedft.training.first_order import FirstOrder
from fedft.update import Update

Solver = Callable[[LowRank, LowRank, float], Tensor]
"""(D*, the mean pair, lam) -> B + dB in the pair's dtype."""


def lora_fair(
    *,
    lam: float = 0.01,
    solver: Literal["ridge", "cosine"] = "ridge",
    variant: Literal["exact", "reference"] = "exact",
) -> Recipe:
    """FedIT with a corrected B; a head, if there is one, is averaged.

    Args:
        lam: weight of |dB|^2: for `ridge` relative to the mean squared length of A's rows, for `cosine` as it is.
        solver: `ridge` (closed form) or `cosine` (the published objective, over the whole matrix of a module).
        variant: `exact`, or `reference`, which is solver `cosine`.
    """
    check.at_least(0, lam=lam)
    check.one_of(("ridge", "cosine"), solver=solver)
    check.one_of(("exact", "reference"), variant=variant)
    corrected = cosine if solver == "cosine" or variant == "reference" else ridge
    return Recipe(
        "lora_fair",
        LoRA(),
        aggregate=partial(aggregate, lam=lam, solver=corrected),
        local=FirstOrder(send="value"),
        server=keep_largest_rank,
        downlink=cut_to_rank,
        linear=False,
        unlike_ranks=True,
        upload_kind="values",
    )


def aggregate(updates: Iterable[Update], lam: float, solver: Solver) -> dict[str, Tensor]:
    """The padded mean factors with a corrected B, and the p_k-mean of everything that is not a pair."""
    pairs, rest = named_pairs.pairs_and_mean((u.delta, u.num_examples) for u in updates)
    fair = {}
    for m, items in pairs.items():
        mean = lowrank.mean_factors(lowrank.pad_to_largest(items))
        target = lowrank.stack((d.double(), n) for d, n in items)
        fair[m] = LowRank(mean.A, solver(target, mean, lam))
    return named_pairs.to_names(fair) | rest


def ridge(target: LowRank, mean: LowRank, lam: float) -> Tensor:
    """B + dB of the closed form; B where rounding would make the product worse."""
    A, B = mean.A.double(), mean.B.double()
    G = A @ A.T
    missing = target @ A.T - B @ G  # (D* - B A) A^T
    g, Q = torch.linalg.eigh(G)
    there = g > mean.rank * torch.finfo(G.dtype).eps * g.max() if mean.rank else g > 0
    inverse = torch.where(there, 1 / torch.where(there, g + lam * g.sum() / max(mean.rank, 1), 1), 0)
    corrected = (B + missing @ (Q * inverse) @ Q.T).to(mean.B.dtype)
    dB = corrected.double() - B
    gained = 2 * torch.sum(missing * dB) - torch.sum(dB @ G * dB)  # |D* - B A|^2 - |D* - (B + dB) A|^2
    return corrected if gained > 0 else mean.B


def cosine(target: LowRank, mean: LowRank, lam: float, most: int = 1000, tolerance: float = 1e-8) -> Tensor:
    """B + dB by gradient descent; B where the objective does not decrease on the rounded values."""
    A, B = mean.A.double(), mean.B.double()
    G, X, length = A @ A.T, target @ A.T, target.norm()

    def objective(C: Tensor) -> tuple[float, Tensor]:
        """1 - cos(D*, C A) + lam |C - B|^2 and its gradient in C; D* and C A enter by X = D* A^T and G = A A^T."""
        CG = C @ G
        product = torch.sum(CG * C).clamp(min=0).sqrt() * length
        cos = torch.sum(X * C) / product
        slope = -X / product + cos * CG * (length / product) ** 2 + 2 * lam * (C - B)
        return float(1 - cos + lam * (C - B).square().sum()), slope

    if not (length > 0 and torch.sum(B @ G * B) > 0):
        return mean.B  # no direction to compare
    C, step = B, 1.0
    first, slope = objective(C)
    now = first
    for _ in range(most):
        steepness, step = float(slope.square().sum()), 2 * step
        while (found := objective(C - step * slope))[0] > now - step * steepness / 2 and step > 1e-12:
            step /= 2
        if not found[0] < now:
            break
        before, (now, C, slope) = now, (found[0], C - step * slope, found[1])
        if before - now <= tolerance * before:
            break
    corrected = C.to(mean.B.dtype)
    return corrected if objective(corrected.double())[0] < first else mean.B
