"""FLoRA: clients of any rank; their factors are stacked, not averaged, so the server's change is exact.

    A_st = [A_1; ...; A_n],  B_st = [p_1 B_1, ..., p_n B_n],  B_st A_st = sum_k p_k (alpha_k / r_k) B_k A_k     (eq. 3)
    W^{t+1} = W^t + B_st A_st;  every client restarts from a fresh A_k and B_k = 0

Here W is never the state: the state is the sum of all stacks since w0, factored, and W^t = w0 + that sum in one float32
addition. A client that took part in every round and one that came yesterday hold the same factors, hence (on one type
of machine) the same bits. `parts.moving_base` says how the sum is kept and what of it travels. Uploads are the factors
themselves (`send="value"`), because A_k starts from the client's own draw.

Wang et al., "FLoRA: Federated Fine-Tuning Large Language Models with Heterogeneous Low-Rank Adaptations", NeurIPS 2024,
arXiv:2409.05976.
"""

from collections.abc import Iterable

from torch import Tensor

from fedft.adapters.lora import LoRA
from fedft.arithmetic import lowrank, named_pairs
from fedft.contract import Handle, Layout, Turn
from fedft.recipe import Recipe, product_norm
from fedft.strategies.parts import moving_base
from fedft.training.first_order import FirstOrder
from fedft.update import Update

SPACE = LoRA()


def flora() -> Recipe:
    """Exact aggregation for unlike ranks; a head, if there is one, is averaged."""
    return Recipe(
        "flora",
        SPACE,
        aggregate=stacked,
        local=FirstOrder(send="value"),
        initial=_nothing_yet,
        server=moving_base.merge,
        downlink=moving_base.since,
        receive=moving_base.catch_up,
        start=_restart,
        linear=False,
        reveals_clients=True,
        unlike_ranks=True,
        upload_kind="values",
        norm=product_norm,
        downlink_is_increment=True,
    )


def stacked(updates: Iterable[Update]) -> dict[str, Tensor]:
    """The stack of all pairs with p_k on B, and the p_k-mean of everything that is not a pair."""
    pairs, rest = named_pairs.pairs_and_mean((u.delta, u.num_examples) for u in updates)
    return named_pairs.to_names({m: lowrank.stack(ds) for m, ds in pairs.items()}) | rest


def _nothing_yet(layout: Layout, rank: int, seed: int) -> dict[str, Tensor]:
    return moving_base.nothing_yet(layout) | {
        n: x for n, x in SPACE.initial(layout, rank, seed).items() if n in layout.head
    }


def _restart(handle: Handle, turn: Turn) -> None:
    """W = w0 + the sum; A a fresh draw of this client, B zero: the function is unchanged."""
    pairs, head = named_pairs.split(turn.held)
    handle.set_base_change(pairs, key=turn.held_digest)
    handle.write({**SPACE.initial(handle.layout, turn.plan.shape, turn.seed), **head})
