"""FLoRA: clients of any rank; their factors are stacked, not averaged, so the server's change is exact.

    A_st = [A_1; ...; A_n],  B_st = [p_1 B_1, ..., p_n B_n],  B_st A_st = sum_k p_k (alpha_k / r_k) B_k A_k     (eq. 3)
    W^{t+1} = W^t + B_st A_st;  every client restarts from a fresh A_k and B_k = 0

Here W is never the state: the state is the sum of all stacks since w0, and W^t = w0 + that sum in one float32 addition.
It is factored until it would be longer than the weights, then multiplied out. A client that took part in every round
and one that came yesterday hold the same sum, hence (on one type of machine) the same bits. `parts.moving_base` says
how it is kept and what of it travels. Uploads are the factors themselves (`send="value"`), because A_k starts from the
client's own draw.

Wang et al., "FLoRA: Federated Fine-Tuning Large Language Models with Heterogeneous Low-Rank Adaptations", NeurIPS 2024,
arXiv:2409.05976.
"""

from dataclasses import replace

from torch import Tensor

from fedft.aggregation.factor_means import stacked_mean
from fedft.recipe import Handle, Layout, LoRA, Plan, Recipe, Spec, Turn, product_norm
from fedft.strategies.parts import moving_base

SPACE = LoRA()


def flora() -> Recipe:
    """Exact aggregation for unlike ranks; a head, if there is one, is averaged."""
    recipe = moving_base.of_moving_base("flora", stacked_mean, _nothing_yet, _restart, _head)
    return replace(recipe, unlike_ranks=True, unlike_modules=True, norm=product_norm, takes_stale=True)


def _nothing_yet(layout: Layout, rank: int, seed: int) -> dict[str, Tensor]:
    head = {n: x for n, x in SPACE.initial(layout, rank, seed).items() if n in layout.head}
    return moving_base.nothing_yet(layout) | head


def _head(layout: Layout, plan: Plan) -> Spec:
    return {n: t for n, t in SPACE.spec(layout, plan.shape).items() if n in layout.head}


def _restart(handle: Handle, turn: Turn) -> None:
    """W = w0 + the sum; A a fresh draw of this client, B zero: the function is unchanged."""
    head = moving_base.stand(handle, turn)
    shape = turn.plan.shape
    handle.write({**SPACE.initial(handle.layout, shape, turn.seed), **head}, shape.without)
