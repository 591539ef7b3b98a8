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

from torch import Tensor

from fedft import check
from fedft.arithmetic import factor_fit, lowrank
from fedft.arithmetic.lowrank import LowRank
from fedft.arithmetic.named_pairs import pairs_and_mean, to_names
from fedft.arithmetic.stacks import stack
from fedft.recipe import Recipe, Update
from fedft.strategies.parts.unlike_ranks import of_unlike_ranks


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
    solve = factor_fit.cosine if solver == "cosine" or variant == "reference" else factor_fit.ridge
    return of_unlike_ranks("lora_fair", partial(aggregate, lam=lam, solve=solve))


def aggregate(
    updates: Iterable[Update], lam: float, solve: Callable[[LowRank, LowRank, float], Tensor]
) -> dict[str, Tensor]:
    """The padded mean factors with a corrected B, and the p_k-mean of everything that is not a pair."""
    pairs, rest = pairs_and_mean((u.delta, u.num_examples) for u in updates)
    fair = {}
    for m, items in pairs.items():
        mean = lowrank.mean_factors(lowrank.pad_to_largest(items))
        target = stack((d.double(), n) for d, n in items)  # D*
        fair[m] = LowRank(mean.A, solve(target, mean, lam))
    return to_names(fair) | rest
