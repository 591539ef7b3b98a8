"""HetLoRA: every client trains the first r_k ranks, gives up its tail where that is useless, and counts by its energy.

    start    A_k = A[:r_k],  B_k = B[:, :r_k]                                          truncation
    local    f_k + lam sum_m |B_k[:, q:]|_F |A_k[q:]|_F,   q = floor(gamma r_k)        decay of the tail
    prune    r_k := q, for good, where the tail's product of norms ended smaller than it started
    server   A = sum_k w_k pad(A_k),  B = sum_k w_k pad(B_k),   w_k = |B_k A_k|_F / sum_j |B_j A_j|_F   per module

A client uploads its factors at the rank it was given, the pruned tail zeroed, and one int32, "rank": what it keeps. The
server remembers it as "rank.<client>", which never travels down; the client's next round is at that rank. Padding
dilutes: rows that only some clients hold shrink by the others' weight in every round. Energy can be made: who scales a
change by c scales its weight by c as well (`max_share` bounds that). Where all changes are zero, and for a head, the
weights are p_k = n_k / sum n_j. A row that ends up zero in both factors could never learn again: it keeps the state's
row of A, which changes no product. Rows beyond what the cohort was asked for stay as they are; those that one of it
gave up are zeros of its own, also for clients who were not asked.

Cho, Liu, Xu, Fahrezi, Joshi, "Heterogeneous LoRA for Federated Fine-tuning of On-Device Foundation Models", EMNLP 2024,
arXiv:2401.06432. Published without code; the rank is the client's, one for all modules.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from fedft import check
from fedft.adapters.lora import LoRA
from fedft.arithmetic import lowrank
from fedft.arithmetic.lowrank import A_SUFFIX, B_SUFFIX, LowRank
from fedft.arithmetic.tensors import Tensors
from fedft.contract import Batch, Handle, Layout, State, Trained, Turn
from fedft.errors import RejectedUpdate
from fedft.recipe import Recipe, cut_to_rank
from fedft.strategies.fedit import keep_largest_rank
from fedft.strategies.fedprox import with_adjust
from fedft.training.first_order import FirstOrder, Live
from fedft.update import Plan, Spec, TensorSpec, Update

SPACE = LoRA()
RANK = "rank"
OF = "rank."  # "rank.<client>" in the state


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
    return Recipe(
        "hetlora",
        SPACE,
        aggregate=partial(aggregate, by_norm=weights == "norm", max_share=max_share, normalise_rows=normalise_rows),
        local=SelfPruning(gamma, penalty, FirstOrder("value")),
        server=_server,
        downlink=_without_ranks,
        upload=_upload,
        admit=_admit,
        rank=_rank,
        linear=False,
        unlike_ranks=True,
        sends="values",
    )


@dataclass(frozen=True)
class SelfPruning:
    """Training with the tail's penalty; then the tail is zeroed if its product of norms has shrunk."""

    gamma: float
    penalty: float
    inner: FirstOrder

    def __call__(self, handle: Handle, batches: Iterator[Batch], turn: Turn) -> Trained:
        """`turn.plan.steps` steps; uploads values and "rank"."""
        rank = turn.plan.rank
        head = max(1, int(self.gamma * rank + 1e-9)) if self.penalty else rank  # 0.29 * 100 is 28.999999999999996
        before = tail(handle.read(), head)
        adjust = partial(_decay, head=head, penalty=self.penalty)
        step = with_adjust(self.inner, adjust, "hetlora", "hetlora") if head < rank else self.inner
        sent, metrics, _ = step(handle, batches, turn)
        if tail(sent, head) < before:
            rank, sent = head, _zeroed(sent, head)
        return Trained(sent | {RANK: torch.tensor([rank], dtype=torch.int32)}, metrics)


def tail(factors: Tensors, head: int) -> float:
    """sum_m |B[:, head:]|_F |A[head:]|_F."""
    pairs = lowrank.split(factors)[0].values()
    return sum(float(d.B[:, head:].double().norm() * d.A[head:].double().norm()) for d in pairs)


def _decay(live: Live, turn: Turn, head: int, penalty: float) -> Callable[[], None]:
    modules = [n.removesuffix(A_SUFFIX) for n in live if n.endswith(A_SUFFIX)]
    pairs = [(live[m + A_SUFFIX], live[m + B_SUFFIX]) for m in modules]

    def pull() -> None:
        """d |b| |a| / da = |b| a / |a|; zero where a norm is zero (B in the first step)."""
        for A, B in pairs:
            a, b = A.detach()[head:], B.detach()[:, head:]
            if a.any() and b.any() and A.grad is not None and B.grad is not None:
                A.grad[head:] += penalty * b.norm() / a.norm() * a
                B.grad[:, head:] += penalty * a.norm() / b.norm() * b

    return pull


