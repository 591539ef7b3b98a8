"""FLASC: LoRA trained densely, sent sparsely. Only the largest entries travel, both ways, chosen afresh in every round.

    x         all factors (and a head) as one vector of P entries, names in canonical order
    down      m = top_{ceil(q_down P)}(|x|);          a client starts from m * x, zero elsewhere
    client    d_k = dense training from m * x;        m_k = top_{ceil(q_up P)}(|d_k|);   uploads m_k * d_k
    server    x := AdamW(x, gradient -sum_k p_k m_k * d_k)                  on the dense x; moments never travel

What travels is exactly ceil(q P) values, and P bits that say where (`parts.largest_entries`). With both densities 1
this is FedAvg with the server's optimiser. Only the server has all of x: clients train from what they are sent. What is
evaluated and exported (a plan of no steps) is x itself.

As long as |B| is small beside |A| a plain top-k sends A only; `score="normalised"` divides by each tensor's rms first.

Kuo, Raje, Rajesh, Smith, "Federated LoRA with Sparse Communication", 2024, arXiv:2406.05233.
"""

from functools import partial
from typing import Literal

from fedft import check
from fedft.aggregation.server_optimizers import AdamW, GradientDescent, on_vector
from fedft.aggregation.sparse_mean import sparse_mean
from fedft.arithmetic.named_pairs import A_SUFFIX, B_SUFFIX
from fedft.compression.error_feedback import ErrorFeedback, Sent
from fedft.recipe import LoRA, Recipe
from fedft.strategies.parts.largest_entries import LargestEntries

OWNER = "flasc"


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
        beta1, beta2: of the server's AdamW, decays of the first and second moment.
        weight_decay: of the server's optimiser, on all entries.
        weights: `examples` for p_k = n_k / sum n_j, or `uniform`.
        error_feedback: a client adds what it did not send to its next change (off in the paper).
        variant: `exact`, or `reference`, the code: uniform weights, decay of 0.01, floor(q P) entries, one at least.
    """
    if not (0 < density_down <= 1 and 0 < density_up <= 1):
        raise ValueError(f"expected densities above 0 and at most 1, got {density_down} down and {density_up} up")
    check.one_of(("plain", "normalised"), score=score)
    check.one_of(("adamw", "sgd"), server_optimizer=server_optimizer)
    check.above(0, server_lr=server_lr)
    check.at_least(0, weight_decay=weight_decay)
    check.one_of(("examples", "uniform"), weights=weights)
    check.one_of(("exact", "reference"), variant=variant)
    reference = variant == "reference"
    adamw = AdamW(server_lr, beta1, beta2, decay := 0.01 if reference else weight_decay)
    space = LoRA((B_SUFFIX,) if freeze_a else (A_SUFFIX, B_SUFFIX))
    top_k = LargestEntries(space, density_down, density_up, score == "normalised", reference)
    return Recipe(
        "flasc",
        space,
        aggregate=partial(sparse_mean, uniform=weights == "uniform" or reference),
        uploads=(ErrorFeedback(top_k) if error_feedback else Sent(top_k),),
        initial=top_k.initial,
        server=on_vector(adamw if server_optimizer == "adamw" else GradientDescent(server_lr, decay), OWNER),
        downlink=top_k.downlink,
        download=top_k.download,
        start=top_k.start,
        upload=top_k.upload,
        admit=top_k.admit,
        upload_kind="numbers",
        bases="any",
        linear=False,  # every client has positions of its own
        evaluation_has_own_state=True,
        keeps=error_feedback,
    )
