"""What releases of noisy sums cost together: epsilon at a delta, and the noise that a given epsilon asks for.

A release adds Gaussian noise of standard deviation z C to a sum in which one unit has an L2 norm of at most C; a unit
is in it for certain, or with a probability q that nobody else sees (Poisson sampling). Privacy loss distributions are
composed (dp-accounting's PLD accountant, Koskela et al. 2020), which is tight and never below the truth.

dp-accounting comes with `pip install 'fedft[dp]'`.
"""

import logging
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from fedft.errors import ConfigError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Release:
    """Releases of one kind: `count` times a noisy sum."""

    noise_multiplier: float
    """z: standard deviation of the noise over the largest norm that one unit may have."""
    probability: float = 1.0
    """q: of a unit being in the sum; 1: it is."""
    count: int = 1


def epsilon(releases: Iterable[Release], delta: float) -> float:
    """Epsilon at `delta` of all releases together; 0.0 of none, infinite where one has no noise.

    Raises ConfigError where dp-accounting is not installed.
    """
    merged: dict[tuple[float, float], int] = {}
    for r in releases:
        if r.count and r.probability > 0:
            merged[r.noise_multiplier, r.probability] = merged.get((r.noise_multiplier, r.probability), 0) + r.count
    if not merged:
        return 0.0
    if any(z <= 0 for z, _ in merged):
        return math.inf
    try:
        from dp_accounting import GaussianDpEvent, NeighboringRelation, PoissonSampledDpEvent, pld
    except ImportError:
        raise ConfigError("[privacy] mode: epsilon is computed by dp-accounting; pip install 'fedft[dp]'") from None
    accountant = pld.PLDAccountant(NeighboringRelation.ADD_OR_REMOVE_ONE)
    for (z, q), count in merged.items():
        event = GaussianDpEvent(z)
        accountant.compose(event if q >= 1 else PoissonSampledDpEvent(q, event), count)
    return float(accountant.get_epsilon(delta))


def noise_for(releases: Callable[[float], Iterable[Release]], target: float, delta: float) -> float:
    """The smallest noise multiplier z, to 1 %, at which `releases(z)` cost at most `target`.

    Raises ConfigError where no z up to 10^4 is enough.
    """
    low, high = 0.0, 1.0
    while epsilon(releases(high), delta) > target:
        low, high = high, 2 * high
        if high > 1e4:
            raise ConfigError(
                f"[privacy] epsilon = {target:g}: no noise is enough; wanted a larger one, or fewer rounds"
            )
    while high > 1.01 * low:
        middle = math.sqrt(max(low, high / 64) * high)
        if epsilon(releases(middle), delta) > target:
            low = middle
        elif middle < 0.02:
            return middle
        else:
            high = middle
    return high
