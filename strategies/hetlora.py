"""HetLoRA: every client trains the first r_k ranks, gives up its tail where that is useless, and counts by its energy.

    start    A_k = A[:r_k],  B_k = B[:, :r_k]                                          truncation
    local    f_k + lam sum_m |B_k[:, q:]|_F |A_k[q:]|_F,   q = floor(gamma r_k)        decay of the tail
    prune    r_k := q, for good, where the tail's product of norms ended smaller than it started
    server   A = sum_k w_k pad(A_k),  B = sum_k w_k pad(B_k),   w_k = |B_k A_k|_F / sum_j |B_j A_j|_F   per module

A client uploads the factors at the rank it was given, zero where it gave up, and the rank that it keeps
(`parts.shrinking_ranks`). Padding dilutes: rows that only some clients hold shrink by the others' weight in every
round. Energy can be made: who scales a change by c scales its weight by c as well (`max_share` bounds that). Where all
changes are zero, and for a head, the weights are p_k = n_k / sum n_j. A row that ends up zero in both factors could
never learn again: it keeps the state's row of A, which changes no product. Rows beyond what the cohort was asked for
stay as they are; those that one of it gave up are zeros of its own, also for clients who were not asked.

Cho, Liu, Xu, Fahrezi, Joshi, "Heterogeneous LoRA for Federated Fine-tuning of On-Device Foundation Models", EMNLP 2024,
arXiv:2401.06432. Published without code; the rank is the client's, one for all modules.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Literal

from torch import Tensor

from fedft import check
from fedft.aggregation import client_weights
from fedft.arithmetic import lowrank
from fedft.arithmetic.named_pairs import pairs_and_mean, to_names
from fedft.recipe import FirstOrder, Recipe, Tensors, Update
from fedft.strategies.parts import shrinking_ranks
from fedft.strategies.parts.unlike_ranks import of_unlike_ranks

OWNER = "hetlora"


def hetlora(
    *,
    gamma: float = 0.99,
    penalty: float = 0.001,
    weights: Literal["norm", "examples"] = "norm",
    max_share: float | None = None,
    normalise_rows: bool = False,
) -> Recipe:
    """Unlike ranks by truncation and padding, with ranks that shrink; a head, if there is one, is averaged by p_k.

    Args:
        gamma: the head is the first floor(gamma r) ranks, at least one; 1: no tail, ranks never shrink.
        penalty: lam, on the adapter's own scale (B without alpha / r), as published; 0: no penalty and no pruning.
        weights: `norm` for w_k as above, or `examples` for p_k.
        max_share: no w_k of a module is larger, what is above goes to the others; left out: no bound.
        normalise_rows: divide row j by the weight of those that hold it, so that nothing shrinks; not the paper's.
    """
    check.between(0, 1, gamma=gamma)
    check.at_least(0, penalty=penalty)
    check.one_of(("norm", "examples"), weights=weights)
    if max_share is not None:
        check.above(0, max_share=max_share)
        check.between(0, 1, max_share=max_share)
    memory = shrinking_ranks.Memory(OWNER)
    mean = partial(aggregate, by_norm=weights == "norm", max_share=max_share, normalise_rows=normalise_rows)
    return replace(
        of_unlike_ranks("hetlora", mean),
        local=FirstOrder("value", terms=(shrinking_ranks.SelfPruning(gamma, penalty),)),
        server=memory.server,
        upload=shrinking_ranks.upload,
        admit=shrinking_ranks.admit,
        plan=memory.plan,
        weighs_by_examples=weights == "examples",
    )


def aggregate(
    updates: Iterable[Update], by_norm: bool, max_share: float | None, normalise_rows: bool
) -> dict[str, Tensor]:
    """The weighted mean of padded factors, the p_k-mean of the rest, and who said what rank."""
    held, said, mean = list[int](), dict[str, Tensor](), {}

    def values() -> Iterator[tuple[Tensors, float]]:
        for u in updates:
            held.append(shrinking_ranks.rank_of(u))
            said.update(shrinking_ranks.rank_said(u))
            yield shrinking_ranks.values_of(u), u.num_examples

    pairs, rest = pairs_and_mean(values())
    for m, items in pairs.items():
        w = client_weights.by_norm(items) if by_norm else client_weights.by_examples(items)
        w = w if max_share is None else client_weights.capped(w, max_share)
        mean[m] = lowrank.mean_factors(lowrank.pad_to_largest((d, w_k) for (d, _), w_k in zip(items, w, strict=True)))
        if normalise_rows:
            mean[m] = client_weights.undiluted(
                mean[m], [min(r, d.rank) for r, (d, _) in zip(held, items, strict=True)], w
            )
    return to_names(mean) | rest | said
