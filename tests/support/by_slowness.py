"""Two planners that prove the path from devices to ranks: by what the server saw of clients, and by what they claim."""

from collections.abc import Callable, Mapping
from statistics import median, median_low

from fedft.recipe import Roster, Shape, State, Work

Plan = Callable[[State, Roster], Mapping[str, Work]]


def by_slowness(*, low: int = 2) -> Plan:
    """Rank `low` for whoever took half as long again as the fastest of all who have answered so far."""

    def plan(state: State, roster: Roster) -> Mapping[str, Work]:
        took = {c: [s.seconds for s in m.seen if s.seconds is not None] for c, m in roster.items()}
        usual = {c: median(seconds) for c, seconds in took.items() if seconds}
        slow = [c for c, seconds in usual.items() if seconds > 1.5 * min(usual.values())]
        return {c: Work(Shape(low)) for c in slow}

    return plan


def by_claim(*, low: int = 2) -> Plan:
    """Rank `low` for whoever claims less than two thirds of the median: one claim moves that by a place at most."""

    def plan(state: State, roster: Roster) -> Mapping[str, Work]:
        claims = {c: m.profile["flops"] for c, m in roster.items() if "flops" in m.profile}
        return {c: Work(Shape(low)) for c, flops in claims.items() if 1.5 * flops < median_low(claims.values())}

    return plan
