"""A lower bound on epsilon from one run: how well planted canaries are told from those that were left out.

    guess the r most exposed "in" and the r least exposed "out"; of 2 r guesses c are right
    epsilon >= largest e with  P[Binomial(2 r, exp(e) / (1 + exp(e))) >= c] <= 0.05

Steinke, Nasr, Jagielski, "Privacy Auditing with One (1) Training Run", NeurIPS 2023, arXiv:2305.08846, without its term
in delta. A bound above the epsilon that a run reports says that the accounting is wrong, but for one run in twenty.
"""

import math
from collections.abc import Sequence

from fedft.privacy.audit.exposure import Exposed

LEVEL = 0.05
SHARE = 4
"""One canary in so many is guessed to be in, and as many to be out; chosen before there are losses to look at."""


def tail(count: int, probability: float, at_least: int) -> float:
    """P[Binomial(count, probability) >= at_least]."""
    if at_least <= 0:
        return 1.0
    if probability >= 1:
        return 1.0 if at_least <= count else 0.0
    log_p, log_q = math.log(probability), math.log1p(-probability)
    whole = math.lgamma(count + 1)
    terms = (
        whole - math.lgamma(k + 1) - math.lgamma(count - k + 1) + k * log_p + (count - k) * log_q
        for k in range(at_least, count + 1)
    )
    return math.fsum(map(math.exp, terms))


def epsilon_lower(guesses: int, right: int, level: float = LEVEL) -> float:
    """The largest epsilon that `right` of `guesses` refute at this level; 0.0 where they refute none.

    >>> round(epsilon_lower(20, 17), 3), epsilon_lower(20, 11)
    (0.647, 0.0)
    """
    low, high = 0.0, 64.0  # what no number of right guesses refutes in floats
    if not guesses or tail(guesses, 0.5, right) > level:
        return 0.0
    for _ in range(80):
        middle = (low + high) / 2
        fine = tail(guesses, 1 / (1 + math.exp(-middle)), right) <= level
        low, high = (middle, high) if fine else (low, middle)
    return low


def guessed(found: Sequence[Exposed]) -> tuple[int, int]:
    """(guesses, right ones): a quarter of the canaries, the most exposed, as planted, the least exposed as left out.

    Of equal exposure those with the larger margin, then the earlier ones, count as more exposed: nothing that depends
    on a coin.
    """
    ordered = sorted(found, key=lambda e: (-e.bits, -e.margin, e.canary.number))
    r = len(ordered) // SHARE
    right = sum(e.canary.planted for e in ordered[:r]) + sum(not e.canary.planted for e in ordered[len(ordered) - r :])
    return 2 * r, right
