"""What clients have, from what they say of themselves and from how long their rounds took.

    forecast seconds     flops / F + up / R_up + down / R_down      F, R as the client says, else the cohort's median
    slowness             the median of measured / forecast over the client's last three rounds

A client that says its speed is corrected by its own rounds from the third on, never by one; of one that does not, every
round counts. `predicted_s` and `slowness` stand in the plan of each round (`Work.extra`), so that the ratio of a round
is of the forecast that was made for it.
"""

import math
from collections.abc import Mapping
from statistics import median

from fedft.contract import Forecast, Member
from fedft.strategies.parts.allocation import Limits
from fedft.update import PREDICTED, Scalar

SLOWNESS = "slowness"
ROUNDS = 3  # of which the median is taken
ANY_SPEED = 1e9  # operations per second where nobody says: slowness makes up for it


def of_members(members: Mapping[str, Member]) -> dict[str, Limits]:
    """What each client has, by name; a round may be of any length. Memory that is not said is without bound."""
    usual = {"flops": ANY_SPEED, "up": math.inf, "down": math.inf}
    for k in usual:
        if said := [m.profile[k] for m in members.values() if k in m.profile]:
            usual[k] = median(said)

    def one(member: Member) -> Limits:
        flops, up, down = (member.profile.get(k, usual[k]) for k in ("flops", "up", "down"))
        memory = member.profile.get("memory", math.inf)
        return Limits(memory, flops=flops, up=up, down=down, slowness=slowness(member))

    return {c: one(m) for c, m in members.items()}


def ratios(member: Member) -> list[float]:
    """measured / forecast of the client's last three rounds of which both are known, oldest first."""
    known = [
        s.seconds * float(s.extra[SLOWNESS]) / float(s.extra[PREDICTED])
        for s in member.seen
        if s.seconds is not None and float(s.extra.get(PREDICTED, 0)) > 0 and SLOWNESS in s.extra
    ]
    return known[-ROUNDS:]


def slowness(member: Member) -> float:
    """How many times as long as forecast the client takes; 1 as long as too little was seen."""
    found = ratios(member)
    return median(found) if len(found) >= (ROUNDS if "flops" in member.profile else 1) else 1.0


def off_by(member: Member) -> float:
    """The factor, at least 1, between what three rounds took and what the last one was predicted; 1 before three."""
    found = ratios(member)
    if len(found) < ROUNDS:
        return 1.0
    factor = median(found) / float(member.seen[-1].extra.get(SLOWNESS, 1.0))
    return max(factor, 1 / factor) if factor > 0 else 1.0


def told(limits: Limits, cost: Forecast) -> dict[str, Scalar]:
    """The prediction for a work, as its plan has it."""
    return {PREDICTED: limits.seconds_of(cost), SLOWNESS: limits.slowness}
