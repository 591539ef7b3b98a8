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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from fedft import durable
from fedft.errors import ConfigError

log = logging.getLogger(__name__)

FIRST, BEFORE = "0" * 64, "before"
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
    link: str = BEFORE
    """The key under which a line has the digest of the line before."""
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
        said = {**entry, self.link: self._digest}
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
    lines, torn = read(path, wanted)
    for _ in checked(path, lines, fault):
        pass
    return Chain(len(lines), digest_of(lines), torn)


def read(path: Path, wanted: str) -> tuple[list[bytes], int]:
    """(the whole lines of a record, bytes of one behind them that was cut off). Raises ConfigError as `verify` does."""
    try:
        *lines, torn = path.read_bytes().split(b"\n")
    except OSError as e:
        raise ConfigError(f"{path}: {e.strerror}; wanted {wanted}") from e
    return lines, len(torn)


def digest_of(lines: Sequence[bytes]) -> str:
    """What a line behind these has to name: SHA-256 of the last, or 64 zeros."""
    return hashlib.sha256(lines[-1]).hexdigest() if lines else FIRST


def checked(path: Path, lines: Sequence[bytes], fault: Callable[[Any], str], link: str = BEFORE) -> Iterator[Any]:
    """The objects of a record's lines in their order, each once it is found to hold; BrokenChain at one that does not.

    `path` is named in the error; `fault` and `link` as of `verify` and `ChainedLines`.
    """
    for number, line in enumerate(lines):
        entry, why = _looked_at(line, digest_of(lines[max(0, number - 1) : number]), fault, link)
        if why:
            raise BrokenChain(f"{path}, line {number + 1}: {why}")
        yield entry


def _looked_at(line: bytes, last: str, fault: Callable[[Any], str], link: str) -> tuple[Any, str]:
    """(a line's object, what is wrong with it behind one of the digest `last`; "" if nothing is)."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None, "it is not JSON"
    if why := fault(entry):
        return entry, why
    named = entry.get(link)
    if not (isinstance(named, str) and DIGEST.fullmatch(named)):
        return entry, f"{link} is {named!r:.80}"
    if named != last:
        return entry, f"{link} is {named[:12]}..., the line before has {last[:12]}...: one was changed or is missing"
    return entry, ""
