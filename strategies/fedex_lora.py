"""FedEx-LoRA: FedIT's averaged factors as the next start, and what their product misses goes into the frozen weights.

    A = sum_k p_k A_k,   B = sum_k p_k B_k;   clients restart from them
    R = sum_k p_k B_k A_k - B A = sum_k p_k (B_k - B)(A_k - A) = sum_{k>1} p_k (B_k - B)(A_k - A_1)
    W^{t+1} = W^t + R;   hence W^{t+1} + B A = W^t + sum_k p_k B_k A_k, exactly

The last form of R holds because the p_k (B_k - B) sum to zero; it has (n - 1) r rows where the paper sends a dense
matrix, so R and the averaged pair together are as long as the n uploads. W is w0 + the sum of all R, kept as factors
while that is shorter than the matrix (`parts.moving_base`). `residual_rank` sends the best approximation of R of that
rank, the paper's cheaper, inexact form. Uploads are the factors themselves. State: the sum under `<module>.lora_A` and
`.lora_B` or `.lora_BA`, the averaged pair under `<module>.lora_A.mean` and `.lora_B.mean`. Single clients' factors can
be read off R as it is sent.

Singhal, Ponkshe, Vepakomma, "FedEx-LoRA: Exact Aggregation for Federated and Efficient Fine-Tuning of Foundation
Models", ACL 2025, arXiv:2410.09432.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Literal

from torch import Tensor

from fedft import check
from fedft.arithmetic.lowrank import LowRank
from fedft.arithmetic.named_pairs import A_SUFFIX, B_SUFFIX, split, to_names
from fedft.arithmetic.stacks import Stack
from fedft.arithmetic.tensors import weighted_mean
from fedft.recipe import Handle, Layout, LoRA, Plan, Recipe, Spec, Tensors, Turn, Update
from fedft.strategies.parts import moving_base

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
    uniform = weights == "uniform" or reference
    mean = partial(aggregate, rank=residual_rank, uniform=uniform, transposed=reference)
    recipe = moving_base.of_moving_base("fedex_lora", mean, partial(_start, square=reference), _stand, _means)
    return replace(recipe, reveals_clients=residual_rank != 0, weighs_by_examples=not uniform)


def aggregate(updates: Iterable[Update], rank: int | None, uniform: bool, transposed: bool) -> dict[str, Tensor]:
    """The residual as pairs; the means of the factors and of the head as values.

    Factors are written into stacks as they come: there are the stacks, the sums, and one update at a time.
    """
    stacks: dict[str, Stack] = {}

    def add(delta: Tensors, cohort: int, weight: float) -> None:
        for m, d in split(delta)[0].items():
            stacks.setdefault(m, Stack(cohort)).add(d, weight)

    def coming() -> Iterator[tuple[Tensors, float]]:
        for u in updates:
            delta, weight = u.delta, 1 if uniform else u.num_examples
            add(delta, u.cohort, weight)
            del u
            yield delta, weight
            del delta  # gone before the next one is made

    mean, rest = split(weighted_mean(coming()))
    missing = {m: stacks.pop(m).residual() for m in [*stacks]}
    if rank is not None:
        missing = {m: d.truncate(rank) for m, d in missing.items()}
    if transposed:
        missing = {m: LowRank(d.B.T.contiguous(), d.A.T.contiguous()) for m, d in missing.items()}
    return to_names(missing) | _beside(to_names(mean) | rest)


def _beside(trained: Tensors) -> dict[str, Tensor]:
    """The averaged tensors under the names that the state has for them: the plain ones of factors are the sum's."""
    return {_name(n): x for n, x in trained.items()}


def _name(trained: str) -> str:
    return trained + MEAN if trained.endswith((A_SUFFIX, B_SUFFIX)) else trained


def _means(layout: Layout, plan: Plan) -> Spec:
    return {_name(n): t for n, t in LoRA().spec(layout, plan.shape).items()}


def _start(layout: Layout, rank: int, seed: int, square: bool) -> dict[str, Tensor]:
    oblong = [f"{m} {list(shape)}" for m, shape in layout.modules.items() if shape[0] != shape[1]]
    if square and oblong:
        raise ValueError(f"variant 'reference' adds a transpose: wanted square weights, got {', '.join(oblong[:3])}")
    return moving_base.nothing_yet(layout) | _beside(LoRA().initial(layout, rank, seed))


def _stand(handle: Handle, turn: Turn) -> None:
    """W = w0 + the sum of residuals; the adapter at the averaged factors."""
    handle.write({n.removesuffix(MEAN): x for n, x in moving_base.stand(handle, turn).items()})
