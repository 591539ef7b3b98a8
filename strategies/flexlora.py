"""FlexLoRA: whole changes are averaged, and every client gets their best approximation at its own rank.

    D* = sum_k p_k B_k A_k = U S V^T;   rank r:  A = (V^T)[:r],  B = (U S)[:, :r]        (Eckart-Young, nested in r)

D* is never multiplied out: the singular value decomposition comes from the two stacks of factors (`LowRank.svd`), and
only of the ranks that are kept. Uploads are the factors themselves, at any rank; the state is the pair at the largest
rank. Where D* has fewer ranks than that, the remaining rows of A stay as they were with zero columns of B: the same
matrix, in which all ranks can learn.

The server may remember, as factors that never travel: what the cut to the largest rank lost (`feedback`), so that
broadcast + residual = D* + residual before, and a momentum on the dense change (the factors have no identity from round
to round): m = momentum m + (D* - D),  D := D + server_lr m.

Bai, Chen, Qian, Yao, Li, "Federated Fine-tuning of Large Language Models under Heterogeneous Tasks and Client
Resources", NeurIPS 2024, arXiv:2402.11505.
"""

from dataclasses import replace
from functools import partial
from typing import Literal

from fedft import check
from fedft.aggregation.factor_means import stacked_mean
from fedft.aggregation.server_optimizers import FactoredMomentum
from fedft.arithmetic import lowrank
from fedft.arithmetic.lowrank import LowRank
from fedft.arithmetic.named_pairs import split, to_names
from fedft.recipe import Next, Recipe, State, Tensors, product_norm
from fedft.strategies.parts.unlike_ranks import of_unlike_ranks

OWNER, LOST, MOMENTUM = "flexlora", "lost.", "momentum."
SHARE_OF_A = {"b": 0.0, "balanced": 0.5, "a": 1.0}  # exponent of the singular values on A; B has the rest


def flexlora(
    *,
    gauge: Literal["b", "balanced", "a"] = "b",
    feedback: bool = False,
    momentum: float = 0.0,
    server_lr: float = 1.0,
) -> Recipe:
    """Mean of products, cut to each client's rank; a head, if there is one, is averaged and replaced.

    Args:
        gauge: where the singular values go: `b` (published: A has orthonormal rows), `balanced` (their roots on both,
            which keeps the two learning rates alike in long runs with Adam), `a`.
        feedback: keep what the cut to the largest rank loses on the server and add it to the next D*.
        momentum: of the dense change, from 0 to below 1.
        server_lr: step of the dense change; 1 with momentum 0 is the plain method.
    """
    check.one_of(tuple(SHARE_OF_A), gauge=gauge)
    server = partial(redistribute, SHARE_OF_A[gauge], feedback, FactoredMomentum(server_lr, momentum))
    return replace(of_unlike_ranks("flexlora", stacked_mean), server=server, norm=product_norm, unlike_modules=True)


def redistribute(share_of_a: float, feedback: bool, optimizer: FactoredMomentum, state: State, change: Tensors) -> Next:
    """The pairs at the state's rank of D* (`change`, as factors), and what the server remembers of them."""
    (old, _), (pairs, rest), (known, _) = split(state.tensors), split(change), split(state.drawer(OWNER))
    new: dict[str, LowRank] = {}
    memory: dict[str, LowRank] = {}
    for m, wanted in pairs.items():
        wanted, moment = optimizer.step(old[m], wanted, known.get(MOMENTUM + m))
        memory |= {MOMENTUM + m: moment} if moment is not None else {}
        if feedback and LOST + m in known:
            wanted = wanted + known[LOST + m]
        rank = old[m].rank
        whole = wanted.truncate(None if feedback else rank, share_of_a)
        memory |= {LOST + m: whole.ranks(rank)} if feedback else {}
        new[m] = lowrank.padded_to(lowrank.pad(whole.ranks(stop=rank), rank), old[m])
    return Next({**state.tensors, **to_names(new), **rest}, {OWNER: to_names(memory)})
