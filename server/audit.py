"""What a run's operator can show later: `audit.jsonl` in the run folder."""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedft.reports.observers import Observer


@dataclass
class Audit:
    """Passes events on and writes a line for every refusal: who, why, how large, digest; never what was in it."""

    path: Path
    observe: Observer
    _round: int = -1

    def __call__(self, kind: str, info: Mapping[str, Any]) -> None:
        """Take one event of the run; a refusal is appended to the file before it is passed on, and not fsynced."""
        if kind == "round":
            self._round = info["round"]
        if kind == "refused":
            kept = {k: info[k] for k in ("code", "size", "sha256", "proven")}
            line = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "round": self._round, **kept}
            with suppress(OSError), open(self.path, "a", encoding="utf-8") as f:  # a full disk is told elsewhere
                f.write(json.dumps({**line, "site": info["client"]}, sort_keys=True) + "\n")
        self.observe(kind, info)
