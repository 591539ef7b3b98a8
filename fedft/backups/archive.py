"""The file of a backup: a tar that any tar reads, whose first member says what the others are.

    backup.json    form, kind ("run" or "site"), made (UTC), fedft, and files: name -> size in bytes, SHA-256
    ...            the files, in this order, nothing else; uncompressed, mode 0600

Reading trusts nothing: only plain files whose names are plain, in the order, of the sizes and with the digests of
`backup.json`; no link, device, folder or extension. So no member can lie outside, and none is larger than the backup.
"""

import hashlib
import json
import os
import re
import shutil
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, Literal, get_args

import fedft
from fedft import durable
from fedft.errors import ConfigError

FORM = 1
HEAD = "backup.json"
MAX_HEAD_BYTES = 2**22
MAX_FILES = 20_000
BLOCK, CHUNK = 512, 2**20
NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,79}(/[A-Za-z0-9_-][A-Za-z0-9._-]{0,79}){0,5}")
MAX_NAME = 99  # characters, as a plain tar holds them
Kind = Literal["run", "site"]


@dataclass(frozen=True)
class Part:
    """A file of a backup: what is written later is not in it."""

    name: str
    file: BinaryIO | Path
    """Held open; or its path, if nothing takes its place: of such files there may be more than can be open."""
    size: int
    """Bytes of it from the beginning."""

    def chunks(self) -> Iterator[bytes]:
        """Its bytes. Raises ConfigError where there are fewer by now."""
        with open(self.file, "rb") if isinstance(self.file, Path) else nullcontext(self.file) as file:
            file.seek(0)
            left = self.size
            while left:
                data = file.read(min(left, CHUNK))
                if not data:
                    raise ConfigError(f"{self.name}: became shorter while it was read; try again")
                left -= len(data)
                yield data


def write(path: Path, kind: Kind, parts: Sequence[Part]) -> dict[str, Any]:
    """Write a backup of these files to `path`, durably, whole or not at all; returns what its `backup.json` says.

    Each file is read twice. Raises ConfigError for more files than can be read again, RunPaused where the disk does not
    take it.
    """
    files = {part.name: {"size": part.size, "sha256": _digest(part)} for part in parts}
    now = datetime.now(UTC).isoformat(timespec="seconds")
    said = {"form": FORM, "kind": kind, "made": now, "fedft": fedft.__version__, "files": files}
    head = json.dumps(said, indent=1).encode()
    if len(head) > MAX_HEAD_BYTES or len(files) > MAX_FILES:
        raise ConfigError(f"{len(files)} files, a backup has at most {MAX_FILES}")

    def chunks() -> Iterator[bytes]:
        yield from _member(HEAD, len(head), iter([head]))
        for part in parts:
            yield from _member(part.name, part.size, part.chunks())
        yield bytes(2 * BLOCK)

    durable.write_from(path, chunks(), mode=0o600)
    return said


def restore(path: Path, to: Path) -> dict[str, Any]:
    """Put the files of the backup `path` into the folder `to`, all or none; returns what its `backup.json` says.

    `to` is made; it must not exist, or be empty. A restored run has an empty file `state/attempt`, by which the server
    knows that numbers were given after the backup. Raises ConfigError in one line for whatever else `path` holds, and
    where `to` cannot be made.
    """
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise ConfigError(f"--to {to}: is there already, and not empty; restore into another folder, then swap the two")
    aside = to.with_name(f"{to.name}.restoring")
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True, mode=0o700)
        with open(path, "rb") as file:
            said = _head(path, file)
            for name, facts in said["files"].items():
                _unpack(path, file, name, facts, aside)
            if file.read(2 * BLOCK + 1) != bytes(2 * BLOCK):
                raise ConfigError(f"{path}: there is more in it than its {HEAD} says, or less")
        if said["kind"] == "run":
            durable.write(aside / "state" / "attempt", b"", mode=0o600)
        os.replace(aside, to)
    except OSError as e:
        raise ConfigError(f"{e.filename or path}: cannot be read or written: {e.strerror}") from e
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return said


def _digest(part: Part) -> str:
    digest = hashlib.sha256()
    for data in part.chunks():
        digest.update(data)
    return digest.hexdigest()


def _member(name: str, size: int, chunks: Iterator[bytes]) -> Iterator[bytes]:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o600
    yield info.tobuf(tarfile.GNU_FORMAT)
    yield from chunks
    yield bytes(-size % BLOCK)


def _head(path: Path, file: BinaryIO) -> dict[str, Any]:
    """What the first member says, checked against the length of the whole. Raises ConfigError."""
    size = _size(path, file, HEAD)
    if size > MAX_HEAD_BYTES:
        raise ConfigError(f"{path}: {HEAD} has {size} bytes, at most {MAX_HEAD_BYTES} are read")
    data = file.read(size + -size % BLOCK)[:size]
    try:
        said = json.loads(data)
        if said["form"] != FORM:
            raise ConfigError(
                f"{path}: a backup of form {said['form']!r:.20}, wanted {FORM}: of another version of fedft"
            )
        files = said["files"]
        good = said["kind"] in get_args(Kind) and isinstance(files, dict) and len(files) <= MAX_FILES
        if not good or not all(_plain(name, facts) for name, facts in files.items()):
            raise ValueError(said["kind"])
    except (ValueError, KeyError, TypeError, RecursionError) as e:
        raise ConfigError(f"{path}: its {HEAD} is not one that `fedft backup` writes") from e
    total = sum(BLOCK + n + -n % BLOCK for n in (size, *(facts["size"] for facts in files.values()))) + 2 * BLOCK
    if total != (found := os.fstat(file.fileno()).st_size):
        raise ConfigError(f"{path}: has {found} bytes, wanted {total}: cut off, or not what `fedft backup` wrote")
    return dict(said)


def _plain(name: object, facts: object) -> bool:
    """Whether a file may be called so, and what is said of it is a size and a digest."""
    if not isinstance(name, str) or len(name) > MAX_NAME or not NAME.fullmatch(name) or name == HEAD:
        return False
    if not isinstance(facts, Mapping) or facts.keys() != {"size", "sha256"}:
        return False
    size, digest = facts["size"], facts["sha256"]
    return (
        type(size) is int
        and 0 <= size < 2**50
        and isinstance(digest, str)
        and bool(re.fullmatch("[0-9a-f]{64}", digest))
    )


def _size(path: Path, file: BinaryIO, name: str) -> int:
    """The size of the next member, which is to be a plain file called `name`. Raises ConfigError."""
    with suppress(tarfile.HeaderError, ValueError):
        info = tarfile.TarInfo.frombuf(file.read(BLOCK), "ascii", "strict")
        if info.name == name and info.type == tarfile.REGTYPE and info.size >= 0:
            return info.size
    raise ConfigError(f"{path}: no file {name} where one should begin; wanted what `fedft backup` wrote")


def _unpack(path: Path, file: BinaryIO, name: str, facts: Mapping[str, Any], folder: Path) -> None:
    if _size(path, file, name) != facts["size"]:
        raise ConfigError(f"{path}: {name} has another size than {HEAD} says")
    digest, left = hashlib.sha256(), facts["size"]

    def chunks() -> Iterator[bytes]:
        nonlocal left
        while left and (data := file.read(min(left, CHUNK))):
            left -= len(data)
            digest.update(data)
            yield data

    durable.write_from(folder / name, chunks(), mode=0o600)
    file.read(-facts["size"] % BLOCK)
    if left or digest.hexdigest() != facts["sha256"]:
        raise ConfigError(f"{path}: {name} was altered: its SHA-256 is not the one in {HEAD}")
