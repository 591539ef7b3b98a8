"""metrics.jsonl: one line per state, version 0 first. Recovery cuts it back to what the state says is committed."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedft import durable
from fedft.errors import RunPaused

FACTS = ("train_loss", "bytes_up", "bytes_down")
"""Numbers of a line that belong to the round rather than to its evaluation, and are drawn over versions."""


def read(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a metrics.jsonl, up to one that is torn; none where there is no such file."""
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
    """The lines of one run, in memory and on disk."""

    def __init__(self, path: Path, version: int) -> None:
        """Read what is there, keeping whole lines of versions up to `version`."""
        self._path = path
        self.lines = [line for line in read(path) if line["version"] <= version]
        kept = "".join(map(_text, self.lines)).encode()
        if not path.exists() or kept != path.read_bytes():
            durable.write(path, kept)

    def has(self, version: int) -> bool:
        """Whether the line of this version is written."""
        return any(line["version"] == version for line in self.lines)

    def append(self, line: dict[str, Any]) -> None:
        """Write one line through to the disk."""
        self.lines.append(line)
        try:
            with open(self._path, "a", encoding="utf-8") as f:
                f.write(_text(line))
                f.flush()
                os.fsync(f.fileno())
        except OSError as e:
            raise RunPaused(f"{self._path}: cannot be written ({e.strerror}); make room and resume") from e


def _text(line: dict[str, Any]) -> str:
    return json.dumps(line, sort_keys=True) + "\n"


Line = Mapping[str, Any]


def traffic(line: Line) -> int:
    """Bytes of the training that led to this line's state."""
    if "training_bytes" in line:
        return sum(line["training_bytes"].values())
    return sum(b["up"] + b["down"] for b in line.get("bytes", {}).values())


def seconds(line: Line) -> float:
    """Of training and aggregation."""
    return sum(line["seconds"].get(part, 0.0) for part in ("train", "aggregate"))
