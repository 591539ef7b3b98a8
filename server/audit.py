"""What a run's operator can show later: `audit.jsonl` in the run folder, a line of JSON for each of these events.

    started       run, version, after ("stopped", or "kill" where the process before could not say so), healed (bytes of
                  a torn line that are left out)
    joined, left  site, rank or why ("revoked", "expired", "removed")
    admitted      site: its update is durable and counts; `recovered` where that was before a kill and is told now
    refused       site, code, size and sha256 of what came, proven: whether the site certainly sent it
    quarantined, lifted    site
    memory_lost   site: it had lost what it keeps between rounds, and began anew
    changed       keys: key -> [before, after], by: whose change it is
    admin         act, uid, and what it is about; failed: why nothing came of it
    stopped       finished: whether the run is at its end

Each has `time`, `round` and `before`, the digest of the line before (`fedft.security.chained_lines`). Nothing of what
was in a message is here, nor its text. What somebody did is durable before it acts; the others survive the process.
"""

import json
import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedft.errors import RunPaused
from fedft.reports.observers import Observer
from fedft.security import chained_lines
from fedft.security.chained_lines import Chain, ChainedLines
from fedft.update import MEMORY_LOST

log = logging.getLogger(__name__)

FILE = "audit.jsonl"
OF_OLD = "audit.unchained.jsonl"
FACTS: Mapping[str, tuple[str, ...]] = {
    "joined": ("rank",),
    "left": ("why",),
    "admitted": (),
    "refused": ("code", "size", "sha256", "proven"),
    "quarantined": (),
    "lifted": (),
    "changed": ("keys", "by"),
    MEMORY_LOST: (),
}
"""What a line has of an event of the run, beside the client."""
EVENTS = ("started", "stopped", "admin", *FACTS)
SYNCED = ("started", "stopped", "joined", "left", "quarantined", "lifted", "changed", "admin")
"""Events that are on the disk before `write` returns; the others are many."""


@dataclass
class Audit:
    """An observer that passes events on and writes a line for each of EVENTS. Any thread may use it."""

    path: Path
    observe: Observer
    _lines: ChainedLines | None = None
    _round: int = -1
    _admitted: set[str] = field(default_factory=set)
    """Sites of the round at work that have a line already."""
    _early: list[tuple[str, Mapping[str, Any]]] = field(default_factory=list)
    """Events of before the file was taken up, such as what the run file has changed."""
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def begin(self, run: str, version: int) -> None:
        """Take up the file, and write that the server has started. Raises RunPaused where the disk does not take it."""
        self._round = version
        if (old := _unchained(self.path)) is not None:
            old.rename(self.path.with_name(OF_OLD))
            log.warning("%s: its lines are no chain; it goes on as %s, and this one begins anew", self.path, OF_OLD)
        self._lines = ChainedLines(self.path)
        told = self._lines.last.get("event")
        self._admitted = {
            e["site"] for e in tail(self.path, 10_000) if (e["event"], e["round"]) == ("admitted", version)
        }
        after = {} if told is None else {"after": told if told == "stopped" else "kill"}
        healed = {"healed": self._lines.healed} if self._lines.healed else {}
        self.write("started", run=run, version=version, **after, **healed)
        for kind, info in self._early:
            self._take(kind, info)
        self._early.clear()

    def write(self, event: str, **facts: Any) -> None:
        """Add a line, durable where the event is of SYNCED. Raises RunPaused where the disk does not take it."""
        with self._lock:
            assert self._lines is not None, "`begin` comes first"
            line = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "round": self._round, "event": event}
            self._lines.add({**line, **facts}, sync=event in SYNCED)

    def __call__(self, kind: str, info: Mapping[str, Any]) -> None:
        """Take one event of the run: a line, and then whoever else observes. A full disk is told of, and no more."""
        with self._lock:
            if self._lines is None:
                self._early += [(kind, info)] if kind in FACTS else []
            else:
                try:
                    self._take(kind, info)
                except RunPaused as e:
                    log.error("audit: %s", e)
        self.observe(kind, info)

    def _take(self, kind: str, info: Mapping[str, Any]) -> None:
        if kind == "round":
            if info["round"] != self._round:
                self._round, self._admitted = info["round"], set()
            for client in info.get("recovered", ()):
                if client not in self._admitted:
                    self._admitted.add(client)
                    self.write("admitted", site=client, recovered=True)
        elif kind in FACTS:
            about = {k: info[of] for k, of in (("site", "client"), ("round", "round")) if of in info}
            if kind == "admitted":
                self._admitted.add(info["client"])
            self.write(kind, **about, **{k: info[k] for k in FACTS[kind]})
        elif kind == "ended":
            self.write("stopped", finished=info["summary"] is not None)


def verify(folder: Path) -> Chain:
    """The chain in a run folder, or in an `audit.jsonl` that was copied from one.

    Raises BrokenChain at the first line that is not as it was written, ConfigError where there is no record.
    """
    path = folder / FILE if folder.is_dir() else folder
    return chained_lines.verify(path, _fault, f"a run folder, or its {FILE}")


def _fault(entry: Any) -> str:
    """What is wrong with a line's JSON; "" if nothing is."""
    if not isinstance(entry, dict) or not {"time", "round", "event", "before"} <= entry.keys():
        return "wanted an object with time, round, event and before"
    return "" if entry["event"] in EVENTS else f"event is {entry['event']!r:.80}"


def tail(path: Path, most: int) -> list[dict[str, Any]]:
    """The last lines of an audit file, `most` at the most, oldest first; lines that are none are passed over."""
    found = []
    for line in path.read_bytes().splitlines()[-most:] if path.exists() else ():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if not _fault(entry):
            found.append(entry)
    return found


def _unchained(path: Path) -> Path | None:
    """The file, if an earlier version has written it, without a chain."""
    try:
        with open(path, "rb") as f:
            return path if b'"before"' not in (first := f.readline()) and first.endswith(b"\n") else None
    except OSError:
        return None
