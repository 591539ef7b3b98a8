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
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fedft import check
from fedft.arithmetic import sparse
from fedft.arithmetic.named_pairs import A_SUFFIX, B_SUFFIX
from fedft.arithmetic.tensors import Tensors
from fedft.compression.error_feedback import ErrorFeedback, Sent
from fedft.errors import RejectedUpdate
from fedft.recipe import Handle, Layout, LoRA, Next, Recipe, State, Trained, Turn
from fedft.update import Plan, Spec, TensorSpec, Update

OWNER, FIRST, SECOND = "flasc", "m", "v"
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
        LoRA((B_SUFFIX,) if freeze_a else (A_SUFFIX, B_SUFFIX)),
        density_down,
        density_up,
        score == "normalised",
        weights == "uniform" or reference,
    )
    server = Server(server_optimizer == "adamw", server_lr, beta1, beta2, 0.01 if reference else weight_decay)
    return Recipe(
        "flasc",
        topk.space,
        aggregate=topk.aggregate,
        uploads=(ErrorFeedback(topk) if error_feedback else Sent(topk),),
        initial=topk.initial,
        server=server.step,
        downlink=topk.downlink,
        start=topk.start,
        upload=topk.spec,
        admit=one_bit_per_value,
        upload_kind="numbers",
        linear=False,  # every client has positions of its own
        evaluation_has_own_state=True,
        keeps=error_feedback,
    )


@dataclass(frozen=True)
class TopK:
    """What travels, and how the model starts from it."""

    space: LoRA
    down: float
    up: float
    normalised: bool
    uniform: bool

    def initial(self, layout: Layout, rank: int, seed: int) -> dict[str, Tensor]:
        """x: the trained tensors of version 0, dense."""
        return {n: x for n, x in self.space.initial(layout, rank, seed).items() if n in self.space.spec(layout, rank)}

    def downlink(self, state: State, have: int | None, plan: Plan) -> Tensors:
        """The largest entries of x; all of them to one who only wants the model."""
        if have == state.version:
            return {}
        return sparse.packed(sparse.flat(state.tensors), self._largest(state.tensors, self.down if plan.steps else 1.0))

    def start(self, handle: Handle, turn: Turn) -> None:
        """What came at its positions, zero elsewhere; a frozen A as the run's seed draws it."""
        shapes = {n: t.shape for n, t in self.space.spec(handle.layout, turn.plan.shape).items()}
        x = sparse.unpacked(turn.held)[: sum(map(math.prod, shapes.values()))].float()
        fixed = self.space.initial(handle.layout, turn.plan.shape, turn.run_seed)
        handle.write({**{n: fixed[n] for n in fixed.keys() - shapes}, **sparse.shaped(x, shapes)})

    def spec(self, layout: Layout, plan: Plan) -> Spec:
        """Exactly ceil(q P) values and one bit for each of the P positions."""
        entries = sum(math.prod(t.shape) for t in self.space.spec(layout, plan.shape).values())
        values = TensorSpec((sparse.count(self.up, entries),))
        return {"values": values, "support": TensorSpec((sparse.words(entries),), "int32")}

    def send(self, changes: Tensors, turn: Turn, handle: Handle) -> Trained:
        """The largest entries of the changes, and where they are."""
        return Trained(sparse.packed(sparse.flat(changes), self._largest(changes, self.up)), {})

    def read(self, sent: Tensors, changes: Tensors, turn: Turn) -> dict[str, Tensor]:
        """Those entries, and zeros."""
        whole = sparse.unpacked(sent).float()
        return sparse.shaped(
            whole[: sum(x.numel() for x in changes.values())], {n: tuple(x.shape) for n, x in changes.items()}
        )

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

    def step(self, state: State, change: Tensors) -> Next:
        """One step of AdamW (Loshchilov and Hutter) or of gradient descent; no entry moves at a gradient of zero."""
        x = sparse.flat(state.tensors).double()
        g, moments, zeros = -change["mean"][: len(x)].double(), {}, torch.zeros_like(x)
        x = x * (1 - self.lr * self.weight_decay)
        if self.adam:
            m = self.beta1 * state.drawer(OWNER).get(FIRST, zeros).double() + (1 - self.beta1) * g
            v = self.beta2 * state.drawer(OWNER).get(SECOND, zeros).double() + (1 - self.beta2) * g**2
            moments = {FIRST: m.float(), SECOND: v.float()}
            t = state.version + 1
            g = m / (1 - self.beta1**t) / ((v / (1 - self.beta2**t)).sqrt() + EPSILON)
        shapes = {n: tuple(t.shape) for n, t in state.tensors.items()}
        return Next(sparse.shaped((x - self.lr * g).float(), shapes), {OWNER: moments})


def one_bit_per_value(delta: Tensors, plan: Plan) -> None:
    """As many positions as values. Bits behind the last entry are no rule's business: nobody reads what they place."""
    if (bits := int(sparse.positions(delta["support"]).sum())) != len(delta["values"]):
        raise RejectedUpdate("spec_mismatch", f"support has {bits} positions for {len(delta['values'])} values")
