"""What a planner is shown of the clients, and what is kept of a round for it.

profile      what a client said of itself, within bounds, so that a lie changes little but its own plan
seen         its last rounds, seconds among them where the run's clock is one that plans may depend on
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from statistics import median
from typing import Any

from fedft.contract import Member, Seen
from fedft.server.traffic import Traffic
from fedft.update import Plan, Shape

CLAIMS = ("memory", "flops", "up", "down")  # of a profile: larger ones bring more work
FEWEST = 3  # of whom one who lies is not the median
WITHIN = 64.0  # times the median of all claims, or divided by it
OF_CLIENTS = ("seconds.", "memory.", "loss.")  # beginnings of names of a client's own measurements

SeenBy = Mapping[str, tuple[Seen, ...]]
"""Rounds seen of each client, oldest first."""


def shown(members: Mapping[str, Member], seen: SeenBy) -> dict[str, Member]:
    """The members with the rounds seen of each, and every claim of a profile within bounds of the others'.

    Where one or two claim something, nobody can say which of them is usual: a lie of one would be the other's bound.
    Their claims stand.
    """
    usual = {name: median(said) for name in CLAIMS if len(said := _said(members.values(), name)) >= FEWEST}

    def within(name: str, value: float) -> float:
        if name not in usual:
            return value
        return min(max(value, usual[name] / WITHIN), usual[name] * WITHIN)

    return {
        c: replace(
            m,
            profile={k: within(k, x) for k, x in m.profile.items() if k not in CLAIMS or _counts(x)},
            seen=seen.get(c, ()),
        )
        for c, m in members.items()
    }


def seen_after(
    seen: SeenBy,
    plans: Mapping[str, Plan],
    traffic: Traffic,
    norms: Mapping[str, float],
    metrics: Mapping[str, Mapping[str, float]],
    *,
    timed: bool,
    most: int | None,
) -> dict[str, tuple[Seen, ...]]:
    """`seen` with the round of these plans, of each client the last `most` (None: all).

    Args:
        seen: before the round.
        plans: of all who were asked.
        traffic: of the round.
        norms: of the updates that count, by client.
        metrics: what those clients said of their rounds.
        timed: whether seconds are noted.
        most: rounds of each client.
    """
    found = dict(seen)
    for client, plan in plans.items():
        said = metrics.get(client, {})
        one = Seen(
            plan.round, plan.rank, plan.steps, plan.batch, plan.bits, plan.extra,
            seconds=traffic.seconds.get(client) if timed else None,
            up=traffic.up.get(client, 0), down=traffic.needed.get(client, 0),
            loss=loss if math.isfinite(loss := said.get("loss", math.nan)) else None,
            norm=norms.get(client), admitted=client in metrics,
            metrics={n: x for n, x in said.items() if n.startswith(OF_CLIENTS)}, shape=plan.shape,
        )  # fmt: skip
        earlier = [s if s.shape is None else replace(s, shape=None) for s in found.get(client, ())]
        found[client] = (*earlier, one)[0 if most is None else -most :]
    return found


def to_json(seen: SeenBy) -> dict[str, list[dict[str, Any]]]:
    """Plain JSON of what was seen, what is left at its default left out; `from_json` reads it back."""
    empty = asdict(Seen(0, 0, 0))
    always = ("round", "rank", "steps")
    return {
        c: [{k: x for k, x in asdict(s).items() if k in always or x != empty[k]} for s in rounds]
        for c, rounds in seen.items()
    }


def from_json(said: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, tuple[Seen, ...]]:
    """What was seen, as `to_json` wrote it."""
    return {c: tuple(_seen(one) for one in rounds) for c, rounds in said.items()}


def _seen(one: Mapping[str, Any]) -> Seen:
    if (shape := one.get("shape")) is None:
        return Seen(**one)
    return Seen(**{**one, "shape": Shape(shape["rank"], shape["ranks"], tuple(shape["chosen"]))})


def told(plans: Mapping[str, Plan]) -> dict[str, dict[str, Any]]:
    """Plans as the run's lines of metrics have them: by client, what is at its default left out."""
    keys = ("rank", "ranks", "chosen", "steps", "batch", "bits", "extra")
    plain = {c: {**vars(p), "chosen": [*p.chosen]} for c, p in plans.items()}
    return {c: {k: x for k in keys if (x := p[k])} for c, p in plain.items()}


def _said(members: Iterable[Member], name: str) -> list[float]:
    return [x for m in members if _counts(x := m.profile.get(name, math.nan))]


def _counts(claim: float) -> bool:
    return math.isfinite(claim) and claim > 0
