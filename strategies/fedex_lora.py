"""FedEx-LoRA: FedIT's averaged factors as the next start, and what their product misses goes into the frozen weights.

    A = sum_k p_k A_k,   B = sum_k p_k B_k;   clients restart from them
    R = sum_k p_k B_k A_k - B A = sum_k p_k (B_k - B)(A_k - A) = sum_{k>1} p_k (B_k - B)(A_k - A_1)
    W^{t+1} = W^t + R;   hence W^{t+1} + B A = W^t + sum_k p_k B_k A_k, exactly

The last form of R holds because the p_k (B_k - B) sum to zero; it has (n - 1) r rows where the paper sends a dense
matrix, so R and the averaged pair together are as long as the n uploads. W is w0 + the sum of all R, kept as factors
(`parts.moving_base`). `residual_rank` sends the best approximation of R of that rank, the paper's cheaper, inexact
form. Uploads are the factors themselves. State: the sum under `<module>.lora_A` and `.lora_B`, the averaged pair under
`<module>.lora_A.mean` and `.lora_B.mean`. Single clients' factors can be read off R as it is sent.

Singhal, Ponkshe, Vepakomma, "FedEx-LoRA: Exact Aggregation for Federated and Efficient Fine-Tuning of Foundation
Models", ACL 2025, arXiv:2410.09432.
"""

from collections.abc import Callable, Iterable
from typing import Literal

import torch
from torch import Tensor

from fedft import check
from fedft.adapters.lora import LoRA
from fedft.arithmetic import lowrank, named_pairs
from fedft.arithmetic.lowrank import LowRank
from fedft.arithmetic.tensors import Tensors
from fedft.contract import Handle, Layout, Turn
from fedft.recipe import Recipe
from fedft.strategies.parts import moving_base
from fedft.training.first_order import FirstOrder
from fedft.update import Update

SPACE = LoRA()
MEAN = ".mean"


def fedex_lora(
    *,
    residual_rank: int | None = None,
    weights: Literal["examples", "uniform"] = "examples",
    variant: Literal["exact", "reference"] = "exact",
) -> Recipe:
    """Averaged factors plus their residual in the base; a head, if there is one, is averaged.

    Args:
        residual_rank: send the best approximation of the residual of this rank; 0 is FedIT. Left out: all of it.
        weights: `examples` for p_k = n_k / sum n_j, or `uniform`.
        variant: `exact`, or `reference` for what the published code does to `nn.Linear`: it adds the transpose of the
            residual (so adapted weights must be square) at uniform weights.
    """
    if residual_rank is not None:
        check.at_least(0, residual_rank=residual_rank)
    check.one_of(("examples", "uniform"), weights=weights)
    check.one_of(("exact", "reference"), variant=variant)
    reference = variant == "reference"
    return Recipe(
        "fedex_lora",
        SPACE,
        aggregate=_aggregate(residual_rank, weights == "uniform" or reference, reference),
        local=FirstOrder(send="value"),
        initial=_square_start if reference else _start,
        server=moving_base.merge,
        downlink=moving_base.since,
        receive=moving_base.catch_up,
        start=_stand,
        linear=False,
        reveals_clients=residual_rank != 0,
        upload_kind="values",
        downlink_is_increment=True,
    )


def residual(pairs: list[tuple[LowRank, float]]) -> LowRank:
    """sum_k p_k B_k A_k - B A of pairs (d_k, n_k) in n - 1 blocks, float64 rounded once per factor."""
    total = sum(n for _, n in pairs)
    b = sum((n / total) * d.B.double() for d, n in pairs)
    first, others = pairs[0][0], pairs[1:]
    rows = [d.A.double() - first.A.double() for d, _ in others]
    columns = [(n / total) * (d.B.double() - b) for d, n in others]
    if not others:
        return lowrank.zero(*first.shape)
    return LowRank(torch.cat(rows).float(), torch.cat(columns, dim=1).float())


def _aggregate(rank: int | None, uniform: bool, transposed: bool) -> Callable[[Iterable[Update]], dict[str, Tensor]]:
    def aggregate(updates: Iterable[Update]) -> dict[str, Tensor]:
        """The residual as pairs; the means of the factors and of the head as values."""
        pairs, rest = named_pairs.pairs_and_mean((u.delta, 1 if uniform else u.num_examples) for u in updates)
        mean = {m: lowrank.mean_factors(of_clients) for m, of_clients in pairs.items()}
        missing = {m: residual(of_clients) for m, of_clients in pairs.items()}
        if rank is not None:
            missing = {m: d.truncate(rank) for m, d in missing.items()}
        if transposed:
            missing = {m: LowRank(d.B.T.contiguous(), d.A.T.contiguous()) for m, d in missing.items()}
        return named_pairs.to_names(missing) | _beside(named_pairs.to_names(mean) | rest)

    return aggregate


def _beside(trained: Tensors) -> dict[str, Tensor]:
    """The averaged tensors under the names that the state has for them: the plain ones of factors are the sum's."""
    factors = named_pairs.to_names(named_pairs.split(trained)[0])
    return {n + MEAN if n in factors else n: x for n, x in trained.items()}


def _start(layout: Layout, rank: int, seed: int) -> dict[str, Tensor]:
    return moving_base.nothing_yet(layout) | _beside(SPACE.initial(layout, rank, seed))


def _square_start(layout: Layout, rank: int, seed: int) -> dict[str, Tensor]:
    if oblong := [f"{m} {list(shape)}" for m, shape in layout.modules.items() if shape[0] != shape[1]]:
        raise ValueError(f"variant 'reference' adds a transpose: wanted square weights, got {', '.join(oblong[:3])}")
    return _start(layout, rank, seed)


def _stand(handle: Handle, turn: Turn) -> None:
    """W = w0 + the sum of residuals; the adapter at the averaged factors."""
    pairs, values = named_pairs.split(turn.held)
    handle.set_base_change(pairs, key=turn.held_digest)
    handle.write({n.removesuffix(MEAN): x for n, x in values.items()})
