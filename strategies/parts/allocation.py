"""What one client adapts: which weights, at what ranks, in what batches, on what precision of the base.

    maximise    sum_m U_m(r_m),   U_m(r) = w_m (1 - 2^(-r / r0))              w_m >= 0 what weight m is worth
    over        bits, batch, r_m in {0} and a ladder of ranks                 at least one r_m > 0
    where       memory(bits, batch, r) <= memory of the client
                seconds(bits, batch, r) <= seconds of the round

What a work takes is asked of a forecast of whole works, since it is no sum over weights: inputs are kept once for all
weights that read them, and gradients stop below the lowest layer that is adapted. Precision comes first, then the
batch: the answer has the most bits, and of these the largest batch, with which `least` of the utility of all weights at
the highest rank is reached; if none reaches that, the one of the largest utility. (So with `least` = 0 bits fall only
where no work fits on more of them.) Then ranks are as useful as the search finds.

The search is greedy. For every lowest layer, and with a weight of it adapted, it puts moves of one weight to any higher
rank in order of their utility per byte of memory, per operation, or per byte sent; moves that a neighbour outdoes (that
are not on the upper hull of the weight's points) are left out. Of each order it takes as many moves as fit. In a small
search every weight of the lowest layer is tried for the first, and one more move on top of any number of the first
ones. No order depends on what the client has, so more memory or time never makes the answer less useful.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from fedft.contract import Forecast
from fedft.training.layers import layer_of

Ranks = Mapping[str, int]
"""Rank by name of the weights that are adapted, each above 0."""
Cost = Callable[[int, int, Ranks], Forecast]
"""(bits, batch, ranks) -> what the work takes; nothing of it falls where a rank grows or a weight is added."""
R0 = 4
"""The rank at which a weight has half of the use that it can have."""
SMALL = 64  # moves there are, up to which a search tries more


@dataclass(frozen=True)
class Limits:
    """What a client has, and how long a round may be."""

    memory: float = math.inf
    """Bytes."""
    seconds: float = math.inf
    """Of the round, at this client."""
    flops: float = math.inf
    """Operations per second."""
    up: float = math.inf
    """Bytes per second, as is `down`."""
    down: float = math.inf
    slowness: float = 1.0
    """How many times as long as forecast the client takes, links included."""

    def seconds_of(self, cost: Forecast) -> float:
        """How long the client takes for a work."""
        return self.slowness * (cost.flops / self.flops + cost.up / self.up + cost.down / self.down)

    def allow(self, cost: Forecast) -> bool:
        """Whether the work fits memory and round."""
        return cost.memory <= self.memory and self.seconds_of(cost) <= self.seconds


class Allocation(NamedTuple):
    """What a client adapts, and what that takes."""

    bits: int
    batch: int
    ranks: Ranks
    utility: float
    cost: Forecast


class Infeasible(ValueError):
    """Not the smallest work fits; one line says what it takes and what there is. `least` is that work."""

    def __init__(self, least: Allocation, limits: Limits) -> None:
        (name, rank), cost = next(iter(least.ranks.items())), least.cost
        how = [f"{k} {x}" for k, x in (("batch", least.batch), ("bits", least.bits)) if x]
        super().__init__(
            f"{', '.join([f'{name} alone at rank {rank}', *how])} takes "
            f"{cost.memory / 1e6:.4g} MB and {limits.seconds_of(cost):.4g} s; there are {limits.memory / 1e6:.4g} MB "
            f"and {limits.seconds:.4g} s"
        )
        self.least = least


@dataclass(frozen=True)
class Search:
    """Answers for clients of one ladder; what they have in common is computed once. All of it is deterministic."""

    worth: Mapping[str, float]
    """w by name of all weights that could be adapted, not all zero."""
    cost: Cost
    ladder: Sequence[int]
    """Ranks above 0, ascending."""
    batches: Sequence[int]
    """Sizes of batches, descending."""
    bits: Sequence[int]
    """Precisions of the base, descending."""
    least: float = 0.0
    """Share of the utility of all weights at the highest rank, from 0 to 1, that a precision and a batch must reach."""
    _costs: dict[tuple[int, int, frozenset[tuple[str, int]]], Forecast] = field(default_factory=dict)
    _orders: dict[tuple[int, float], list[list[Ranks]]] = field(default_factory=dict)

    def allocate(self, limits: Limits) -> Allocation:
        """The work of a client that has this much. Raises Infeasible where none fits."""
        wanted = self.least * self.utility(dict.fromkeys(self.worth, self.ladder[-1]))
        found: Allocation | None = None
        for bits in self.bits:
            for batch in self.batches:
                one = self._best(bits, batch, limits)
                if one is not None and one.utility >= wanted:
                    return one
                if one is not None and (found is None or one.utility > found.utility):
                    found = one
        if found is None:
            raise Infeasible(self._smallest(), limits)
        return found

    def utility(self, ranks: Ranks) -> float:
        """sum_m U_m(r_m)."""
        return sum(self.worth[m] * (1 - 2 ** (-ranks[m] / R0)) for m in sorted(ranks))

    def forecast(self, bits: int, batch: int, ranks: Ranks) -> Forecast:
        """What a work takes, asked once for each."""
        key = bits, batch, frozenset(ranks.items())
        if key not in self._costs:
            self._costs[key] = self.cost(bits, batch, ranks)
        return self._costs[key]

    def _smallest(self) -> Allocation:
        """The work of one weight that takes least memory, the first by name of equal ones."""
        bits, batch, rank = self.bits[-1], self.batches[-1], self.ladder[0]
        name = min(sorted(self.worth), key=lambda m: self.forecast(bits, batch, {m: rank}).memory)
        ranks = {name: rank}
        return Allocation(bits, batch, ranks, self.utility(ranks), self.forecast(bits, batch, ranks))

    def _best(self, bits: int, batch: int, limits: Limits) -> Allocation | None:
        """The most useful work on this precision with this batch that fits; None if none does."""

        def fits(ranks: Ranks) -> bool:
            return limits.allow(self.forecast(bits, batch, ranks))

        best, most = None, -1.0
        for lowest in sorted(set(map(_layer, self.worth))):
            for order in self._orders_from(batch, lowest):
                fitting = _fitting(order, fits)
                more = self._with_one_more(order[:fitting], lowest) if self._is_small else ()
                for ranks in (*order[max(0, fitting - 1) : fitting], *more):
                    if (u := self.utility(ranks)) > most and fits(ranks):
                        best, most = ranks, u
        if best is None:
            return None
        return Allocation(bits, batch, dict(sorted(best.items())), most, self.forecast(bits, batch, best))

    @property
    def _is_small(self) -> bool:
        return len(self.worth) * len(self.ladder) <= SMALL

    def _with_one_more(self, order: Sequence[Ranks], lowest: float) -> Iterator[Ranks]:
        """Each of these works with one weight of the layers from `lowest` on at a higher rank."""
        for ranks in order:
            for m in sorted(self.worth):
                if _layer(m) >= lowest:
                    yield from ({**ranks, m: r} for r in self.ladder if r > ranks.get(m, 0))

    def _orders_from(self, batch: int, lowest: float) -> list[list[Ranks]]:
        """Works of weights from layer `lowest` on, one of that layer among them: lists in which each holds the last."""
        if (batch, lowest) not in self._orders:
            bits, rank = self.bits[0], self.ladder[0]

            def use(m: str) -> float:
                return self.worth[m] / max(1.0, self.forecast(bits, batch, {m: rank}).memory)

            firsts = sorted((m for m in self.worth if _layer(m) == lowest), key=lambda m: (-use(m), m))
            found = []
            for first in firsts if self._is_small else firsts[:1]:
                start = {first: rank}
                points = self._points(batch, lowest, start)
                for measure in (_memory, _operations, _traffic):
                    steps = [step for m in sorted(points) for step in _upper_hull(m, points[m], measure)]
                    order: list[Ranks] = [start]
                    for _, m, r in sorted(steps, key=lambda step: (-step[0], step[1], step[2])):
                        order.append({**order[-1], m: r})
                    found.append(order)
            self._orders[batch, lowest] = found
        return self._orders[batch, lowest]

    def _points(self, batch: int, lowest: float, start: Ranks) -> dict[str, list[tuple[int, float, Forecast]]]:
        """By weight (rank, utility, what all takes) beside `start`, for its rank there and every higher one.

        Weights that have one name in layers above the lowest are taken to cost alike: it decides their order only.
        """
        found: dict[str, list[tuple[int, float, Forecast]]] = {}
        alike: dict[tuple[str, bool, bool], list[Forecast]] = {}
        for m in sorted(self.worth):
            if _layer(m) >= lowest:
                ranks = [now := start.get(m, 0), *(r for r in self.ladder if r > now)]
                kind = re.sub(r"\.\d+\.", "..", m, count=1), _layer(m) == lowest, m in start
                if kind not in alike:
                    works = [{**start, m: r} if r else start for r in ranks]
                    alike[kind] = [self.forecast(self.bits[0], batch, w) for w in works]
                found[m] = [(r, self.utility({m: r}), c) for r, c in zip(ranks, alike[kind], strict=True)]
        return found


def _layer(module: str) -> float:
    """The number of the layer that a weight is in; what is in none stands above all."""
    at = layer_of(module)
    return math.inf if at is None else at[1]


def _fitting(order: Sequence[Ranks], fits: Callable[[Ranks], bool]) -> int:
    """How many of the first works fit; each takes at least what the one before takes."""
    low, high = 0, len(order)
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if fits(order[middle]) else (low, middle)
    return low


def _upper_hull(
    module: str, points: Sequence[tuple[int, float, Forecast]], measure: Callable[[Forecast], float]
) -> Iterator[tuple[float, str, int]]:
    """(utility per unit, weight, rank) of moves up the hull of a weight's points, from the first, ever less useful."""
    _, utility, cost = points[0]
    while higher := [p for p in points if p[1] > utility]:

        def gain(p: tuple[int, float, Forecast], u: float = utility, c: Forecast = cost) -> float:
            more = measure(p[2]) - measure(c)
            return (p[1] - u) / more if more > 0 else math.inf

        best = max(higher, key=lambda p: (gain(p), p[0]))
        yield gain(best), module, best[0]
        _, utility, cost = best


def _memory(cost: Forecast) -> float:
    return cost.memory


def _operations(cost: Forecast) -> float:
    return cost.flops


def _traffic(cost: Forecast) -> float:
    return float(cost.up + cost.down)
