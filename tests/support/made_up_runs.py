"""Runs that were never run: the lines of their metrics.jsonl, their results, and methods compared."""

import math
from typing import Any

from fedft.reports import comparison, run_result


def lines(offset: float = 0.0, *, rounds: int = 4, traffic: int = 1000, error: float | None = None) -> list[Any]:
    """The lines of a run whose loss falls from 3 towards 1."""
    found: list[Any] = []
    for v in range(rounds + 1):
        line = {"version": v, "seconds": {"evaluate": 7.0}, "loss": 1 + 2 * math.exp(-v) + offset, "accuracy": v / 10}
        if v:
            line |= {"round": v - 1, "seconds": {"train": 1.5, "aggregate": 0.5, "evaluate": 7.0}}
        if v and traffic:
            line |= {"bytes": {"a": {}, "b": {}}, "training_bytes": {"up": traffic, "down": 3 * traffic}}
        if v and error is not None:
            line["aggregation_error"] = error
        found.append(line)
    return found


def of(*all_lines: list[Any]) -> list[dict[str, Any]]:
    return [r for x in all_lines if (r := run_result.result(x, 10))]


def compared(*labels: str) -> dict[str, Any]:
    methods = {
        label: of(*(lines(0.1 * i + 0.01 * s, traffic=1000 * 2**i, error=0.1**i) for s in range(2)))
        for i, label in enumerate(labels)
    }
    baselines = {name: of(*(lines(0.02 * s, traffic=0) for s in range(2))) for name in ("local", "central")}
    return comparison.compare({"model": "m", "budget": "none"}, methods | baselines)


def planned(clients: int = 6, rounds: int = 5, *, modules: int = 8, off: float = 1.2) -> list[Any]:
    """The lines of a run whose even clients are fast and have ranks by module; `off`: measured by predicted seconds."""
    found = lines(rounds=rounds)
    names = [f"layers.{n}.{part}" for n in range(-(-modules // 2)) for part in ("k_proj", "q_proj")][:modules]
    for line in found[1:]:
        plans, took = {}, {}
        for n in range(clients):
            slow, client = n % 2, f"site-{n}"
            ranks = {m: 16 if k % 3 else 4 for k, m in enumerate(names)} if not slow else dict.fromkeys(names[:2], 0)
            plans[client] = {"rank": 8, "ranks": ranks, "steps": 5 + line["round"] // 2, "batch": 2 << n % 3}
            plans[client] |= {"bits": 4 if slow else 16, "extra": {"predicted_s": 3.0 + n, "ratio": 0.1 * n}}
            plans[client] |= {"chosen": [m for m in names if "q_proj" in m]} if n % 3 == 2 else {}
            took[client] = off * (3.0 + n) * (1 + 0.01 * line["round"])
        line |= {"plans": plans, "reply_s": took, "participants": list(took)}
    return found
