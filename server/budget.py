"""When a run ends: at its last round, at the last one that fits `[server] budget`, or when `[server] patience` does.

    bytes=2e7     training traffic of all clients, up and down, added up
    steps=400     local optimiser steps one after the other: rounds x [local] steps, however many passes one takes
    seconds=60    training and aggregation by the clock on the wall; with virtual devices, by theirs

A round is not begun that would exceed the budget if it cost what the last one did; one round is always done. Enrolment
and evaluation are left out, with one correction: state sent for an evaluation counts as training traffic if the same
client trains next, since the state would have been sent then anyway. What a client that was killed is sent again does
not count. Messages of secure sums do, each round with a sixteenth of its block's set-up. Everything is read from the
lines of metrics.jsonl, so a run that was killed ends where it would have ended.
"""

from collections.abc import Callable, Sequence

from fedft.config import RunConfig, budget_of
from fedft.reports.metric_log import Line, seconds, traffic
from fedft.server import best_state


def over(config: RunConfig, lines: Sequence[Line]) -> bool:
    """Whether the run with these lines of metrics.jsonl, the newest last and at least one, is at its end."""
    if lines[-1]["version"] >= config.server.rounds or best_state.over(config, lines):
        return True
    if config.server.budget is None or "round" not in lines[-1]:
        return False
    costs = _costs(config, lines)
    return sum(costs) + costs[-1] > budget_of(config.server.budget)[1]


def share(config: RunConfig, lines: Sequence[Line]) -> float:
    """How far the run with these lines of metrics.jsonl is, from 0 to 1: of rounds or budget, the larger share."""
    share = lines[-1]["version"] / config.server.rounds if lines else 0.0
    if config.server.budget is not None:
        share = max(share, sum(_costs(config, lines)) / budget_of(config.server.budget)[1])
    return min(share, 1.0)


def _costs(config: RunConfig, lines: Sequence[Line]) -> list[float]:
    """Cost of each round in the unit of `[server] budget`: bytes, steps or seconds."""
    of: dict[str, Callable[[Line], float]] = {"bytes": traffic, "seconds": seconds}
    of["steps"] = lambda line: config.local.steps
    kind, _ = budget_of(config.server.budget or "")
    return [of[kind](line) for line in lines if "round" in line]


def training_bytes(line: Line, earlier: Sequence[Line], adds: bool) -> dict[str, int]:
    """{"up": bytes, "down": bytes} of a round, as if no evaluation had brought its clients any state.

    Args:
        line: of metrics.jsonl, for the state that the round led to.
        earlier: the lines before that one, in order.
        adds: whether clients add up what they receive; else the newest replaces what they had.

    Within the length of a few headers. Only where clients are drawn, and evaluated in rounds that they sleep through,
    a method that adds one part of its state and replaces another (FedEx-LoRA, RoLoRA) is counted up to a quarter high.
    """
    masks = line.get("secagg_training", {"up": 0, "down": 0})
    up = masks["up"] + sum(b["up"] for b in line["bytes"].values())
    needed = {c: b.get("needed", b["down"]) for c, b in line["bytes"].items()}
    down = masks["down"] + sum(n + brought(c, n, earlier, adds) for c, n in needed.items() if n)  # others began before
    return {"up": up, "down": down}


def brought(client: str, sent: int, earlier: Sequence[Line], adds: bool) -> int:
    """Bytes of state that evaluations have brought to a client since it last trained, so far as it uses them now.

    `sent` are the bytes of the plan that it is sent then; for the others see `training_bytes`.
    """
    found: list[int] = []
    for line in reversed(earlier):
        of = line.get("evaluation_bytes", {})
        came = of.get("needed", of.get("down", {})).get(client)
        if came is not None and (adds or line is earlier[-1]):
            found.append(came)
        if not adds or _was_sent(client, line):
            break
    # who was evaluated just before is sent a plan without state: as long as a message is that carries none
    empty = sent if earlier and client in earlier[-1].get("evaluation_bytes", {}).get("down", {}) else 0
    return sum(max(0, came - empty) for came in found)


def _was_sent(client: str, line: Line) -> bool:
    """Whether the client was sent a plan in the round of a line; a turn may go on over several."""
    of = line.get("bytes", {}).get(client)
    return of is not None and of.get("needed", of["down"]) > 0
