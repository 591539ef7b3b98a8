"""The one routine that puts files on disk: whole or not at all, and recognised when torn or altered.

A file is written aside, fsynced, renamed and its folder fsynced before anything is acknowledged. What must be trusted
after a crash carries its SHA-256 in front.
"""

import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from fedft import __version__
from fedft.errors import ConfigError, RunPaused

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

DIGEST_BYTES = 32
PIECE = 2**20  # bytes: fewer than a processor's cache, and a system call for each costs nothing beside them
LOOK_S = 0.02  # between two looks at a lock that another holds
PLAIN = re.compile(r"[a-z0-9]([a-z0-9._-]{0,46}[a-z0-9])?")
HASHED = re.compile(r".*-[0-9a-f]{16}|[0-9a-f]{16}")
Part = bytes | memoryview
WRITTEN_BY = "written-by"
"""File of a state folder that says which fedft wrote there last, and in which format."""


def folder_name(name: str) -> str:
    """A folder's name for any text: a part of a path that leads nowhere else, at most 58 letters long.

    The text itself if it is plain and in lower case; else letters and digits of it and 16 digits of its SHA-256, so
    that texts which differ in case or signs do not meet.

    >>> folder_name("north"), folder_name("King Lear"), folder_name("..")
    ('north', 'King-Lear-dac097e090bd9d1a', '5ec1f7e700f37c3d')
    """
    if PLAIN.fullmatch(name) and not HASHED.fullmatch(name):
        return name
    digits = hashlib.sha256(name.encode()).hexdigest()[:16]
    return "-".join([*re.findall(r"[A-Za-z0-9]+", name[:40]), digits])


def commit(path: Path, *parts: Part, sha256: bytes | None = None, sync: bool = True, over: Path | None = None) -> None:
    """Write the file `path` durably: a SHA-256 of the parts, then the parts one after the other; mode 0600.

    The file is whole on disk when this returns. Raises RunPaused with the disk's reason; the file is then as it was.
    `verified` reads it.

    Args:
        path: of the file; its folder is made if missing.
        parts: the content.
        sha256: of all parts, 32 bytes, where the caller has it; None: it is computed while they are written.
        sync: whether to wait for the disk. If not, the file outlives the process at once, and a crash of the machine
            some seconds later; what such a crash leaves of it `verified` knows to be torn.
        over: a file of the same file system, with the mode 0600, that nobody reads: it is written over and renamed.
            None: a new one is made.
    """
    with _aside(path, 0o600, sync, over) as f:  # an update can tell of the rows that it was trained on
        f.write(sha256 or bytes(DIGEST_BYTES))
        if sha256 is not None:
            f.writelines(parts)
            f.truncate()
            return
        digest = hashlib.sha256()
        for piece in _pieces(parts):
            digest.update(piece)
            f.write(piece)
        f.truncate()
        f.seek(0)
        f.write(digest.digest())


def write(path: Path, *parts: Part, mode: int = 0o666) -> None:
    """Write the file `path` durably: the parts one after the other, whole or not at all; its folder is made if missing.

    `mode` are permission bits, less the umask's; the file has them before it has content. Raises RunPaused with the
    disk's reason; the file is then as it was.
    """
    write_from(path, parts, mode)


def write_from(path: Path, parts: Iterable[Part], mode: int = 0o666) -> None:
    """Write the file `path` as `write` does, of parts that are made one after the other: they need not fit in memory.

    What making them raises leaves the file as it was.
    """
    with _aside(path, mode) as f:
        f.writelines(parts)


@contextmanager
def _aside(path: Path, mode: int, sync: bool = True, over: Path | None = None) -> Iterator[BinaryIO]:
    """A file beside `path` to write to, new or `over`, which takes its place as the block ends; durable with `sync`."""
    aside = path.with_name(path.name + ".tmp")
    try:
        if not path.parent.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            if sync:
                _sync(path.parent.parent)  # or the file would be gone with its folder
        aside.unlink(missing_ok=True)  # one that a crash left keeps its own mode, and whoever has it open reads on
        if over is not None:
            os.replace(over, aside)
        with open(aside, "xb" if over is None else "r+b", opener=lambda name, flags: os.open(name, flags, mode)) as f:
            yield f
            f.flush()
            if sync:
                os.fsync(f.fileno())
        os.replace(aside, path)
        if sync:
            _sync(path.parent)
    except OSError as e:
        raise RunPaused(f"{path}: cannot be written ({e.strerror}); nothing was lost, make room and resume") from e


