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

from dataclasses import replace
from typing import Literal

from torch import Tensor

from fedft import check
from fedft.arithmetic import factor_fit
from fedft.arithmetic.lowrank import LowRank
from fedft.arithmetic.named_pairs import A_SUFFIX, B_SUFFIX
from fedft.recipe import FirstOrder, LoRA, Recipe, Tensors, add
from fedft.strategies.fedit import fedit
from fedft.strategies.parts.private_tensors import PrivateTensors

OWNER = "fedsa_lora"


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
    sends = global_b == "mean"
    private = PrivateTensors(OWNER, LoRA(), (A_SUFFIX,), sends, adapt=_aligned if realign else None)
    return Recipe(
        "fedsa_lora",
        LoRA(),
        local=FirstOrder(terms=(private,)),
        initial=private.initial,
        server=private.server if sends else add,
        start=private.start,
        upload=private.upload,
        download=private.download,
        upload_kind="values" if sends else "changes",
        ring_summable=True,
        bases="any",
        keeps=True,
        personal=True,
    )


def _aligned(own: Tensors, kept: Tensors, held: Tensors) -> dict[str, Tensor]:
    """argmin_B |B A_new - B_k A_old| for every B_k; heads as they are."""
    found = dict(own)
    for b in (n for n in own if n.endswith(B_SUFFIX)):
        a = b.removesuffix(B_SUFFIX) + A_SUFFIX
        if a in kept and not kept[a].equal(held[a]):
            found[b] = factor_fit.least_squares(LowRank(kept[a], own[b]), held[a])
    return found
