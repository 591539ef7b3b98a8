"""HetLoRA: every client trains the first r_k ranks, gives up its tail where that is useless, and counts by its energy.

    start    A_k = A[:r_k],  B_k = B[:, :r_k]                                          truncation
    local    f_k + lam sum_m |B_k[:, q:]|_F |A_k[q:]|_F,   q = floor(gamma r_k)        decay of the tail
    prune    r_k := q, for good, where the tail's product of norms ended smaller than it started
    server   A = sum_k w_k pad(A_k),  B = sum_k w_k pad(B_k),   w_k = |B_k A_k|_F / sum_j |B_j A_j|_F   per module

A client uploads its factors at the rank it was given, the pruned tail zeroed, and one int32, "rank": what it keeps. The
server remembers it for itself; the client's next round is at that rank. Padding
dilutes: rows that only some clients hold shrink by the others' weight in every round. Energy can be made: who scales a
change by c scales its weight by c as well (`max_share` bounds that). Where all changes are zero, and for a head, the
weights are p_k = n_k / sum n_j. A row that ends up zero in both factors could never learn again: it keeps the state's
row of A, which changes no product. Rows beyond what the cohort was asked for stay as they are; those that one of it
gave up are zeros of its own, also for clients who were not asked.

Cho, Liu, Xu, Fahrezi, Joshi, "Heterogeneous LoRA for Federated Fine-tuning of On-Device Foundation Models", EMNLP 2024,
arXiv:2401.06432. Published without code; the rank is the client's, one for all modules.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from fedft import check
from fedft.arithmetic import lowrank, named_pairs
from fedft.arithmetic.lowrank import LowRank
from fedft.arithmetic.named_pairs import A_SUFFIX, B_SUFFIX
from fedft.arithmetic.tensors import Tensors
from fedft.errors import RejectedUpdate
from fedft.recipe import (
    Course,
    FirstOrder,
    Handle,
    Layout,
    Learning,
    LoRA,
    Member,
    Next,
    Recipe,
    Shape,
    State,
    Trained,
    Turn,
    Work,
    cut_to_rank,
)
from fedft.strategies.fedit import keep_largest_rank
from fedft.update import Plan, Spec, TensorSpec, Update

SPACE = LoRA()
RANK = "rank"
OWNER, OF = "hetlora", "rank."  # "rank.<client>" in a change


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
        local=FirstOrder("value", terms=(SelfPruning(gamma, penalty),)),
        server=_server,
        downlink=cut_to_rank,
        upload=_upload,
        admit=_admit,
        plan=_plan,
        linear=False,
        unlike_ranks=True,
        upload_kind="values",
    )


@dataclass(frozen=True)
class SelfPruning:
    """The tail's penalty in every step; at the end the tail is zeroed if its product of norms has shrunk."""

    gamma: float
    penalty: float

    def begin(self, learning: Learning, turn: Turn) -> Course:
        """With the head of this client's rank."""
        head = max(1, int(self.gamma * turn.plan.rank + 1e-9))  # 0.29 * 100 is 28.999999999999996
        return _Pruning(learning, head if self.penalty else turn.plan.rank, turn.plan.rank, self.penalty)


class _Pruning(Course):
    def __init__(self, learning: Learning, head: int, rank: int, penalty: float) -> None:
        self._live, self._head, self._rank, self._penalty = learning.live, head, rank, penalty
        in_unit = {n: p.detach().to("cpu", torch.float32) * learning.scale(n) for n, p in self._live.items()}
        self._before = tail(in_unit, head)
        self._modules = [n.removesuffix(A_SUFFIX) for n in self._live if n.endswith(A_SUFFIX)] if head < rank else []

    def step(self) -> None:
        """d |b| |a| / da = |b| a / |a|; zero where a norm is zero (B in the first step)."""
        for m in self._modules:
            A, B = self._live[m + A_SUFFIX], self._live[m + B_SUFFIX]
            a, b = A.detach()[self._head :], B.detach()[:, self._head :]
            if a.any() and b.any() and A.grad is not None and B.grad is not None:
                A.grad[self._head :] += self._penalty * b.norm() / a.norm() * a
                B.grad[:, self._head :] += self._penalty * a.norm() / b.norm() * b

    def finish(self, trained: Trained, handle: Handle) -> Trained:
        """Values, and "rank"."""
        rank, sent = self._rank, trained.delta
        if tail(sent, self._head) < self._before:
            rank, sent = self._head, _zeroed(sent, self._head)
        return Trained(sent | {RANK: torch.tensor([rank], dtype=torch.int32)}, trained.metrics, trained.kept)


def tail(factors: Tensors, head: int) -> float:
    """sum_m |B[:, head:]|_F |A[head:]|_F."""
    pairs = named_pairs.split(factors)[0].values()
    return sum(float(d.B[:, head:].double().norm() * d.A[head:].double().norm()) for d in pairs)


def _zeroed(factors: Tensors, rank: int) -> dict[str, Tensor]:
    """The same shapes with ranks from `rank` on zero; everything that is not a pair as it is."""
    pairs, rest = named_pairs.split(factors)
    cut = {m: LowRank(d.A[:rank], d.B[:, :rank]) for m, d in pairs.items()}
    return named_pairs.to_names({m: lowrank.pad(d, pairs[m].rank) for m, d in cut.items()}) | rest


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

    pairs, rest = named_pairs.pairs_and_mean(values())
    mean = {}
    for m, items in pairs.items():
        shares = shares_of(items, by_norm, max_share)
        d = lowrank.mean_factors(lowrank.pad_to_largest((d, w) for (d, _), w in zip(items, shares, strict=True)))
        if normalise_rows:
            ranks = [min(h, d.rank) for h, (d, _) in zip(held, items, strict=True)]
            of_row = [sum(w for w, r in zip(shares, ranks, strict=True) if r > j) or 1.0 for j in range(d.rank)]
            d = LowRank(d.A / torch.tensor(of_row)[:, None], d.B / torch.tensor(of_row))
        mean[m] = d
    return named_pairs.to_names(mean) | rest | said


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


def _server(state: State, change: Tensors) -> Next:
    """The mean factors; and the ranks that were said, beside those known before."""
    news = {n.removeprefix(OF): x for n, x in change.items() if n.startswith(OF)}
    mean = {n: x for n, x in change.items() if not n.startswith(OF)}
    return Next(keep_largest_rank(state, mean), {OWNER: {**state.drawer(OWNER), **news}})


def _plan(state: State, roster: Mapping[str, Member]) -> dict[str, Work]:
    """The rank that a client said last, if it is below the run file's."""
    known = {c: int(x) for c, x in state.drawer(OWNER).items() if c in roster}
    return {c: Work(shape=Shape(min(rank, roster[c].rank))) for c, rank in known.items()}


def _upload(layout: Layout, plan: Plan) -> Spec:
    return SPACE.spec(layout, plan.shape) | {RANK: TensorSpec((1,), "int32")}


def _admit(delta: Tensors, plan: Plan) -> None:
    if not 1 <= int(delta[RANK]) <= plan.rank:
        raise RejectedUpdate("out_of_bounds", f"rank is {int(delta[RANK])}, wanted 1 to {plan.rank}: ranks never grow")
