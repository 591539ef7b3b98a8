"""FLASC: LoRA trained densely, sent sparsely. Only the largest entries travel, both ways, chosen afresh in every round.

    x         all factors (and a head) as one vector of P entries, names in canonical order
    down      m = top_{ceil(q_down P)}(|x|);          a client starts from m * x, zero elsewhere
    client    d_k = dense training from m * x;        m_k = top_{ceil(q_up P)}(|d_k|);   uploads m_k * d_k
    server    x := AdamW(x, gradient -sum_k p_k m_k * d_k)                  on the dense x; moments never travel

What travels is exactly ceil(q P) values, and P bits that say where (`fedft.arithmetic.sparse`). With both densities 1
this is FedAvg with the server's optimiser. Only the server has all of x: clients train from what they are sent. What is
evaluated and exported (a plan of no steps) is x itself.

As long as |B| is small beside |A| a plain top-k sends A only; `score="normalised"` divides by each tensor's rms first.

Kuo, Raje, Rajesh, Smith, "Federated LoRA with Sparse Communication", 2024, arXiv:2406.05233.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fedft import check
from fedft.adapters.lora import LoRA
from fedft.arithmetic import sparse
from fedft.arithmetic.lowrank import A_SUFFIX, B_SUFFIX
from fedft.arithmetic.tensors import Tensors
from fedft.contract import Batch, Handle, Layout, LocalStep, State, Trained, Turn
from fedft.errors import RejectedUpdate
from fedft.recipe import Recipe
from fedft.training.first_order import FirstOrder
from fedft.update import Plan, Spec, TensorSpec, Update

FIRST, SECOND = "adam.m", "adam.v"
EPSILON = 1e-8


def flasc(
    *,
    density_down: float = 0.25,
    density_up: float = 0.25,
    score: Literal["plain", "normalised"] = "plain",
    freeze_a: bool = False,
    server_optimizer: Literal["adamw", "sgd"] = "adamw",
    server_lr: float = 1e-3,
    beta1: float = 0.9,
    beta2: float = 0.999,
    weight_decay: float = 0.0,
    weights: Literal["examples", "uniform"] = "examples",
    error_feedback: bool = False,
    variant: Literal["exact", "reference"] = "exact",
) -> Recipe:
    """Top-k of LoRA both ways.

    Args:
        density_down: share of the entries that a client receives, above 0 to 1.
        density_up: share of the entries of its change that a client sends, above 0 to 1.
        score: what is ranked: magnitudes, or magnitudes over the root mean square of their tensor.
        freeze_a: A stays as the run's seed draws it and never travels; only B (and a head) is trained and sparse.
        server_optimizer: `adamw`, or `sgd` for x + server_lr * mean change.
        server_lr: of the server's optimiser; the published 0.001 is for hundreds of rounds, `sgd` at 1 suits a few.
        beta1: of the server's AdamW, decay of the first moment.
        beta2: of the server's AdamW, decay of the second moment.
        weight_decay: of the server's optimiser, on all entries.
        weights: `examples` for p_k = n_k / sum n_j, or `uniform`.
        error_feedback: a client adds what it did not send to its next change (off in the paper).
        variant: `exact`, or `reference` for the published code's uniform weights and server weight decay of 0.01.
    """
    if not (0 < density_down <= 1 and 0 < density_up <= 1):
        raise ValueError(f"expected densities above 0 and at most 1, got {density_down} down and {density_up} up")
    check.one_of(("plain", "normalised"), score=score)
    check.one_of(("adamw", "sgd"), server_optimizer=server_optimizer)
    check.above(0, server_lr=server_lr)
    check.between(0, 1 - 2**-24, beta1=beta1, beta2=beta2)
    check.at_least(0, weight_decay=weight_decay)
    check.one_of(("examples", "uniform"), weights=weights)
    check.one_of(("exact", "reference"), variant=variant)
    reference = variant == "reference"
    topk = TopK(
        FirstOrder(),
        LoRA((B_SUFFIX,) if freeze_a else (A_SUFFIX, B_SUFFIX)),
        density_down,
        density_up,
        score == "normalised",
        weights == "uniform" or reference,
        error_feedback,
    )
    server = Server(server_optimizer == "adamw", server_lr, beta1, beta2, 0.01 if reference else weight_decay)
    return Recipe(
        "flasc",
        topk.space,
        aggregate=topk.aggregate,
        local=topk,
        initial=lambda layout, rank, seed: server.initial(topk.initial(layout, rank, seed)),
        server=server.step,
        downlink=topk.downlink,
        start=topk.start,
        upload=topk.spec,
        admit=one_bit_per_value,
        sends="numbers",
        linear=False,  # every client has positions of its own
        evaluates_apart=True,
        keeps=error_feedback,
    )


@dataclass(frozen=True)
class TopK:
    """What travels, and how the model starts from it."""

    inner: LocalStep
    space: LoRA
    down: float
    up: float
    normalised: bool
    uniform: bool
    feedback: bool

    def initial(self, layout: Layout, rank: int, seed: int) -> dict[str, Tensor]:
        """x: the trained tensors of version 0, dense."""
        return {n: x for n, x in self.space.initial(layout, rank, seed).items() if n in self.space.spec(layout, rank)}

    def downlink(self, state: State, have: int | None, plan: Plan) -> Tensors:
        """The largest entries of x; all of them to one who only wants the model."""
        if have == state.version:
            return {}
        x = {n: t for n, t in state.tensors.items() if n not in (FIRST, SECOND)}
        return sparse.packed(sparse.flat(x), self._largest(x, self.down if plan.steps else 1.0))

    def start(self, handle: Handle, turn: Turn) -> None:
        """What came at its positions, zero elsewhere; a frozen A as the run's seed draws it."""
        shapes = {n: t.shape for n, t in self.space.spec(handle.layout, turn.plan.rank).items()}
        x = sparse.unpacked(turn.held)[: sum(map(math.prod, shapes.values()))].float()
        fixed = self.space.initial(handle.layout, turn.plan.rank, turn.run_seed)
        handle.write({**{n: fixed[n] for n in fixed.keys() - shapes}, **sparse.shaped(x, shapes)})

    def spec(self, layout: Layout, plan: Plan) -> Spec:
        """Exactly ceil(q P) values and one bit for each of the P positions."""
        entries = sum(math.prod(t.shape) for t in self.space.spec(layout, plan.rank).values())
        values = TensorSpec((sparse.count(self.up, entries),))
        return {"values": values, "support": TensorSpec((sparse.words(entries),), "int32")}

    def __call__(self, handle: Handle, batches: Iterator[Batch], turn: Turn) -> Trained:
        """Dense training; the largest entries of the change are sent."""
        delta, metrics, _ = self.inner(handle, batches, turn)
        unsent = turn.kept.get("unsent")
        if unsent is not None and len(unsent) == sum(x.numel() for x in delta.values()):
            delta = sparse.shaped(sparse.flat(delta) + unsent, {n: tuple(x.shape) for n, x in delta.items()})
        whole, chosen = sparse.flat(delta), self._largest(delta, self.up)
        kept = {"unsent": whole.masked_fill(chosen, 0)} if self.feedback else {}
        return Trained(sparse.packed(whole, chosen), metrics, kept)

    def aggregate(self, updates: Iterable[Update]) -> dict[str, Tensor]:
        """sum_k p_k m_k * d_k, dense: [32 ceil(P / 32)], zero behind P."""
        total, weight = torch.zeros(0, dtype=torch.float64), 0.0
        for u in updates:
            term, n = sparse.unpacked(u.delta), 1 if self.uniform else u.num_examples
            total = n * term + (total if weight else 0)
            weight += n
        if not weight:
            raise ValueError("expected at least one update, got none")
        return {"mean": (total / weight).float()}

    def _largest(self, x: Tensors, density: float) -> Tensor:
        """Which ceil(q P) entries of all tensors have the largest score: [P], bool."""
        scores = {n: t.abs() for n, t in x.items()}
        if self.normalised:
            rms = {n: t.double().square().mean().sqrt() for n, t in x.items()}
            scores = {n: t / rms[n] if rms[n] > 0 else t for n, t in scores.items()}
        return sparse.largest(sparse.flat(scores), density)