def _zeroed(factors: Tensors, rank: int) -> dict[str, Tensor]:
    """The same shapes with ranks from `rank` on zero; everything that is not a pair as it is."""
    pairs, rest = lowrank.split(factors)
    cut = {m: LowRank(d.A[:rank], d.B[:, :rank]) for m, d in pairs.items()}
    return lowrank.named({m: lowrank.pad(d, pairs[m].rank) for m, d in cut.items()}) | rest


def aggregate(
    updates: Iterable[Update], by_norm: bool = True, max_share: float | None = None, normalise_rows: bool = False
) -> dict[str, Tensor]:
    """The weighted mean of padded factors, the p_k-mean of the rest, and "rank.<client>" of who said its rank.

    Without "rank" (made by hand) a client holds the rank of its factors; without a name nothing is remembered.
    """
    held: list[int] = []
    said: dict[str, Tensor] = {}

    def values() -> Iterator[tuple[Tensors, float]]:
        for u in updates:
            delta = {n: x for n, x in u.delta.items() if n != RANK}
            held.append(int(u.delta[RANK]) if RANK in u.delta else 2**31)
            if RANK in u.delta and u.client:
                said[OF + u.client] = u.delta[RANK]
            yield _zeroed(delta, held[-1]), u.num_examples

    pairs, rest = lowrank.gathered(values())
    mean = {}
    for m, items in pairs.items():
        shares = shares_of(items, by_norm, max_share)
        d = lowrank.mean_factors(lowrank.padded((d, w) for (d, _), w in zip(items, shares, strict=True)))
        if normalise_rows:
            ranks = [min(h, d.rank) for h, (d, _) in zip(held, items, strict=True)]
            of_row = [sum(w for w, r in zip(shares, ranks, strict=True) if r > j) or 1.0 for j in range(d.rank)]
            d = LowRank(d.A / torch.tensor(of_row)[:, None], d.B / torch.tensor(of_row))
        mean[m] = d
    return lowrank.named(mean) | rest | said


def shares_of(items: list[tuple[LowRank, float]], by_norm: bool, max_share: float | None) -> list[float]:
    """The weights of one module's pairs; they sum to one."""
    weights = [d.norm() for d, _ in items] if by_norm else []
    total = sum(weights)
    if not total > 0:
        weights = [float(n) for _, n in items]
        total = sum(weights)
    shares = [w / total for w in weights]
    return shares if max_share is None else capped(shares, max_share)


def capped(shares: list[float], most: float) -> list[float]:
    """None above `most`: what is above goes to the others in proportion, or equally where they have none.

    All are equal where their number does not allow `most`.
    """
    if most * len(shares) <= 1:
        return [1 / len(shares)] * len(shares)
    new, full = shares, set[int]()
    while above := {k for k, w in enumerate(new) if w > most * (1 + 1e-12)}:
        full |= above
        free, rest = sum(w for k, w in enumerate(shares) if k not in full), 1 - most * len(full)
        others = len(shares) - len(full)
        new = [most if k in full else (w * rest / free if free else rest / others) for k, w in enumerate(shares)]
    return new


def _without_ranks(state: State, have: int | None, plan: Plan) -> Tensors:
    return cut_to_rank(State(state.version, _known(state.tensors)[1]), have, plan)


def _known(tensors: Tensors) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(ranks by "rank.<client>", everything else); clients choose their names, which may end like a factor's."""
    ranks = {n: x for n, x in tensors.items() if n.startswith(OF)}
    return ranks, {n: x for n, x in tensors.items() if n not in ranks}


def _server(state: State, change: Tensors) -> Tensors:
    ranks, factors = _known(state.tensors)
    news, mean = _known(change)
    return {**keep_largest_rank(State(state.version, factors), mean), **ranks, **news}


def _rank(state: State, client: str, configured: int) -> int:
    known = state.tensors.get(OF + client)
    return configured if known is None else min(configured, int(known))


def _upload(layout: Layout, plan: Plan) -> Spec:
    return SPACE.spec(layout, plan.rank) | {RANK: TensorSpec((1,), "int32")}


def _admit(delta: Tensors, plan: Plan) -> None:
    if not 1 <= int(delta[RANK]) <= plan.rank:
        raise RejectedUpdate("out_of_bounds", f"rank is {int(delta[RANK])}, wanted 1 to {plan.rank}: ranks never grow")
