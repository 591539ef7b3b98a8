"""A history on disk: one file that is only added to, and marks in it that say how far a generation of a state goes.

    <file>      a record for each round, in order: u64 length of the rest, then a safetensors body: the round's tensors
                as "<version>.<name>"

Little endian. A mark is a number of bytes, and the SHA-256 of so many from the beginning: whoever keeps one knows, when
it is read, that nothing before it was torn or altered. A round is on the disk before a mark says so; what lies behind
the last mark that was kept is of a round that was not committed, and the next one takes its place.
"""

import hashlib
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from fedft import durable
from fedft.histories.rounds import History, Round

_LENGTH = struct.Struct("<Q")


@dataclass(frozen=True)
class Mark:
    """How far in the file a history goes."""

    rounds: int
    last: Round | None
    """The round at the end; None for no rounds."""
    size: int
    """Bytes from the beginning of the file."""
    hashed: Any
    """SHA-256 of them, which can go on."""

    @property
    def said(self) -> dict[str, Any]:
        """The mark as plain JSON: {"bytes": int, "sha256": hexadecimal}; what `HistoryFile.read` takes."""
        return {"bytes": self.size, "sha256": self.hashed.hexdigest()}


class HistoryFile:
    """The file `path`, which is made with the first round. One process writes, and nobody else adds to it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._mark = Mark(0, None, 0, hashlib.sha256())
        self.room = 0
        """Bytes that a round takes: those of the last, 0 before the first."""

    def add(self, history: History) -> Mark | None:
        """Add the rounds that `history` has beyond the mark; returns the mark behind them, for `keep`.

        Durable when it returns. None, and nothing is written, for a history that does not begin with the rounds up to
        the mark, and where somebody has cut the file off. Raises RunPaused where the disk does not take it; what stood
        before the mark stands.
        """
        mark = self._mark
        if not history.follows(mark.rounds, mark.last):
            return None
        if mark.size and (not self._path.exists() or self._path.stat().st_size < mark.size):
            return None
        news = history.rounds[mark.rounds :]
        if not news:
            return mark
        data = b"".join(map(_record, news))
        hashed = mark.hashed.copy()
        hashed.update(data)
        durable.append(self._path, mark.size, data)
        self.room = len(data) // len(news)
        return Mark(mark.rounds + len(news), news[-1], mark.size + len(data), hashed)

    def keep(self, mark: Mark) -> None:
        """Go on from `mark`: what names it is durable."""
        self._mark = mark

    def read(self, said: Mapping[str, Any]) -> tuple[History, Mark] | None:
        """The history up to a mark, and the mark; None where so much is not there, or is torn or altered.

        Raises ValueError, KeyError or SafetensorError for what is whole and in another form.
        """
        size = int(said["bytes"])
        if (data := durable.beginning(self._path, size, str(said["sha256"]))) is None:
            return None
        history = History()
        for tensors in _records(data):
            for told in History.of(tensors).rounds:
                history = history.followed_by(told.version, told.tensors)
        rounds = history.rounds
        return history, Mark(len(rounds), rounds[-1] if rounds else None, size, hashlib.sha256(data))


def _record(told: Round) -> bytes:
    body = save_tensors({name: x.contiguous() for name, x in told.items()})
    return _LENGTH.pack(len(body)) + body


def _records(data: bytes) -> Iterator[dict[str, Tensor]]:
    at = 0
    while at < len(data):
        (size,) = _LENGTH.unpack_from(data, at)
        at += _LENGTH.size
        yield load_tensors(data[at : at + size])
        at += size