@dataclass(frozen=True)
class Server:
    """The server's optimiser on the dense vector; the mean change, negated, is its gradient."""

    adam: bool
    lr: float
    beta1: float
    beta2: float
    weight_decay: float

    def initial(self, x: dict[str, Tensor]) -> dict[str, Tensor]:
        """x, and moments that are zero."""
        moments = {n: torch.zeros_like(sparse.flat(x)) for n in (FIRST, SECOND)}
        return {**x, **moments} if self.adam else x

    def step(self, state: State, change: Tensors) -> Tensors:
        """One step of AdamW (Loshchilov and Hutter) or of gradient descent; no entry moves at a gradient of zero."""
        named = {n: t for n, t in state.tensors.items() if n not in (FIRST, SECOND)}
        x = sparse.flat(named).double()
        g, moments = -change["mean"][: len(x)].double(), {}
        x = x * (1 - self.lr * self.weight_decay)
        if self.adam:
            m = self.beta1 * state.tensors[FIRST].double() + (1 - self.beta1) * g
            v = self.beta2 * state.tensors[SECOND].double() + (1 - self.beta2) * g**2
            moments = {FIRST: m.float(), SECOND: v.float()}
            t = state.version + 1
            g = m / (1 - self.beta1**t) / ((v / (1 - self.beta2**t)).sqrt() + EPSILON)
        return {**sparse.shaped((x - self.lr * g).float(), {n: tuple(t.shape) for n, t in named.items()}), **moments}


def one_bit_per_value(delta: Tensors, plan: Plan) -> None:
    """As many positions as values. Bits behind the last entry are no rule's business: nobody reads what they place."""
    if (bits := int(sparse.positions(delta["support"]).sum())) != len(delta["values"]):
        raise RejectedUpdate("spec_mismatch", f"support has {bits} positions for {len(delta['values'])} values")
