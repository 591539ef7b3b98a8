"""The lines of a metrics.jsonl summed up, as they are added: what a status needs of them."""

import json
import math
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedft.reports import metric_log
from fedft.training.metrics.loss import LOSS

MAX_REFUSALS = 100
MAX_CODES, OTHER = 64, "other"  # of refusals: a site may give any, and each would be a series of its own for ever
RECENT = 5  # rounds by which the time of the next ones is told


class LineSums:
    """Reads one metrics.jsonl, each line once; from the start again where the file was cut or is another one now."""

    def __init__(self, path: Path) -> None:
        """`path`: of the file, which need not be there yet."""
        self._path, self._file, self._at = path, (0, 0), 0
        self._forget()

    def _forget(self) -> None:
        self._at = 0
        self.version = 0
        """Of the newest state."""
        self.train_loss: float | None = None
        self.privacy: dict[str, Any] = {}
        """What the newest line says of epsilon: that, why there is none, and how many rounds it still holds."""
        self.curve: list[dict[str, Any]] = []
        """A point per state, see `run_status`."""
        self.refused: list[dict[str, Any]] = []
        """The last MAX_REFUSALS: time (None), round, client, code, reason."""
        self.codes: Counter[str] = Counter()
        """How many refusals there were by code; OTHER stands for those that came when there were MAX_CODES."""
        self.clients: dict[str, dict[str, Any]] = {}
        """counted, refused, up, down (bytes) and the newest loss, by client."""
        self.took: list[float] = []
        """Seconds of each of the last RECENT rounds."""

    def read(self) -> None:
        """Take in what was added since the last time; the end of a line that is being written is left for later."""
        try:
            with open(self._path, "rb") as f:
                stat = os.fstat(f.fileno())
                if (stat.st_dev, stat.st_ino) != self._file or stat.st_size < self._at:
                    self._forget()
                    self._file = stat.st_dev, stat.st_ino
                f.seek(self._at)
                added = f.read()
        except OSError:
            return self._forget()
        for raw in added.splitlines(keepends=True):
            if not raw.endswith(b"\n"):
                break
            try:
                self._take(json.loads(raw))
            except (ValueError, TypeError, KeyError, AttributeError):
                break
            self._at += len(raw)

    def _take(self, line: Mapping[str, Any]) -> None:
        before = self.curve[-1] if self.curve else {"bytes_up": 0, "bytes_down": 0, "seconds": 0.0}
        took = metric_log.wall_seconds(line)
        point = {
            "round": line["version"],
            "loss": _finite(line.get(LOSS.name)),
            "train_loss": _finite(line.get("train_loss")),
            "bytes_up": before["bytes_up"] + line["bytes_up"],
            "bytes_down": before["bytes_down"] + line["bytes_down"],
            "seconds": before["seconds"] + took,
        }
        for client, way in line.get("bytes", {}).items():
            for key in ("up", "down"):
                self._client(client)[key] += way[key]
        for what in ("evaluation_bytes", "secagg_bytes"):
            for key in ("up", "down"):
                for client, size in line.get(what, {}).get(key, {}).items():
                    self._client(client)[key] += size
        for client in line.get("participants", ()):
            self._client(client)["counted"] += 1
        for client, found in line.get("evaluation", {}).items():
            bits = found.get("bits")
            known = int(bits) if bits in metric_log.KNOWN_BITS else None
            self._client(client).update(loss=_finite(found.get(LOSS.name)), bits=known)
        for r in line.get("refused", ()):
            told = {k: str(r[k]) for k in ("client", "code", "reason")}
            self.refused.append({"time": None, "round": line.get("round", line["version"]), **told})
            code = told["code"]
            self.codes[code if code in self.codes or len(self.codes) < MAX_CODES else OTHER] += 1
            self._client(told["client"])["refused"] += 1
        self.refused = self.refused[-MAX_REFUSALS:]
        if "round" in line:
            self.took = [*self.took, took][-RECENT:]
        self.curve.append(point)
        self.version, self.train_loss = line["version"], point["train_loss"]
        if "epsilon" in line:
            self.privacy = {k: line.get(k) for k in ("epsilon", "epsilon_why", "rounds_left")}

    def _client(self, name: str) -> dict[str, Any]:
        return self.clients.setdefault(
            name, {"counted": 0, "refused": 0, "up": 0, "down": 0, "loss": None, "bits": None}
        )


def _finite(value: Any) -> float | None:
    """A number as it is; None for what is no number, or not finite: JSON and Prometheus know no NaN."""
    return value if isinstance(value, int | float) and math.isfinite(value) else None
