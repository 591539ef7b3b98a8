"""What releases of noisy sums cost together: epsilon at a delta, and the noise that a given epsilon asks for.

A release adds Gaussian noise of standard deviation z C to a sum in which one unit has an L2 norm of at most C; a unit
is in it for certain, or with a probability q that nobody else sees (Poisson sampling). Of releases that are certain the
cost is known in closed form; with sampling, privacy loss distributions are composed (dp-accounting's, Koskela et al.
2020), which is tight and never below the truth. Neighbours differ in one unit that is there or not, never in one that
is replaced: of replaced ones accountants disagree.

What one release is worth is computed once per process, so a line per round costs milliseconds. dp-accounting comes with
`pip install 'fedft[dp]'`.
"""

import logging
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType
from typing import Any

from fedft.errors import ConfigError

BEYOND = 500.0
"""Above this epsilon the bound of Renyi divergences is reported: no guarantee is left, and distributions grow large."""
SMALLEST_NOISE = 0.02
"""z below which no noise is looked for."""
LARGEST_NOISE = 1e4
FINEST = 2e-5
"""The smallest step of losses in a distribution; others are doublings of it: quicker, and a little above the truth."""
COARSEST_DOUBLING = 7


@dataclass(frozen=True)
class Release:
    """Releases of one kind: `count` times a noisy sum."""

    noise_multiplier: float
    """z: standard deviation of the noise over the largest norm that one unit may have."""
    probability: float = 1.0
    """q: of a unit being in the sum; 1: it is."""
    count: int = 1


def of_whole_updates(noise_multiplier: float, count: int = 1) -> Release:
    """Releases of whole updates of one client, clipped to C and with noise of this multiplier of C.

    One data set in place of another moves such an update by up to 2 C, so each counts as one of half the multiplier.
    """
    return Release(noise_multiplier / 2, 1.0, count)


def merged(releases: Iterable[Release]) -> frozenset[Release]:
    """The same releases, with one entry for those of equal noise and probability; without those nobody is in."""
    return frozenset(Release(z, q, count) for (z, q), count in _merged(releases).items())


def epsilon(releases: Iterable[Release], delta: float) -> float:
    """Epsilon at `delta` of all releases together; 0.0 of none, infinite where one has no noise.

    Raises ConfigError where dp-accounting is not installed.
    """
    merged = _merged(releases)
    if not merged or any(z <= 0 for z, _ in merged):
        return math.inf if merged else 0.0
    certain = sum(n / z**2 for (z, q), n in merged.items() if q >= 1)  # together one Gaussian of multiplier ^ -1/2
    sampled = {kind: n for kind, n in merged.items() if kind[1] < 1}
    if not sampled:
        return float(_library().get_epsilon_gaussian(certain**-0.5, delta))
    bound = _renyi(merged, delta)
    if bound > BEYOND:
        return bound
    step = _step(bound, sum(sampled.values()))
    together = _loss(certain**-0.5, 1.0, step) if certain else None
    for (z, q), count in sampled.items():
        part = _loss(z, q, step).self_compose(count)
        together = together.compose(part) if together else part
    assert together is not None
    return float(together.get_epsilon_for_delta(delta))


def renyi_bound(releases: Iterable[Release], delta: float) -> float:
    """An upper bound of `epsilon` by Renyi divergences (Mironov 2017), quick, and often a tenth or two above it.

    Raises ConfigError where dp-accounting is not installed.
    """
    merged = _merged(releases)
    if not merged or any(z <= 0 for z, _ in merged):
        return math.inf if merged else 0.0
    return _renyi(merged, delta)


def noise_for(releases: Callable[[float], Iterable[Release]], target: float, delta: float) -> float:
    """The smallest noise multiplier z, to 1 %, at which `releases(z)` cost at most `target`; SMALLEST_NOISE at least.

    Raises ConfigError where no z up to LARGEST_NOISE is enough, or where dp-accounting is not installed.
    """
    high = _enough(lambda z: renyi_bound(releases(z), delta) <= target)
    if not high:
        wanted = "wanted a larger one, or fewer rounds"
        raise ConfigError(f"[privacy] epsilon = {target:g}: no noise is enough; {wanted}")
    low, low_cost = 0.0, math.inf
    while (cost := epsilon(releases(high), delta)) > target:  # by a distribution's rounding
        low, low_cost, high = high, cost, 1.01 * high
    while high > 1.01 * low and high > SMALLEST_NOISE:
        # epsilon is nearly a power of z: the root between two points, or below one, and then a little to either side
        slope = math.log(low_cost / cost) / math.log(high / low) if low else 1.0
        root = high * (cost / target) ** (1 / slope)
        z = root * 1.003 if root * 1.006 < high else high / 1.0095
        z = max(z, SMALLEST_NOISE, low * 1.0001)
        if (found := epsilon(releases(z), delta)) <= target:
            high, cost = z, found
        else:
            low, low_cost = z, found
    return high


