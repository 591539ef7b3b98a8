"""Past rounds, kept on request (`[server] archive`): what was asked, what came and counted, what it made of the state.

    archive/round-00000003.fedft    "FDAR", format u16, then blocks: u32 length of a JSON object, the object, and
                                    `packed` bytes, of zlib or as they are:
                                    first {"what": "round", run, round, format, before, after (digests of states),
                                    roster (clients of the run), codec (of the updates), weights (by client, in the
                                    order in which they were summed)}, then a {"what": "plan", "client": ...} for each
                                    client that was asked and an {"what": "update", ...} for each that counted, the
                                    message as it came; bytes: of the message, sha256: of the same
    archive/index.jsonl             a line for each, in the order in which the rounds were committed: round, file, bytes
                                    and sha256 of the file, before, after, at (UTC), last: SHA-256 of the line before,
                                    without its newline; 64 zeros in the first

Little endian. A round is written, and its line, when its new state is durable and before its journal is dropped: all
that stands here was committed, and after a crash it is written from the journal, the same bytes. Nothing is changed
later; a round that is done again, on a state that was restored, and comes to another state has another file and line.
"""

import hashlib
import json
import struct
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from fedft import durable
from fedft.errors import ConfigError, StateDamaged
from fedft.security.chained_lines import ChainedLines

FOLDER, INDEX = "archive", "index.jsonl"
MAGIC, FORMAT = b"FDAR", 1
LINK = "last"  # `before` is a state's
LEVEL = 1  # of zlib: trained numbers are noise, and a higher one takes ten times as long for a hundredth of the bytes
MAX_BLOCK_HEADER = 2**24  # of our own making: a plan's names and a roster's weights fit
_HEAD = struct.Struct("<4sH")
_SIZE = struct.Struct("<I")


class Block(NamedTuple):
    """One part of a round's file."""

    said: dict[str, Any]
    """The JSON object."""
    data: bytes


@dataclass
class Archive:
    """The archive in `folder`, to which one process adds rounds. The folder is made with the first."""

    folder: Path
    codec: str
    """`[codec] up` of the run."""
    clock: Callable[[], float] = time.time
    """Seconds since 1970, UTC."""
    _lines: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._lines = read_index(self.folder)
        self._chain = ChainedLines(self.folder / INDEX, LINK)

    def holds(self, number: int, after: str) -> bool:
        """Whether a line is that of this round, and led to the state of this digest."""
        return any((line["round"], line["after"]) == (number, after) for line in reversed(self._lines))

    @property
    def room(self) -> int:
        """Bytes that a round takes: those of the last, 0 before the first."""
        return int(self._lines[-1]["bytes"]) if self._lines else 0

    def add(self, facts: Mapping[str, Any], plans: Mapping[str, bytes], updates: Iterable[tuple[str, bytes]]) -> None:
        """Make a round durable, and then its line.

        Args:
            facts: run, round, before, after, roster, weights.
            plans: encoded, by client.
            updates: (client, bytes) of those that counted, in the order of weights; one is in memory at a time.
        Raises:
            RunPaused: the disk does not take it. What stood before stands.
        """
        same = sum(line["round"] == facts["round"] for line in self._lines)
        name = f"round-{facts['round']:08d}{f'-{same}' if same else ''}.fedft"
        digest, size = hashlib.sha256(), 0

        def counted() -> Iterator[bytes]:
            nonlocal size
            for part in self._parts(facts, plans, updates):
                digest.update(part)
                size += len(part)
                yield part

        durable.write_from(self.folder / name, counted(), mode=0o600)
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.clock()))
        entry = {k: facts[k] for k in ("round", "before", "after")}
        self._chain.add(entry | {"file": name, "bytes": size, "sha256": digest.hexdigest(), "at": at})
        self._lines.append(self._chain.last)

    def _parts(
        self, facts: Mapping[str, Any], plans: Mapping[str, bytes], updates: Iterable[tuple[str, bytes]]
    ) -> Iterator[bytes]:
        yield _HEAD.pack(MAGIC, FORMAT)
        yield from _block({"what": "round", "codec": self.codec, **facts}, b"")
        for client, data in plans.items():
            yield from _block({"what": "plan", "client": client}, data)
        for client, data in updates:
            yield from _block({"what": "update", "client": client}, data)


def _block(said: Mapping[str, Any], data: bytes) -> Iterator[bytes]:
    packed = zlib.compress(data, LEVEL)
    smaller = len(packed) < len(data)
    body = packed if smaller else data
    about = {"bytes": len(data), "packed": len(body), "zlib": smaller, "sha256": hashlib.sha256(data).hexdigest()}
    head = json.dumps({**said, **about}).encode()
    yield _SIZE.pack(len(head)) + head
    yield body


def read_index(folder: Path) -> list[dict[str, Any]]:
    """The lines of an archive's index; a torn last one is left out.

    Raises StateDamaged for a line that is none: see `fedft records verify`.
    """
    path = folder / INDEX
    try:
        data = path.read_bytes() if path.exists() else b""
    except OSError as e:
        raise ConfigError(f"{path}: cannot be read: {e.strerror}") from e
    try:
        found = [dict(json.loads(line)) for line in data.split(b"\n")[:-1]]
        for line in found:
            line["round"], line["after"], line["bytes"] = int(line["round"]), str(line["after"]), int(line["bytes"])
    except (ValueError, TypeError, KeyError) as e:
        raise StateDamaged(f"{path}: not as it was written; `fedft records verify` names the line") from e
    return found


def blocks(path: Path) -> Iterator[Block]:
    """The blocks of a round's file, one in memory at a time.

    Raises ValueError for what is not in the format, or was altered; OSError where it cannot be read.
    """
    with open(path, "rb") as f:
        head = f.read(_HEAD.size)
        if len(head) != _HEAD.size or _HEAD.unpack(head) != (MAGIC, FORMAT):
            raise ValueError(f"{path}: not a round of an archive of format {FORMAT}")
        left = path.stat().st_size - len(head)
        while left:
            (n,) = _SIZE.unpack(_taken(f.read(_SIZE.size), _SIZE.size))
            said = json.loads(_taken(f.read(n if n <= min(left, MAX_BLOCK_HEADER) else 0), n))
            size, packed = int(said["bytes"]), int(said["packed"])
            body = _taken(f.read(packed if 0 <= packed <= left else 0), packed)
            left -= _SIZE.size + n + packed
            data = _unpacked(body, size) if said["zlib"] else body
            if len(data) != size or hashlib.sha256(data).hexdigest() != said["sha256"]:
                raise ValueError(f"{path}: a block of {said.get('client')!r} was altered")
            yield Block(said, data)


def _taken(data: bytes, wanted: int) -> bytes:
    if len(data) != wanted:
        raise ValueError("it ends in the middle of a block")
    return data


def _unpacked(body: bytes, size: int) -> bytes:
    try:
        return zlib.decompressobj().decompress(body, size + 1)
    except zlib.error as e:
        raise ValueError(f"a block cannot be unpacked: {e}") from e
