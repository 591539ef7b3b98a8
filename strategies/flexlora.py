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

from dataclasses import dataclass
from typing import Literal

from fedft import check
from fedft.adapters.lora import LoRA
from fedft.arithmetic import lowrank, named_pairs
from fedft.arithmetic.lowrank import LowRank
from fedft.arithmetic.tensors import Tensors
from fedft.recipe import Next, Recipe, State, cut_to_rank, product_norm
from fedft.strategies.flora import stacked
from fedft.training.first_order import FirstOrder

OWNER, LOST, MOMENTUM = "flexlora", "lost.", "momentum."


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
    check.at_least(0, momentum=momentum)
    check.above(0, server_lr=server_lr)
    if momentum >= 1:
        raise ValueError(f"expected momentum < 1, got {momentum}")
    return Recipe(
        "flexlora",
        LoRA(),
        aggregate=stacked,
        local=FirstOrder(send="value"),
        server=Redistribute(SHARE_OF_A[gauge], feedback, momentum, server_lr),
        downlink=cut_to_rank,
        linear=False,
        unlike_ranks=True,
        upload_kind="values",
        norm=product_norm,
    )


SHARE_OF_A = {"b": 0.0, "balanced": 0.5, "a": 1.0}
"""Exponent of the singular values on A; B has the rest."""


@dataclass(frozen=True)
class Redistribute:
    """(state, D* as factors) -> the pair at the state's rank, and what the server remembers."""

    share_of_a: float
    feedback: bool
    momentum: float
    server_lr: float

    def __call__(self, state: State, change: Tensors) -> Next:
        """The next version, and what is remembered of it."""
        old, (pairs, rest) = named_pairs.split(state.tensors)[0], named_pairs.split(change)
        known = named_pairs.split(state.drawer(OWNER))[0]
        new: dict[str, LowRank] = {}
        memory: dict[str, LowRank] = {}
        for m, wanted in pairs.items():
            if self.momentum or self.server_lr != 1:
                step = wanted + -old[m]
                if MOMENTUM + m in known:
                    step = step + self.momentum * known[MOMENTUM + m]
                step = step.shortened()
                wanted = old[m] + self.server_lr * step
                memory |= {MOMENTUM + m: step} if self.momentum else {}
            if self.feedback and LOST + m in known:
                wanted = wanted + known[LOST + m]
            kept, lost = cut_in_two(wanted, old[m].rank, self.share_of_a, rest=self.feedback)
            new[m] = lowrank.padded_to(lowrank.pad(kept, old[m].rank), old[m])
            memory |= {LOST + m: lost} if self.feedback else {}
        return Next({**state.tensors, **named_pairs.to_names(new), **rest}, {OWNER: named_pairs.to_names(memory)})


def cut_in_two(d: LowRank, rank: int, share_of_a: float, rest: bool = True) -> tuple[LowRank, LowRank]:
    """(the best approximation of rank <= `rank`, the rest): together `d`, but for what float32 cannot hold.

    Without `rest` only what is kept is computed, several times faster, and the second one has rank 0.
    """
    u, s, v = d.svd(None if rest else rank)
    there = int((s > s[0] * 2**-24).sum()) if s.numel() else 0
    a, b = (s[:, None] ** share_of_a * v).to(d.A.dtype), (u * s ** (1 - share_of_a)).to(d.B.dtype)
    cut = min(rank, there)
    return LowRank(a[:cut], b[:, :cut]), LowRank(a[cut:there], b[:, cut:there])
