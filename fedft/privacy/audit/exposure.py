"""Exposure: how far a model prefers a secret that it was trained on to secrets that might have stood there as well.

    exposure = log2(R + 1) - log2(rank)          rank of the secret's loss among R alternatives and itself

Carlini et al., "The Secret Sharer", USENIX Security 2019, arXiv:1802.08232. Of a secret that the model knows nothing
of the rank is uniform, and the mean exposure about 1.44 bits.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from fedft.config import RunConfig
from fedft.privacy.audit.canaries import ALTERNATIVES, Canary, Plan
from fedft.privacy.audit.planted_records import record_of


@dataclass(frozen=True)
class Exposed:
    """How exposed one canary is."""

    canary: Canary
    bits: float
    """Its exposure, from 0 to log2(R + 1)."""
    margin: float
    """Mean loss of the alternatives less that of the secret: tells those of equal exposure apart."""


def bits(loss: float, alternatives: Sequence[float]) -> float:
    """The exposure of a secret from its loss and those of its alternatives; ties share the worse rank.

    A loss that is no number has the worst rank.

    >>> bits(1.0, [0.5, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0])
    2.0
    >>> bits(1.0, [1.0] * 7)
    0.0
    """
    rank = 1 + sum(not other > loss for other in alternatives)
    return math.log2(len(alternatives) + 1) - math.log2(rank)


def encoded(plan: Plan, config: RunConfig, base: Any, encode: Callable[..., Any]) -> list[Any]:
    """The rows that exposures are measured on: of each canary its own, then those of its alternatives.

    Args:
        plan: the run's.
        config: the run file, which says what form records have.
        base: `fedft.models.load.Base`.
        encode: the objective's, see `fedft.contract.Objective`.
    """
    return [
        encode(record_of(canary, secret, config), base, config, f"canary {canary.number}")
        for canary in plan.canaries
        for secret in (canary.secret, *plan.alternatives(canary))
    ]


def exposures(plan: Plan, losses: Sequence[float]) -> list[Exposed]:
    """The exposure of each canary of a plan, planted or not, in its order; `losses` are those of the `encoded` rows."""
    found, each = [], ALTERNATIVES + 1
    for at, canary in zip(range(0, len(losses), each), plan.canaries, strict=True):
        own, *others = losses[at : at + each]
        found.append(Exposed(canary, bits(own, others), fmean(others) - own))
    return found


def groups(tuned: Sequence[Exposed], before: Sequence[Exposed]) -> list[dict[str, float | int]]:
    """For each number of repeats: how many canaries are planted and left out, and mean exposures in bits.

    `exposure` is of planted ones under the tuned model, `left_out_exposure` of those that were left out, and
    `base_exposure` of planted ones under the base. What there are none of has no mean.

    Args:
        tuned: of all canaries under the tuned model.
        before: of the same under the base, in the same order.
    """
    rows = []
    for repeats in sorted({e.canary.repeats for e in tuned}):
        own = [(t, b) for t, b in zip(tuned, before, strict=True) if t.canary.repeats == repeats]
        inside = [(t, b) for t, b in own if t.canary.planted]
        outside = [t for t, _ in own if not t.canary.planted]
        row: dict[str, float | int] = {"repeats": repeats, "planted": len(inside), "left_out": len(outside)}
        if inside:
            row["exposure"] = fmean(t.bits for t, _ in inside)
            row["base_exposure"] = fmean(b.bits for _, b in inside)
        if outside:
            row["left_out_exposure"] = fmean(t.bits for t in outside)
        rows.append(row)
    return rows
