"""Clients that give up the tail of their ranks, for good, and a server that remembers what rank each of them has left.

    local    f_k + lam sum_m |B_k[:, q:]|_F |A_k[q:]|_F,   q = floor(gamma r_k)        decay of the tail
    prune    r_k := q, where the tail's product of norms ended smaller than it started

A client uploads its factors at the rank it was given, the pruned tail zeroed, and one int32, "rank": what it keeps. A
change has that as "rank.<client>"; the server's drawer as "<client>", and the client's next plan is at that rank.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fedft.adapters.lora import LoRA
from fedft.arithmetic import lowrank
from fedft.arithmetic.named_pairs import A_SUFFIX, B_SUFFIX, split, to_names
from fedft.arithmetic.tensors import Tensors
from fedft.errors import RejectedUpdate
from fedft.recipe import Course, Handle, Layout, Learning, Next, Roster, Shape, State, Trained, Turn, Work
from fedft.strategies.parts.unlike_ranks import keep_largest_rank
from fedft.update import Plan, Spec, TensorSpec, Update

RANK, OF = "rank", "rank."  # in an upload; of a client, in a change


@dataclass(frozen=True)
class SelfPruning:
    """The tail's penalty in every step; at the end the tail is zeroed if its product of norms has shrunk."""

    gamma: float
    penalty: float
    """lam, on the adapter's own scale; 0: nothing is pruned."""

    def begin(self, learning: Learning, turn: Turn) -> Course:
        """The pruning of a client of this rank; its head has floor(gamma rank) ranks, at least one."""
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
        """The values, and "rank"."""
        rank, sent = self._rank, trained.delta
        if tail(sent, self._head) < self._before:
            rank, sent = self._head, _zeroed(sent, self._head)
        return Trained(sent | {RANK: torch.tensor([rank], dtype=torch.int32)}, trained.metrics, trained.kept)


def tail(factors: Tensors, head: int) -> float:
    """sum_m |B[:, head:]|_F |A[head:]|_F of all pairs among the factors."""
    ends = [d.ranks(head).double() for d in split(factors)[0].values()]
    return sum(float(d.B.norm() * d.A.norm()) for d in ends)


def _zeroed(factors: Tensors, rank: int) -> dict[str, Tensor]:
    """Tensors of the same shapes whose pairs are zero from `rank` on."""
    pairs, rest = split(factors)
    return to_names({m: lowrank.pad(d.ranks(stop=rank), d.rank) for m, d in pairs.items()}) | rest


def upload(layout: Layout, plan: Plan) -> Spec:
    """The factors at the plan's rank, a head, and "rank"."""
    return LoRA().spec(layout, plan.shape) | {RANK: TensorSpec((1,), "int32")}


def admit(delta: Tensors, plan: Plan) -> None:
    """Raise RejectedUpdate unless "rank" is between 1 and the plan's."""
    if not 1 <= int(delta[RANK]) <= plan.rank:
        raise RejectedUpdate("out_of_bounds", f"rank is {int(delta[RANK])}, wanted 1 to {plan.rank}: ranks never grow")


def rank_of(update: Update) -> int:
    """The rank that a client keeps; without "rank" (an update made by hand) more than any pair has."""
    return int(update.delta[RANK]) if RANK in update.delta else 2**31


def values_of(update: Update) -> dict[str, Tensor]:
    """The values that a client uploaded, zero beyond the rank that it keeps."""
    return _zeroed({n: x for n, x in update.delta.items() if n != RANK}, rank_of(update))


def rank_said(update: Update) -> dict[str, Tensor]:
    """The rank that a client said, as a change has it; nothing of a client without a name, or made by hand."""
    return {OF + update.client: update.delta[RANK]} if RANK in update.delta and update.client else {}


@dataclass(frozen=True)
class Memory:
    """The server's memory of ranks, in the drawer `owner`."""

    owner: str

    def server(self, state: State, change: Tensors) -> Next:
        """The state with the values of the change; and the ranks that were said, beside those known before."""
        news = {n.removeprefix(OF): x for n, x in change.items() if n.startswith(OF)}
        values = {n: x for n, x in change.items() if not n.startswith(OF)}
        return Next(keep_largest_rank(state, values), {self.owner: {**state.drawer(self.owner), **news}})

    def plan(self, state: State, roster: Roster) -> dict[str, Work]:
        """The rank that a client said last, if it is below the run file's."""
        known = {c: int(x) for c, x in state.drawer(self.owner).items() if c in roster}
        return {c: Work(shape=Shape(min(rank, roster[c].rank))) for c, rank in known.items()}
