"""RoLoRA: one factor learns and travels in a round, the other in the next; every aggregation is exact.

    even t    A_k = A^t fixed,   B^{t+1} = sum_k p_k B_k           sum_k p_k B_k A^t = B^{t+1} A^t
    odd t     B_k = B^t fixed,   A^{t+1} = sum_k p_k A_k           sum_k p_k B^t A_k = B^t A^{t+1}

B comes first: at B = 0 the gradient of A is zero. Uploads are the deltas of one factor (and of a head, in every round).
A client that lacks one round receives the factor of that round; one that lacks more receives both.

Chen et al., "Robust Federated Finetuning of LLMs via Alternating Optimization of LoRA", NeurIPS 2025, arXiv:2502.01755;
first as "Robust Federated Finetuning of Foundation Models via Alternating Minimization of LoRA", arXiv:2409.02346.
"""

from fedft.arithmetic.named_pairs import A_SUFFIX, B_SUFFIX
from fedft.recipe import FirstOrder, Layout, LoRA, Plan, Recipe, Spec, State, Tensors

SPACE = LoRA()


def rolora() -> Recipe:
    """Alternating minimisation: B in even rounds, A in odd ones; one rank for all clients."""
    return Recipe(
        "rolora",
        SPACE,
        local=FirstOrder(trains=lambda plan: (learns(plan.round),)),
        downlink=_what_changed,
        receive=_on_top,
        download=lambda layout, plan: SPACE.spec(layout, plan.shape).get,
        upload=_one_factor,
        ring_summable=True,
        takes_stale=False,
        bases="any",
    )


def learns(round: int) -> str:
    """Ending of the factor that learns in this round; the other is frozen."""
    return B_SUFFIX if round % 2 == 0 else A_SUFFIX


def _frozen(round: int) -> str:
    return learns(round + 1)


def _one_factor(layout: Layout, plan: Plan) -> Spec:
    return {n: t for n, t in SPACE.spec(layout, plan.shape).items() if not n.endswith(_frozen(plan.round))}


def _what_changed(state: State, have: int | None, plan: Plan) -> Tensors:
    if have == state.version:
        return {}
    if have != state.version - 1:
        return state.tensors
    return {n: x for n, x in state.tensors.items() if not n.endswith(_frozen(have))}


def _on_top(held: State | None, plan: Plan) -> Tensors:
    return plan.tensors if held is None or plan.have is None else {**held.tensors, **plan.tensors}
