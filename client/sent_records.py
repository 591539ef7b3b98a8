"""What has left a site, as its own record: `sent.jsonl` in its state folder, one line of JSON before each answer goes:

    at        UTC, "2026-01-31T12:00:00Z", by the site's clock
    kind      "train", "evaluate", "job" or "secagg"
    run, round, attempt     of the request
    plan      SHA-256 of what the server sent: its plan, or its job
    bytes     length of the answer
    sha256    of the answer
    rows      that the answer was made from; 0 of a job, which says how many there are, and of a step of a secure sum
    data      SHA-256 over the files that these rows came from (`own_rows`); left out where there are none, and of a job
    before    SHA-256 of the line before, without its newline; 64 zeros in the first

`fedft.security.chained_lines` says what such a chain shows, and what not; so note the last line's digest, which
`fedft records verify` prints, elsewhere now and then.
"""

import hashlib
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedft.security import chained_lines
from fedft.security.chained_lines import DIGEST, Chain, ChainedLines

FILE = "sent.jsonl"
KINDS = ("train", "evaluate", "job", "secagg")
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


@dataclass
class SentRecords:
    """The record in the file `path`, to which one process adds lines. A torn last line is cut off, with a warning."""

    path: Path
    clock: Callable[[], float] = time.time
    """Seconds since 1970, UTC."""

    def __post_init__(self) -> None:
        self._lines = ChainedLines(self.path)

    def add(
        self, kind: str, run: str, round: int, attempt: int, plan: str, answer: bytes, rows: int, data: str = "",
        sha256: str = "",
    ) -> None:  # fmt: skip
        """Record an answer durably, before it is sent; see the module's docstring for what of it.

        `sha256` is the answer's, hexadecimal, where it is known. Nothing is added for the answer that was recorded
        last, which is sent once more. Raises RunPaused where the disk does not take it.
        """
        said = {"kind": kind, "run": run, "round": round, "attempt": attempt, "plan": plan, "bytes": len(answer)}
        said["sha256"] = sha256 or hashlib.sha256(answer).hexdigest()
        entry = {**said, "rows": rows} | ({"data": data} if data else {})
        if entry.items() <= self._lines.last.items():
            return
        self._lines.add(entry | {"at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.clock()))})


def verify(state: Path) -> Chain:
    """The chain in a site's state folder, or in a file that was copied from one.

    A torn last line is no break: a crash leaves one, and the site goes on without it. Raises BrokenChain at the first
    line that is not as it was written, ConfigError where there is no record.
    """
    path = state / FILE if state.is_dir() else state
    return chained_lines.verify(path, _fault, f"a site's state folder, or its {FILE}")


def _fault(entry: Any) -> str:
    """What is wrong with a line's JSON; "" if nothing is."""
    if not isinstance(entry, dict) or entry.keys() - MAYBE != {*TEXTS, *NUMBERS}:
        return f"wanted an object with {', '.join(sorted({*TEXTS, *NUMBERS}))}"
    for name, form in {**TEXTS, **dict.fromkeys(MAYBE & entry.keys(), DIGEST)}.items():
        if not (isinstance(entry[name], str) and form.fullmatch(entry[name])):
            return f"{name} is {entry[name]!r:.80}"
    for name in NUMBERS:
        if type(entry[name]) is not int or entry[name] < 0:
            return f"{name} is {entry[name]!r:.80}"
    return ""
