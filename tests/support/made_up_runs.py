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
