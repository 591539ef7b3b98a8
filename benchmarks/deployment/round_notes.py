"""What the processes of a deployment note while it runs, and the figures of its rounds that are made of the notes.

A file of notes has a line of JSON for each event: {"at": the machine's monotonic clock in seconds, "what": ...}.
"""

import json
import os
import statistics
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from own_loopback import loopback_bytes

from fedft.security.sealed import Kind

PHASES = ("down", "site", "up", "aggregate", "commit", "rest")
Event = dict[str, Any]


class Notes:
    """The events of one process, written to a file."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "a", buffering=1, encoding="utf-8")  # noqa: SIM115 -- lives as long as the process

    def __call__(self, what: str, **more: Any) -> None:
        """Note an event that happens now."""
        self._file.write(json.dumps({"at": time.monotonic(), "what": what, **more}) + "\n")


def read(path: Path) -> list[Event]:
    """The events noted so far, without a line that is being written; none where there is no file yet."""
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def figures(server: list[Event], sites: list[list[Event]]) -> dict[str, Any]:
    """Seconds, bytes and refusals of the rounds after the first one, from everybody's notes."""
    ends = [e for e in server if e["what"] == "line"]
    rounds = [_of_round(before, end, server, sites) for before, end in pairwise(ends[1:])]
    all_s = [r["all"] for r in rounds]
    return {
        "round_s": {"median": statistics.median(all_s), "min": min(all_s), "max": max(all_s)},
        "phases_s": {p: round(statistics.median(r[p] for r in rounds), 3) for p in (*PHASES, "fsync")},
        "status_per_round": statistics.median(r["status"] for r in rounds),
        "bytes": {"up": rounds[-1]["up_bytes"], "down": rounds[-1]["down_bytes"]},
        "refused": sum(e["what"] == "refused" for e in server),
    }


def _of_round(before: Event, end: Event, server: list[Event], sites: list[list[Event]]) -> dict[str, float]:
    """One round, between the metrics lines of the round before and of its own: seconds by phase, questions, bytes."""
    at = {e["what"]: e["at"] for e in server if before["at"] < e["at"] < end["at"]}  # the last of each kind
    heard = [e for events in sites for e in events if before["at"] < e["at"] < end["at"]]
    plan = max(e["at"] for e in heard if e["what"] == "got" and e["kind"] == Kind.TRAIN)
    ready = max(e["at"] for e in heard if e["what"] == "says" and e["to"] == Kind.TRAIN)
    marks = [at["round"], plan, ready, at["admitted"], at["save begins"], at["save ends"]]
    spent = dict(zip(PHASES, [b - a for a, b in pairwise(marks)], strict=False))
    spent["rest"] = end["at"] - before["at"] - sum(spent.values())
    asked = sum(e["what"] == "got" and e["kind"] == Kind.STATUS for e in heard)
    spent |= {"fsync": end["fsync"] - before["fsync"], "status": asked, "all": end["at"] - before["at"]}
    return spent | {"up_bytes": end["bytes_up"], "down_bytes": end["bytes_down"]}


class Watch:
    """CPU and memory of the processes, as a run goes on.

    Args:
        server: the server's notes.
        pids: process ids by name; "server" is among them.
    """

    def __init__(self, server: Path, pids: dict[str, int]) -> None:
        self._path = server
        self._pids = pids
        self._cpu: list[dict[str, float]] = []
        self._carried: list[tuple[int, int]] = []
        """(rounds that had ended, bytes on loopback till then), at each look that found one more."""
        self._rounds, self._started, self._looked = 0, time.monotonic(), 0.0
        self._peak: dict[str, float] = {}
        self._resident: list[dict[str, float]] = []

    def look(self) -> None:
        """Note CPU when a round has ended, and memory twice a second."""
        ended = self._path.read_text().count('"what": "line"')
        if ended != self._rounds:
            self._rounds = ended
            self._cpu.append({name: _cpu_s(pid) for name, pid in self._pids.items()})
            self._carried.append((ended, loopback_bytes()))
        if time.monotonic() > self._looked + 0.5:
            self._looked = time.monotonic()
            now = {name: _memory_mib(pid) for name, pid in self._pids.items()}
            for name, (_, peak) in now.items():
                self._peak[name] = max(peak, self._peak.get(name, 0.0))
            self._resident.append({"s": round(self._looked - self._started, 1), "server": now["server"][0]})

    def found(self) -> dict[str, Any]:
        """CPU seconds and bytes on loopback per round after the first one, peak and resident memory in MiB."""
        a, b = self._cpu[1], self._cpu[-1] if self._cpu[-1]["server"] else self._cpu[-2]
        rounds = max(1, len(self._cpu) - (2 if self._cpu[-1]["server"] else 3))
        cpu = {name: round((b[name] - a[name]) / rounds, 3) for name in self._pids}
        (first, before), (last, after) = self._carried[min(1, len(self._carried) - 1)], self._carried[-1]
        carried = (after - before) / max(1, last - first)
        return {"cpu_s": cpu, "loopback": round(carried), "peak_mib": self._peak, "resident_mib": self._resident}


def _cpu_s(pid: int) -> float:
    """CPU seconds of a process so far; 0 once it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _memory_mib(pid: int) -> tuple[float, float]:
    """(resident now, resident at most) of a process in MiB; zeros once it has ended."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
        found = {line.split(":")[0]: int(line.split()[1]) / 1024 for line in text.splitlines() if line[:2] == "Vm"}
        return round(found["VmRSS"]), round(found["VmHWM"])
    except (OSError, KeyError):
        return 0.0, 0.0
