"""What the lines of metrics.jsonl say of plans: who was asked to do how much, how long it took, who set the pace.

A line has, where a planner or a controller plans, `plans`, and where seconds say something of clients `reply_s`:

    "plans": {client: {rank, ranks, chosen, steps, batch, bits, extra}}        what is at its default is left out
    "reply_s": {client: seconds from the letter to the answer}

A planner that predicts how long a plan takes says so in `extra`, as `predicted_s`.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from statistics import median
from typing import Any, NamedTuple

from fedft.reports.metric_log import Line

PREDICTED = "predicted_s"
ASKED = ("rank", "ranks", "chosen", "steps", "batch", "bits", "ratio")
"""What of a plan makes another plan; `ratio` is one of its `extra`."""


class Turn(NamedTuple):
    """What one client was asked in one round, and how long it took."""

    round: int
    client: str
    plan: Mapping[str, Any]
    """With the `extra` of the plan beside its own keys."""
    predicted_s: float | None
    measured_s: float | None

    @property
    def off(self) -> float | None:
        """The measured seconds as a multiple of those that were predicted; None where one of them is not known."""
        return self.measured_s / self.predicted_s if self.measured_s and self.predicted_s else None


def turns(lines: Iterable[Line]) -> Iterator[Turn]:
    """Every turn of which a line says a plan or seconds, round by round, in order of names."""
    for line in lines:
        plans, took = line.get("plans", {}), line.get("reply_s", {})
        for client in sorted({*plans, *took}, key=str.encode):
            plan = plans.get(client, {})
            flat = {**plan.get("extra", {}), **{k: x for k, x in plan.items() if k != "extra"}}
            said = flat.get(PREDICTED)
            predicted = float(said) if isinstance(said, int | float) and not isinstance(said, bool) else None
            yield Turn(line["round"], client, flat, predicted, took.get(client))


def plans_changed(found: Iterable[Turn]) -> int:
    """How often a client was asked for something else than in its turn before."""
    before: dict[str, dict[str, Any]] = {}
    changed = 0
    for turn in found:
        asked = {k: turn.plan.get(k) for k in ASKED}
        changed += before.get(turn.client, asked) != asked
        before[turn.client] = asked
    return changed


def forecast_error(found: Iterable[Turn]) -> float | None:
    """The median of |measured / predicted - 1| over all turns whose seconds were predicted; None where none were."""
    errors = [abs(off - 1) for turn in found if (off := turn.off) is not None]
    return median(errors) if errors else None


def pace(lines: Iterable[Line]) -> Counter[str]:
    """In how many rounds each client was the last whose update counted."""
    found: Counter[str] = Counter()
    for line in lines:
        took = {c: s for c, s in line.get("reply_s", {}).items() if c in line.get("participants", ())}
        if took:
            found[max(sorted(took, key=str.encode), key=took.__getitem__)] += 1
    return found


def summary(lines: Iterable[Line]) -> dict[str, Any]:
    """What summary.json says of a run's plans: `plans_changed`, and `forecast_error` by what was foreseen.

    Empty where nobody plans.
    """
    found = [turn for turn in turns(lines) if turn.plan]
    if not found:
        return {}
    error = forecast_error(found)
    return {"plans_changed": plans_changed(found), **({} if error is None else {"forecast_error": {"time": error}})}
