"""Membership inference with shadow runs: how a record's loss looks in models that learned it, and in others.

    phi = log(p / (1 - p)),  p = exp(-loss of the record)
    score = log N(phi of the audited model; inside) - log N(phi; outside)        above 0: "it was trained on"

Half of the shadow runs have a record, half do not; `inside` and `outside` are the Gaussians of its phi in either. Each
record has its own means; the spread is that of all records of a kind, for few runs do not tell it of each (Carlini et
al., "Membership Inference Attacks From First Principles", 2022, arXiv:2112.03570: the variant for few shadow models).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedft.privacy.audit import membership
from fedft.randomness import philox

FEWEST = 4
"""Shadow runs: two with each record and two without, or no spread could be told."""
LEAST_LOSS, MOST_LOSS = 1e-6, 1e3
"""What a loss is cut to: at 0 phi is infinite, and a loss that is no number counts as the largest."""
LEAST_SPREAD = 1e-3
"""Of phi: runs that do not differ at all tell nothing, and rounding is no difference."""


@dataclass(frozen=True)
class Tried:
    """One record whose membership is tried: a row, or a canary with all its repeats."""

    member: bool
    """Whether the audited model was trained on it."""
    repeats: int = 0
    """How often a canary stands there, if it does; 0: a row."""


def dealt(records: int, shadows: int, seed: int) -> Tensor:
    """Which shadow run has which record, bool [records, shadows]: each record is in half of them, by its own draw.

    Of an odd number of runs a record is in the smaller half.
    """
    generator = torch.Generator().manual_seed(philox.derive(seed, "audit shadows"))
    return torch.rand(records, shadows, generator=generator).argsort(1) < shadows // 2


def confidence(losses: Tensor) -> Tensor:
    """phi = log(p / (1 - p)) of p = exp(-loss), float64, of losses that are cut to what is finite.

    >>> confidence(torch.tensor([1.0, float("nan")])).round(decimals=4).tolist()
    [-0.5413, -1000.0]
    """
    cut = losses.double().nan_to_num(nan=MOST_LOSS).clamp(LEAST_LOSS, MOST_LOSS)
    return -cut - (-torch.expm1(-cut)).log()


def scores(audited: Sequence[float], losses: Tensor, inside: Tensor) -> list[float]:
    """The log likelihood ratio of each record of one kind; above 0 says that the audited model was trained on it.

    Args:
        audited: losses of the records under the audited model.
        losses: of the same under each shadow run, [records, shadows].
        inside: as from `dealt`.
    """
    phi, found = confidence(losses), confidence(torch.tensor(audited, dtype=torch.float64))
    return (_log_density(found, phi, inside) - _log_density(found, phi, ~inside)).tolist()


def _log_density(at: Tensor, phi: Tensor, among: Tensor) -> Tensor:
    """Log density but for a constant at `at` [records] of Gaussians of the `phi` that are `among` them [records, n]."""
    count = among.sum(1)
    mean = (phi * among).sum(1) / count
    squares = (((phi - mean[:, None]) * among) ** 2).sum()
    spread = max(LEAST_SPREAD, math.sqrt(float(squares / (count - 1).sum())))
    return -math.log(spread) - (at - mean) ** 2 / (2 * spread**2)


def measured(tried: Sequence[Tried], audited: Sequence[float], losses: Tensor, inside: Tensor) -> dict[str, Any]:
    """What the attack finds: `rows` as `membership.figures` with their numbers, and `canaries` by how often one stands.

    Of canaries: `found`, the share of planted ones that score above 0, and `found_left_out` of those left out. What
    there are none of is not said. Arguments as of `scores`, of all records in one order.
    """
    said: dict[str, Any] = {"shadows": losses.shape[1]}
    for repeats in sorted({t.repeats for t in tried}):
        own = [n for n, t in enumerate(tried) if t.repeats == repeats]
        found = scores([audited[n] for n in own], losses[own], inside[own])
        in_ = [s for n, s in zip(own, found, strict=True) if tried[n].member]
        out = [s for n, s in zip(own, found, strict=True) if not tried[n].member]
        if repeats:
            said.setdefault("canaries", []).append(_of_canaries(repeats, in_, out))
        elif in_ and out:
            figures = membership.figures([-s for s in in_], [-s for s in out])
            said["rows"] = {"members": len(in_), "others": len(out), **figures}
    return said


def _of_canaries(repeats: int, planted: Sequence[float], left_out: Sequence[float]) -> dict[str, float | int]:
    row: dict[str, float | int] = {"repeats": repeats, "planted": len(planted), "left_out": len(left_out)}
    for name, own in (("found", planted), ("found_left_out", left_out)):
        if own:
            row[name] = sum(s > 0 for s in own) / len(own)
    return row
