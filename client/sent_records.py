"""What has left a site, as its own record: `sent.jsonl` in its state folder, one line of JSON before each answer goes:

    at        UTC, "2026-01-31T12:00:00Z", by the site's clock
    kind      "train", "evaluate" or "job"
    run, round, attempt     of the request
    plan      SHA-256 of what the server sent: its plan, or its job
    bytes     length of the answer
    sha256    of the answer
    rows      that the answer was made from; 0 of a job, which says how many there are
    data      SHA-256 over the files that these rows came from (`own_rows`); left out where there are none, and of a job
    before    SHA-256 of the line before, without its newline; 64 zeros in the first

Lines are only added, and each holds the digest of the one before: who changes, removes or adds one in the middle breaks
the chain. A whole chain can be made anew, and lines at its end can be left out; so note the last line's digest, which
`fedft records verify` prints, elsewhere now and then.
"""

import hashlib
import json
import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from fedft import durable
from fedft.errors import ConfigError

log = logging.getLogger(__name__)

FILE = "sent.jsonl"
FIRST = "0" * 64
KINDS = ("train", "evaluate", "job")
DIGEST = re.compile(r"[0-9a-f]{64}")
TEXTS = {
    "at": re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"),
    "kind": re.compile("|".join(KINDS)),
    "run": re.compile(r"[0-9a-f]{16}"),
    "plan": DIGEST,
    "sha256": DIGEST,
    "before": DIGEST,
}
MAYBE = {"data"}  # a digest, which lines may lack
NUMBERS = ("round", "attempt", "bytes", "rows")


class Chain(NamedTuple):
    """A record whose lines hold together."""

    lines: int
    last: str
    """SHA-256 of the last line; of 64 zeros where there is none."""
    torn: int
    """Bytes behind the last whole line: a line that was cut off while it was written."""


class BrokenChain(Exception):
    """A record that is not as it was written; the text names the line and what is wrong with it."""


@dataclass
class SentRecords:
    """The record in the file `path`, to which one process adds lines. A torn last line is cut off, with a warning."""

    path: Path
    clock: Callable[[], float] = time.time
    """Seconds since 1970, UTC."""
    _end: int = 0
    _last: str = FIRST
    _entry: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        data = self.path.read_bytes() if self.path.exists() else b""
        whole, newline, torn = data.rpartition(b"\n")
        self._end = len(whole) + len(newline)
        if torn:
            log.warning("%s: the last line, of %d bytes, is not whole, and is left out", self.path, len(torn))
        if newline:
            line = whole.rpartition(b"\n")[2]
            self._last = hashlib.sha256(line).hexdigest()
            try:
                self._entry = dict(json.loads(line))
            except (ValueError, TypeError):
                log.error("%s: the last line is not what was written; see `fedft records verify`", self.path)

    def add(
        self, kind: str, run: str, round: int, attempt: int, plan: str, answer: bytes, rows: int, data: str = ""
    ) -> None:
        """Record an answer durably, before it is sent; see the module's docstring for what of it.

        Nothing is added for the answer that was recorded last, which is sent once more. Raises RunPaused where the disk
        does not take it.
        """
        said = {"kind": kind, "run": run, "round": round, "attempt": attempt, "plan": plan, "bytes": len(answer)}
        entry = {**said, "sha256": hashlib.sha256(answer).hexdigest(), "rows": rows} | ({"data": data} if data else {})
        if entry.items() <= self._entry.items():
            return
        entry |= {"at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.clock())), "before": self._last}
        line = json.dumps(entry, sort_keys=True).encode()
        durable.append(self.path, self._end, line + b"\n")
        self._end, self._last, self._entry = self._end + len(line) + 1, hashlib.sha256(line).hexdigest(), entry


def verify(state: Path) -> Chain:
    """The chain in a site's state folder, or in a file that was copied from one.

    A torn last line is no break: a crash leaves one, and the site goes on without it. Raises BrokenChain at the first
    line that is not as it was written, ConfigError where there is no record.
    """
    path = state / FILE if state.is_dir() else state
    try:
        *lines, torn = path.read_bytes().split(b"\n")
    except OSError as e:
        raise ConfigError(f"{path}: {e.strerror}; wanted a site's state folder, or its {FILE}") from e
    last = FIRST
    for number, line in enumerate(lines, 1):
        if why := _fault(line, last):
            raise BrokenChain(f"{path}, line {number}: {why}")
        last = hashlib.sha256(line).hexdigest()
    return Chain(len(lines), last, len(torn))


def _fault(line: bytes, last: str) -> str:
    """What is wrong with a line behind one of the digest `last`; "" if nothing is."""
    try:
        entry = json.loads(line)
    except ValueError:
        return "it is not JSON"
    if not isinstance(entry, dict) or entry.keys() - MAYBE != {*TEXTS, *NUMBERS}:
        return f"wanted an object with {', '.join(sorted({*TEXTS, *NUMBERS}))}"
    for name, form in {**TEXTS, **dict.fromkeys(MAYBE & entry.keys(), DIGEST)}.items():
        if not (isinstance(entry[name], str) and form.fullmatch(entry[name])):
            return f"{name} is {entry[name]!r:.80}"
    for name in NUMBERS:
        if type(entry[name]) is not int or entry[name] < 0:
            return f"{name} is {entry[name]!r:.80}"
    if entry["before"] != last:
        return f"before is {entry['before'][:12]}..., the line before has {last[:12]}...: one was changed or is missing"
    return ""
