"""Differences between methods, paired by seed and by client: what varies with both is subtracted out.

paired.rows(results, against="fedit")       a row per other method: how much higher its loss is, and how surely
"""

import math
from collections.abc import Collection, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from fedft.reports.run_result import Result
from fedft.training.metrics.loss import LOSS

FEWEST = 3  # differences from which an interval is said
LEVEL = 0.95


def t_quantile(freedom: int) -> float:
    """The number t with 95 % of Student's distribution between -t and t, for so many degrees of freedom, from 1.

    Its probability is a finite sum (Abramowitz and Stegun, 26.7.3 and 26.7.4), inverted by bisection.

    >>> round(t_quantile(1), 3), round(t_quantile(2), 3), round(t_quantile(30), 3)
    (12.706, 4.303, 2.042)
    """
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _between(middle, freedom) < LEVEL else (low, middle)
    return math.sqrt(freedom) * math.tan(high)


def _between(angle: float, freedom: int) -> float:
    """The probability that |t| is below sqrt(freedom) tan(angle)."""
    cosine, odd = math.cos(angle), freedom % 2
    term, total = (cosine if odd else 1.0), 0.0
    for n in range(2 + odd, freedom + 1, 2):  # 1, 1/2 cos^2, 1*3/(2*4) cos^4 ...; cos, 2/3 cos^3 ... for an odd number
        total += term
        term *= cosine * cosine * (n - 1) / n
    within = math.sin(angle) * total
    return 2 / math.pi * (angle + within) if odd else within


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean of some numbers and how sure it is, under n, mean, se, low and high.

    `se` is the standard error, None of one number; `low` and `high` are the ends of the 95 % t interval, None of fewer
    than three.
    """
    n, mean = len(values), fmean(values)
    se = stdev(values) / math.sqrt(n) if n > 1 else None
    half = t_quantile(n - 1) * se if se is not None and n >= FEWEST else None
    ends = (None, None) if half is None else (mean - half, mean + half)
    return {"n": n, "mean": mean, "se": se, "low": ends[0], "high": ends[1]}


def best(rows: Sequence[Mapping[str, Any]], aside: Collection[str]) -> str | None:
    """The method whose loss after is least, of those that are not set `aside` if there are any; None of no rows."""
    racing = [r for r in rows if r["method"] not in aside] or rows
    return min(racing, key=lambda r: r["after"])["method"] if racing else None


def rows(results: Mapping[str, Sequence[Result]], against: str) -> list[dict[str, Any]]:
    """For each method but `against` how much higher its held-out loss is at the end than that one's.

    Returns:
        A row per method: `method`; `seeds`, a `spread` over the seeds that both have run; `clients`, a `spread` over
        the clients that both have measured, of each one's mean over seeds. None in place of one of nothing.
    """
    ours = _by_seed(results[against])
    found = []
    for method, of in results.items():
        if method == against:
            continue
        theirs = _by_seed(of)
        seeds = [seed for seed in theirs if seed in ours]
        losses = [theirs[s]["after"] - ours[s]["after"] for s in seeds]
        clients = [*by_client(of, results[against]).values()]
        spreads = {"seeds": spread(losses) if losses else None, "clients": spread(clients) if clients else None}
        found.append({"method": method, **spreads})
    return found


def by_client(of: Sequence[Result], against: Sequence[Result]) -> dict[str, float]:
    """How much higher each client's loss on its own held-out rows is with one method than with another.

    A mean over seeds, by the names of clients that both have measured with the same seed.
    """
    theirs, ours = _by_seed(of), _by_seed(against)
    found: dict[str, list[float]] = {}
    for seed in (s for s in theirs if s in ours):
        own = ours[seed].get("clients", {})
        for client, loss in theirs[seed].get("clients", {}).items():
            if client in own:
                found.setdefault(client, []).append(loss - own[client])
    return {client: fmean(differences) for client, differences in found.items()}


def _by_seed(results: Sequence[Result]) -> dict[int, Result]:
    """The results by seed; of files that do not say it, by their place."""
    return {r.get("seed", place): r for place, r in enumerate(results)}


def said(of: Mapping[str, Any] | None) -> str:
    """A `spread` as text: the mean with its sign, its standard error and its interval, as far as they are there.

    >>> said({"n": 3, "mean": 0.25, "se": 0.01, "low": 0.2, "high": 0.3})
    '+0.250 ± 0.010, +0.200 to +0.300'
    """
    if of is None:
        return "-"

    def signed(value: float) -> str:
        return f"{'+' if value >= 0 else '-'}{LOSS.short(abs(value))}"

    text = signed(of["mean"])
    if of["se"] is not None:
        text += f" ± {LOSS.short(of['se'])}"
    return text + (f", {signed(of['low'])} to {signed(of['high'])}" if of["low"] is not None else "")