def _pieces(parts: Iterable[Part]) -> Iterator[Part]:
    """The bytes of the parts in pieces of at most PIECE: what was hashed is written while it is in the cache."""
    for part in parts:
        if len(part) <= PIECE:
            yield part
        else:
            yield from (memoryview(part)[at : at + PIECE] for at in range(0, len(part), PIECE))


def _sync(folder: Path) -> None:
    """Make the names in `folder` durable."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def verified(path: Path) -> bytes | None:
    """The bytes that `commit` wrote behind their SHA-256; None if the file is absent, unreadable, torn or altered."""
    try:
        with open(path, "rb") as f:
            digest, body = f.read(DIGEST_BYTES), f.read()
    except OSError:
        return None
    return body if hashlib.sha256(body).digest() == digest else None


def stands(path: Path) -> bool:
    """Whether `verified` finds bytes in the file, without holding them."""
    try:
        with open(path, "rb", buffering=0) as f:
            wanted, digest, room = f.read(DIGEST_BYTES), hashlib.sha256(), memoryview(bytearray(PIECE))
            while count := f.readinto(room):
                digest.update(room[:count])
    except OSError:
        return False
    return digest.digest() == wanted


def beginning(path: Path, size: int, sha256: str) -> bytes | None:
    """The first `size` bytes of the file `path`; None where so many cannot be read, or have another SHA-256."""
    try:
        with open(path, "rb") as f:
            body = f.read(size)
    except OSError:
        body = b""
    return body if (len(body), hashlib.sha256(body).hexdigest()) == (size, sha256) else None


def mark(folder: Path, form: int) -> None:
    """Have `folder` say that this fedft writes there, in the format of this number; durable, RunPaused as `write`."""
    if (text := f"fedft {__version__}, format {form}") != written_by(folder):
        write(folder / WRITTEN_BY, f"{text}\n".encode())


def written_by(folder: Path) -> str:
    """What `mark` wrote last, as "fedft 0.1.0, format 1"; "" for a folder of before there were marks, or of none."""
    try:
        with open(folder / WRITTEN_BY, encoding="utf-8", errors="replace") as f:
            return "".join(c for c in f.readline(80) if c.isprintable())
    except OSError:
        return ""


def metadata(body: bytes) -> dict[str, str]:
    """The metadata (texts by name) in the bytes of a safetensors file.

    Raises ValueError or KeyError for bytes that are none or have no metadata.
    """
    size = int.from_bytes(body[:8], "little")  # length of the JSON header, then the header
    return json.loads(body[8 : 8 + size])["__metadata__"]


@contextmanager
def alone(lock: Path, taken: str, wait_s: float = 0.0) -> Iterator[None]:
    """Hold the lock file `lock` inside, so that no other process or thread is inside with the same file.

    The operating system ends the lock of a process that is killed. On Windows, and on file systems without locks, where
    a warning is logged, others are not kept out. Raises ConfigError with the text `taken` if another holds the lock for
    longer than `wait_s` seconds, or if the file cannot be written.
    """
    try:
        file = lock.open("wb")
    except OSError as e:
        raise ConfigError(f"{lock}: cannot be written: {e.strerror}") from e
    with file:
        if fcntl is not None:
            end = time.monotonic() + wait_s
            while not _locked(file, lock.parent):
                if time.monotonic() >= end:
                    raise ConfigError(taken)
                time.sleep(LOOK_S)
        yield


def _locked(file: BinaryIO, folder: Path) -> bool:
    """Whether we have the lock on `file` now, or there are none on its file system, which is told."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        log.warning("%s: this file system has no locks; see that nothing else uses the folder", folder)
    return True


def append(path: Path, at: int, line: bytes, *, sync: bool = True) -> None:
    """Write `line` durably behind the first `at` bytes of the file `path`, which then ends; made if missing, mode 0600.

    Its folder is there. A crash leaves those bytes and a beginning of the line. Without `sync` the line survives the
    process, and not yet a crash of the machine. Raises RunPaused with the disk's reason.
    """
    try:
        new = not path.exists()
        with open(path, "ab", opener=lambda name, flags: os.open(name, flags, 0o600)) as f:
            f.truncate(at)  # what a crash, or a full disk, left of another line
            f.write(line)
            f.flush()
            if sync:
                os.fsync(f.fileno())
        if new:
            _sync(path.parent)
    except OSError as e:
        raise RunPaused(f"{path}: cannot be written ({e.strerror}); nothing was lost, make room and resume") from e