def fitting(cost: Callable[[int], float], count: int, most: float) -> int:
    """The largest number, up to `count`, whose cost is at most `most`; 0 is not asked for. Costs grow with numbers."""
    if cost(count) <= most:
        return count
    low, high = 0, count
    while high > low + 1:
        middle = (low + high) // 2
        low, high = (middle, high) if cost(middle) <= most else (low, middle)
    return low


def _enough(holds: Callable[[float], bool]) -> float:
    """A z for which it holds, within an eighth of the smallest; 0.0 where it holds for none up to LARGEST_NOISE."""
    high = 1.0
    while not holds(high):
        high *= 2
        if high > LARGEST_NOISE:
            return 0.0
    while high > SMALLEST_NOISE and holds(high / 2):
        high /= 2
    for factor in (2**-0.5, 2**-0.25, 2**-0.125):
        if holds(high * factor):
            high *= factor
    return max(high, SMALLEST_NOISE)


Kinds = dict[tuple[float, float], int]
"""(noise multiplier, probability) -> how many releases."""


def _merged(releases: Iterable[Release]) -> Kinds:
    """How many releases there are of each kind; those left out that nobody is in."""
    merged: Kinds = {}
    for r in releases:
        if r.count and r.probability > 0:
            kind = r.noise_multiplier, min(r.probability, 1.0)
            merged[kind] = merged.get(kind, 0) + r.count
    return merged


def _renyi(kinds: Kinds, delta: float) -> float:
    orders = _divergences(1.0, 1.0)[0]
    total = sum(n * _divergences(z, q)[1] for (z, q), n in kinds.items())
    return float(_library().rdp.compute_epsilon(orders, total, delta)[0])


def _step(bound: float, releases: int) -> float:
    """The step of losses at which so many sampled releases are told at most a two-thousandth too dear.

    What a composed distribution adds to epsilon is below 6 * releases * step^2 (tried for q 0.001 to 0.5).
    """
    wanted = math.sqrt(max(bound, 1e-9) / (2000 * 6 * releases))
    return FINEST * 2.0 ** min(max(0, math.floor(math.log2(wanted / FINEST))), COARSEST_DOUBLING)


@lru_cache(maxsize=256)
def _divergences(z: float, q: float) -> tuple[Any, Any]:
    """(orders, Renyi divergences of one release at them)."""
    library = _library()
    accountant = library.rdp.RdpAccountant(neighboring_relation=library.NeighboringRelation.ADD_OR_REMOVE_ONE)
    event = library.GaussianDpEvent(z)
    with _quiet():
        accountant.compose(event if q >= 1 else library.PoissonSampledDpEvent(q, event))
    return accountant.orders, accountant.rdp


@lru_cache(maxsize=32)
def _loss(z: float, q: float, step: float) -> Any:
    """The privacy loss distribution of one release, in steps of so much."""
    made = _library().pld.privacy_loss_distribution.from_gaussian_mechanism
    return made(z, value_discretization_interval=step, sampling_prob=q)


def _library() -> ModuleType:
    """dp-accounting. Raises ConfigError where it is not installed."""
    try:
        import dp_accounting
        from dp_accounting import pld, rdp  # noqa: F401  (which makes them attributes of it)
    except ImportError:
        raise ConfigError("[privacy] mode: epsilon is computed by dp-accounting; pip install 'fedft[dp]'") from None
    return dp_accounting


@contextmanager
def _quiet() -> Iterator[None]:
    """Within it the library says nothing of orders whose series do not converge: it leaves those out."""
    said = logging.getLogger("absl")
    before = said.level
    said.setLevel(logging.ERROR)
    try:
        yield
    finally:
        said.setLevel(before)
