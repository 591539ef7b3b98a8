"""FedSA-LoRA: A learns what is general and is shared; B and a head learn what is local and stay with the client.

    client   A_k, B_k = train(A^t, B_k)              its model is W0 + B_k A^t; B_k = 0 when it first takes part
    server   A^{t+1} = sum_k p_k A_k                 uploads are the deltas of A; B_k never travels

There is no global model: every client evaluates its own. B_k (with a head's change since w0) is kept on the client from
turn to turn, unchanged while it does not take part. After a long absence B_k fits an A that is gone; `realign` starts
from the least-squares fit B_k A_old A_new^+ to the product that it was trained in.

`global_b="mean"` is not the method: values of B and head travel as well, and their mean is where a client that kept
nothing starts, and what is exported. `share_b` is FedIT.

Guo et al., "Selective Aggregation for Low-Rank Adaptation in Federated Learning", ICLR 2025, arXiv:2410.01463.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from fedft import check
from fedft.arithmetic.named_pairs import A_SUFFIX, B_SUFFIX
from fedft.arithmetic.tensors import Tensors
from fedft.recipe import Course, FirstOrder, Handle, Layout, Learning, LoRA, Recipe, State, Trained, Turn, add
from fedft.strategies.fedit import fedit
from fedft.update import Plan, Spec

SPACE, OWNER = LoRA(), "fedsa_lora"


def fedsa_lora(*, realign: bool = False, share_b: bool = False, global_b: Literal["none", "mean"] = "none") -> Recipe:
    """Shared A, private B and head, one rank for all clients.

    Args:
        realign: a client that comes back fits its B to the A of today (off in the paper).
        share_b: B and the head are shared like A: FedIT.
        global_b: `mean` also averages the clients' B and heads, for a model to export; they then leave the clients.
    """
    check.one_of(("none", "mean"), global_b=global_b)
    if share_b and (realign or global_b != "none"):
        raise ValueError("share_b leaves nothing private; wanted realign = false and global_b = 'none'")
    if share_b:
        return replace(fedit(), name="fedsa_lora")
    private = Private(realign, sends=global_b == "mean")
    return Recipe(
        "fedsa_lora",
        SPACE,
        local=FirstOrder(terms=(private,)),
        initial=private.initial,
        server=private.server if private.sends else add,
        start=private.start,
        upload=private.spec,
        upload_kind="values" if private.sends else "changes",
        ring_summable=True,
        keeps=True,
        personal=True,
    )


@dataclass(frozen=True)
class Private:
    """What stays on the client: every trained tensor but A; with `realign`, a copy of the A it was trained with."""

    realign: bool
    sends: bool

    def initial(self, layout: Layout, rank: int, seed: int) -> dict[str, Tensor]:
        """A from the seed (and zeros for B and head where they are averaged)."""
        return {n: x for n, x in SPACE.initial(layout, rank, seed).items() if self.travels(n)}

    def spec(self, layout: Layout, plan: Plan) -> Spec:
        """A only, unless `sends`."""
        return {n: t for n, t in SPACE.spec(layout, plan.shape).items() if self.travels(n)}

    def travels(self, name: str) -> bool:
        """Whether a trained tensor leaves its client."""
        return self.sends or name.endswith(A_SUFFIX)

    def start(self, handle: Handle, turn: Turn) -> None:
        """A from the server; B and head as this client left them, or the state's, or zero."""
        shapes = {n: t.shape for n, t in SPACE.spec(handle.layout, turn.plan.shape).items() if not n.endswith(A_SUFFIX)}
        fresh = {n: torch.zeros(shape) for n, shape in shapes.items()} | dict(turn.held)
        kept = turn.drawer(OWNER)
        own = {n: x for n, x in kept.items() if n in shapes}
        if {n: tuple(x.shape) for n, x in own.items()} != shapes:  # nothing yet, or of another rank
            own = {}
        handle.write({**fresh, **(_aligned(own, kept, turn.held) if self.realign else own)})

    def begin(self, learning: Learning, turn: Turn) -> Course:
        """Ordinary training of both factors."""
        return _Parting(self)

    def server(self, state: State, change: Tensors) -> Tensors:
        """A moves by the mean delta; B and head, if they come, are replaced by the mean of values."""
        return {n: x + change[n] if n.endswith(A_SUFFIX) else change[n] for n, x in state.tensors.items()}


class _Parting(Course):
    """The end of a turn: what is private is taken out of what is sent."""

    def __init__(self, private: Private) -> None:
        self._private = private

    def finish(self, trained: Trained, handle: Handle) -> Trained:
        """Send A, and the values of the rest if they travel; keep the rest."""
        now, private = handle.read(), self._private
        kept = {n: x for n, x in now.items() if private.realign or not n.endswith(A_SUFFIX)}
        sent = {n: x if n.endswith(A_SUFFIX) else now[n] for n, x in trained.delta.items() if private.travels(n)}
        return Trained(sent, trained.metrics, {**trained.kept, OWNER: kept})


def _aligned(own: Tensors, kept: Tensors, held: Tensors) -> dict[str, Tensor]:
    """argmin_B |B A_new - B_k A_old| for every B_k; heads as they are."""
    found = dict(own)
    for b in (n for n in own if n.endswith(B_SUFFIX)):
        a = b.removesuffix(B_SUFFIX) + A_SUFFIX
        if a in kept and not torch.equal(kept[a], held[a]):
            fit = own[b].double() @ kept[a].double() @ torch.linalg.pinv(held[a].double(), rtol=1e-6)
            found[b] = fit.float()
    return found
