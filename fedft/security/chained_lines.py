"""A record that shows what was done to it: a file of JSON lines, each with the SHA-256 of the line before.

    lines = ChainedLines(path)
    lines.add({"event": "started"})        {"before": "000...", "event": "started"}
    verify(path, fault)                    Chain(lines=1, last="5f2a...", torn=0), or BrokenChain

`before` is the digest of the line before, without its newline; 64 zeros in the first. Lines are only added: who
changes, removes or adds one in the middle breaks the chain. A whole chain can be made anew, and lines at its end can be
left out; so the last line's digest is worth a note elsewhere now and then.
"""

import hashlib
import json
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from fedft import durable
from fedft.errors import ConfigError

log = logging.getLogger(__name__)

FIRST = "0" * 64
DIGEST = re.compile(r"[0-9a-f]{64}")


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
class ChainedLines:
    """The record in the file `path`, to which one process adds lines. A torn last line is cut off, with a warning."""

    path: Path
    healed: int = 0
    """Bytes of a torn last line that this process has left out."""
    last: dict[str, Any] = field(default_factory=dict)
    """The last line's object; {} where there is none, or it is no object."""
    _end: int = 0
    _digest: str = FIRST

    def __post_init__(self) -> None:
        data = self.path.read_bytes() if self.path.exists() else b""
        whole, newline, torn = data.rpartition(b"\n")
        self._end, self.healed = len(whole) + len(newline), len(torn)
        if torn:
            log.warning("%s: the last line, of %d bytes, is not whole, and is left out", self.path, len(torn))
        if newline:
            line = whole.rpartition(b"\n")[2]
            self._digest = hashlib.sha256(line).hexdigest()
            try:
                self.last = dict(json.loads(line))
            except (ValueError, TypeError):
                log.error("%s: the last line is not what was written; see `fedft records verify`", self.path)

    def add(self, entry: Mapping[str, Any], *, sync: bool = True) -> None:
        """Add a line with `entry` and the digest of the line before.

        Durable when this returns, unless `sync` is False: then a crash of the machine may lose it, and the lines behind
        the last one that was durable. Raises RunPaused where the disk does not take it.
        """
        said = {**entry, "before": self._digest}
        line = json.dumps(said, sort_keys=True).encode()
        durable.append(self.path, self._end, line + b"\n", sync=sync)
        self._end, self._digest, self.last = self._end + len(line) + 1, hashlib.sha256(line).hexdigest(), said


def verify(path: Path, fault: Callable[[Any], str], wanted: str) -> Chain:
    """The chain in the file `path`.

    A torn last line is no break: a crash leaves one, and the record goes on without it.

    Args:
        path: of the record.
        fault: says what is wrong with a line's JSON; "" if nothing is.
        wanted: what the path should be, for the error where there is no such file.
    Raises:
        BrokenChain: at the first line that is not as it was written.
        ConfigError: there is no record.
    """
    try:
        *lines, torn = path.read_bytes().split(b"\n")
    except OSError as e:
        raise ConfigError(f"{path}: {e.strerror}; wanted {wanted}") from e
    last = FIRST
    for number, line in enumerate(lines, 1):
        if why := _fault(line, last, fault):
            raise BrokenChain(f"{path}, line {number}: {why}")
        last = hashlib.sha256(line).hexdigest()
    return Chain(len(lines), last, len(torn))


def _fault(line: bytes, last: str, fault: Callable[[Any], str]) -> str:
    """What is wrong with a line behind one of the digest `last`; "" if nothing is."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return "it is not JSON"
    if why := fault(entry):
        return why
    before = entry.get("before")
    if not (isinstance(before, str) and DIGEST.fullmatch(before)):
        return f"before is {before!r:.80}"
    if before != last:
        return f"before is {before[:12]}..., the line before has {last[:12]}...: one was changed or is missing"
    return ""
