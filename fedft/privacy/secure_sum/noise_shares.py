"""Noise that no one client has: each adds a share before it masks, and the sum of any t shares is as much as is wanted.

    share_k ~ discrete Gaussian of variance sigma^2 / t,  sigma = z C / step        P(x) ~ exp(-x^2 / (2 variance))
    the sum over U has variance |U| / t sigma^2 >= sigma^2

What it costs is what central noise of the multiplier z costs: a sum of n discrete Gaussians is a discrete Gaussian up
to a total variation of `distance`, nothing from a standard deviation of 4 per share on. Clients that collude know
their own shares: against c of them the multiplier is `multiplier_against`.

It is sampled exactly, in integers: floats would leak through their low bits (Canonne, Kamath, Steinke, "The Discrete
Gaussian for Differential Privacy", NeurIPS 2020, arXiv:2004.00010, algorithms 1 to 3). Whose noise a share is, and when
it may be added once more, is said in `noisy_integers`.
"""

import math
from collections.abc import Callable, Iterator

import numpy as np

from fedft.privacy.secure_sum.context import Spec, threshold

LEAST_DEVIATION = 4.0
MOST_NUMBERS = 1 << 18  # about four microseconds each
MOST_GROWTH = 0.01  # of the clip, by rounding
_WORD = 64


def share(spec: Spec, n: int, draw: Callable[[int], bytes]) -> np.ndarray:
    """One client's share of the noise, int64 [spec.length].

    Raises ValueError for a vector without noise, of more than MOST_NUMBERS, or shares of a deviation below 4.

    Args:
        spec: of the vector; `spec.noise` is sigma.
        n: members of the block.
        draw: bytes that nobody else has, so many at each call.
    """
    variance, words = variance_of(spec, n), _words(draw)
    return np.array([discrete_gaussian(variance, words) for _ in range(spec.length)], np.int64)


def variance_of(spec: Spec, n: int) -> int:
    """Of one share of n, in steps squared. Raises ValueError as `share` does."""
    variance = math.ceil(spec.noise**2 / threshold(n))  # rounded up: never less noise than is said
    if variance < LEAST_DEVIATION**2:
        least = LEAST_DEVIATION * math.sqrt(threshold(n))
        raise ValueError(f"noise of {spec.noise:g} steps among {n} clients: wanted {least:g} at least, or more bits")
    if spec.length > MOST_NUMBERS:
        raise ValueError(
            f"noise in shares for {spec.length:,} numbers, wanted {MOST_NUMBERS:,} at most: fedkseed, ffa_lora, or a "
            "lower rank"
        )
    return variance


def clip_before_rounding(clip: float, spec: Spec) -> float:
    """The L2 norm to clip a vector to, so that rounded at random it has at most `clip`: rounding adds step sqrt(d).

    Raises ValueError where that is more than a hundredth.
    """
    growth = max(spec.clips) / spec.largest * math.sqrt(spec.length)
    if growth > MOST_GROWTH * clip:
        raise ValueError(
            f"rounding {spec.length} numbers to {spec.bits} bits adds {growth / clip:.1%} to their norm; "
            f"wanted {MOST_GROWTH:.0%} at most: more value_bits"
        )
    return clip - growth


def multiplier_against(z: float, n: int, colluding: int) -> float:
    """The noise multiplier that is left of z against so many of n clients, who know their own shares."""
    t = threshold(n)
    return z * math.sqrt(max(t - colluding, 0) / t)


def distance(n: int, deviation: float) -> float:
    """A bound on the total variation between a sum of n shares and a discrete Gaussian of its variance.

    >>> [f"{distance(20, s):.0e}" for s in (1, 2, 4)]
    ['5e-04', '7e-17', '3e-68']
    """
    return 10 * sum(math.exp(-2 * math.pi**2 * deviation**2 * k / (k + 1)) for k in range(1, n))


def discrete_gaussian(variance: int, words: Iterator[int]) -> int:
    """An integer x with probability ~ exp(-x^2 / (2 variance)), exactly, from uniform words of 64 bits."""
    scale = math.isqrt(variance) + 1
    while True:
        x = _discrete_laplace(scale, words)
        if _below_exp((abs(x) * scale - variance) ** 2, 2 * variance * scale**2, words):
            return x


def _discrete_laplace(scale: int, words: Iterator[int]) -> int:
    """x with probability ~ exp(-|x| / scale)."""
    while True:
        rest = _uniform(scale, words)
        if not _below_exp(rest, scale, words):
            continue
        whole = 0
        while _below_exp(1, 1, words):
            whole += 1
        size, negative = rest + scale * whole, next(words) & 1
        if size or not negative:
            return -size if negative else size


def _below_exp(over: int, under: int, words: Iterator[int]) -> bool:
    """True with probability exp(-over / under)."""
    while over > under:
        if not _below_exp(1, 1, words):
            return False
        over -= under
    k = 1
    while _below(over, k * under, words):
        k += 1
    return k % 2 == 1


def _below(over: int, under: int, words: Iterator[int]) -> bool:
    """True with probability over / under, which is at most 1: digits of it against random ones, until they differ."""
    while True:
        digit, over = divmod(over << _WORD, under)
        if (word := next(words)) != digit:
            return word < digit


def _uniform(count: int, words: Iterator[int]) -> int:
    """An integer in 0 .. count - 1."""
    spare = (1 << _WORD) % count
    while (word := next(words)) < spare:
        pass
    return word % count


def _words(draw: Callable[[int], bytes]) -> Iterator[int]:
    while True:
        yield from np.frombuffer(draw(8 * 1024), "<u8").tolist()
