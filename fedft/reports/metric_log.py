"""metrics.jsonl, the numbers of a run: one JSON object per line and state, version 0 first.

A run that is resumed keeps the lines up to the version of its last committed state and writes the others anew.
"""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fedft import durable
from fedft.errors import RunPaused

Line = Mapping[str, Any]
"""A line of metrics.jsonl, parsed."""
VIRTUAL = "virtual"
"""Of a line's seconds: those that the round took by the clock of virtual devices, from its first letter to its end."""
KNOWN_BITS = (4, 8, 16, 32)
"""What clients may say of the precision of their bases; whoever says something else counts as "other"."""
FACTS = ("train_loss", "bytes_up", "bytes_down")
"""Numbers of a line that belong to the round rather than to its evaluation, and are drawn over versions."""


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, up to the first that is not whole; none where there is no such file."""
    found: list[dict[str, Any]] = []
    for raw in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            line = json.loads(raw)
            line["version"] + 0
            found.append(line)
        except (ValueError, TypeError, KeyError):
            break
    return found


class MetricsFile:
    """The metrics.jsonl of one run, with its lines in memory too."""

    def __init__(self, path: Path, version: int) -> None:
        """Open the file at `path`, made if it is missing; lines of later versions than `version` are cut off."""
        self._path = path
        self.lines = [line for line in read(path) if line["version"] <= version]
        kept = "".join(map(_text, self.lines)).encode()
        if not path.exists() or kept != path.read_bytes():
            durable.write(path, kept)

    def has(self, version: int) -> bool:
        """Whether there is a line of this version."""
        return any(line["version"] == version for line in self.lines)

    def append(self, line: dict[str, Any]) -> None:
        """Add one line, written through to the disk. Raises RunPaused where the disk does not take it."""
        self.lines.append(line)
        try:
            with open(self._path, "a", encoding="utf-8") as f:
                f.write(_text(line))
                f.flush()
                os.fsync(f.fileno())
        except OSError as e:
            raise RunPaused(f"{self._path}: cannot be written ({e.strerror}); make room and resume") from e


def _text(line: dict[str, Any]) -> str:
    """A line as it is in the file."""
    return json.dumps(line, sort_keys=True) + "\n"


def traffic(line: Line) -> int:
    """Training bytes of the round that led to this line's state: all clients, up and down."""
    if "training_bytes" in line:
        return sum(line["training_bytes"].values())
    return sum(b["up"] + b["down"] for b in line.get("bytes", {}).values())


def seconds(line: Line) -> float:
    """Seconds of training and aggregation of the round that led to this line's state; virtual ones where there are."""
    if (virtual := line["seconds"].get(VIRTUAL)) is not None:
        return float(virtual)
    return work_seconds(line)


def work_seconds(line: Line) -> float:
    """Seconds that this machine took to train and aggregate in the round that led to this line's state."""
    return float(sum(line["seconds"].get(part, 0.0) for part in ("train", "aggregate")))


def virtual_seconds(lines: Iterable[Line]) -> list[float]:
    """Seconds of each round by the clock of virtual devices; none where there are no such devices."""
    return [line["seconds"][VIRTUAL] for line in lines if VIRTUAL in line["seconds"]]


def wall_seconds(line: Line) -> float:
    """Seconds that this machine took for a line's round and its evaluation."""
    return sum(s for part, s in line["seconds"].items() if part != VIRTUAL)
