"""Sums of integers that nobody sees without noise: `[privacy] mode = "central-dp"` with `secagg`.

    client   u' = u min(1, C' / |u|);  q = floor(u' / step + v)      |q| <= C / step, as integers; C' leaves room for v
             sent: q + its share of the noise, under its masks
    server   mean = step (sum_k q_k + sum_k share_k) / m             m: how many were asked, whoever answered

step is C / (2^(b-1) - 1), so a client moves the sum by C at most, and what it adds is zero where its change is not
finite, as where it does not answer. The sum over any t clients has the noise z C or more, and is opened over t or none.

**One share, one vector.** A share follows from the client's own key and everything that the vector depends on: work,
rows, number of clients; and from the block and slot of its masks. So what is sent again in a slot has the same bytes.
The same work in another slot has a share of its own, and is charged once more. It could not have the same one: a sum is
hidden by all its clients' noise, but what two sums differ in only by that of the clients whose work was another in the
second. Where that is one client, whose rows were changed meanwhile or whom a server gave another plan, all other parts
and their noise would cancel, and its own two shares hide it with 2 / t of the variance that the charge is for. With
fresh shares each opened sum is a Gaussian release by itself, whatever is asked for and why, so charges add up; the
difference of two sums of the same work is noise and nothing else, and their mean is what two charges pay for. Blocks
are numbered upwards and a slot has one vector, so no slot comes twice; a client that lost its key has another one.

Noise that is `seeded`, and sums without masks, hide nothing: there the slot does not count, so that both end with the
same bytes, whoever was killed.
"""

import math
from functools import cache

import numpy as np
import torch
from torch import Tensor

from fedft.arithmetic.tensors import Tensors
from fedft.contract import Turn
from fedft.errors import ConfigError, PlanRefused
from fedft.privacy import accountant
from fedft.privacy.accountant import Release
from fedft.privacy.clipping import length
from fedft.privacy.keyed_stream import Stream
from fedft.privacy.secure_sum import noise_shares
from fedft.privacy.secure_sum.context import FEWEST, MOST, Spec, threshold
from fedft.privacy.tables import Privacy
from fedft.update import BLOCK, MEMBERS, SLOT, Plan

PURPOSE = "share"


def noise_multiplier(privacy: Privacy) -> float:
    """z: as it is said, or what `epsilon` needs for `rounds`, in each of which every client may have been.

    Clients and server compute it alike: four digits, rounded up. Raises ConfigError where no noise is enough.
    """
    if privacy.noise_multiplier is not None:
        return privacy.noise_multiplier
    return _calibrated(privacy.rounds or 1, privacy.epsilon or 0.0, privacy.delta or 0.0)


@cache
def _calibrated(rounds: int, epsilon: float, delta: float) -> float:
    found = accountant.noise_for(lambda z: [Release(z, 1.0, rounds)], epsilon, delta)
    return float(f"{1.0005 * found:.4g}")


def colluding(n: int) -> int:
    """The most of n clients that may tell the server all they know: fewer than a third.

    >>> colluding(5), colluding(9), colluding(100)
    (1, 2, 33)
    """
    return math.ceil(n / 3) - 1


def check(spec: Spec, n: int) -> None:
    """Return None if n clients can add noise in shares to a vector. Raises ConfigError in one line."""
    try:
        spec.check_fits(n)
        noise_shares.variance_of(spec, n)
        noise_shares.clip_before_rounding(spec.clips[0], spec)
    except ValueError as e:
        raise ConfigError(f"[privacy] mode = 'central-dp' with secure sums: {e}") from e


def clipped(parts: Tensors, spec: Spec) -> dict[str, Tensor]:
    """The parts with the norm that their integers are sure to keep to; zeros where one of them is not finite."""
    if not all(bool(x.isfinite().all()) for x in parts.values()):
        return {n: torch.zeros_like(x) for n, x in parts.items()}
    whole, bound = length(parts), noise_shares.clip_before_rounding(spec.clips[0], spec)
    factor = min(1.0, bound / whole) if whole else 1.0
    return {n: x.double() * factor for n, x in parts.items()}


def check_norm(q: np.ndarray, spec: Spec) -> None:
    """Return None if integers, int32 [spec.length], are no longer than the clip, exactly; else raise RuntimeError."""
    if int(np.square(q.astype(np.uint64)).sum()) > spec.largest**2:  # below 2^64, of so many numbers at most
        raise RuntimeError("the integers of an update are longer than the clip")


def members(plan: Plan) -> int:
    """How many clients' shares make up the noise, as the plan says. Raises PlanRefused, `secagg_threshold`."""
    n = plan.extra.get(MEMBERS)
    if type(n) is not int or not FEWEST <= n <= MOST:
        raise PlanRefused("secagg_threshold", f"noise in shares among {n!r:.20} clients")
    return n


def with_share(q: np.ndarray, spec: Spec, plan: Plan, stream: Stream) -> np.ndarray:
    """The integers with this client's share of the noise, int32 [spec.length].

    Args:
        q: int32 [spec.length].
        spec: of the vector.
        plan: that it answers. Raises PlanRefused as `members`.
        stream: of the client's own key, for this vector and slot.
    """
    n = members(plan)
    found = q.astype(np.int64) + noise_shares.share(spec, n, stream.drawing(PURPOSE, ""))
    if np.abs(found).max() > (most := spec.most(1, threshold(n))):
        raise RuntimeError(f"noise beyond ten deviations: {most}")
    return found.astype(np.int32)


def place(turn: Turn, privacy: Privacy) -> bytes:
    """What a share depends on beside the work: the block and slot of its masks, where they hide something."""
    if privacy.noise == "seeded" or privacy.secagg == "clear":
        return b""
    return f"{turn.plan.extra.get(BLOCK)} {turn.plan.extra.get(SLOT)}".encode()
