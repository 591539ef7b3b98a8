"""What only grows in a run, as `/metrics` counts it, and how far it once was.

A line of metrics.jsonl is cut off where a run goes on from an earlier state (the newest was damaged, say): its round is
done again. What was counted by then is kept as a floor in `status.json`, and counters stand still until they are past
it; Prometheus would take one that falls for one that began at nothing.

    bytes_up, bytes_down, seconds     of all rounds
    refused, counted                  by code; by site, rounds in which its update counted
"""

from collections.abc import Mapping
from typing import Any

from fedft.board.line_sums import LineSums

NONE: dict[str, Any] = {"bytes_up": 0, "bytes_down": 0, "seconds": 0.0, "refused": {}, "counted": {}}


def of(lines: LineSums) -> dict[str, Any]:
    """The counters of the lines read so far."""
    end = lines.curve[-1] if lines.curve else NONE
    sums = {key: end[key] for key in ("bytes_up", "bytes_down", "seconds")}
    return {**sums, "refused": dict(lines.codes), "counted": {c: s["counted"] for c, s in lines.clients.items()}}


def most(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """The larger of each counter of the two, which have the form of NONE."""
    found: dict[str, Any] = {}
    for key, value in one.items():
        if isinstance(value, Mapping):
            names = value.keys() | other[key].keys()
            found[key] = {name: max(value.get(name, 0), other[key].get(name, 0)) for name in names}
        else:
            found[key] = max(value, other[key])
    return found
