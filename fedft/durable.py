"""The one routine that puts files on disk: whole or not at all, and recognised when torn or altered.

A file is written aside, fsynced, renamed and its folder fsynced before anything is acknowledged. What must be trusted
after a crash carries its SHA-256 in front.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedft.errors import ConfigError, RunPaused

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

DIGEST_BYTES = 32


def commit(path: Path, body: bytes) -> None:
    """Make `path` hold `body` behind its SHA-256, durably, or raise RunPaused with the disk's reason."""
    write(path, hashlib.sha256(body).digest() + body)


def write(path: Path, body: bytes, *, mode: int = 0o666) -> None:
    """Make `path` hold `body`, whole or not at all, or raise RunPaused with the disk's reason.

    `mode`: permission bits, less the umask's; the file has them before it has content.
    """
    aside = path.with_name(path.name + ".tmp")
    try:
        if not path.parent.exists():
            path.parent.mkdir(parents=True)
            _sync(path.parent.parent)  # or the file would be gone with its folder
        aside.unlink(missing_ok=True)  # one that a crash left keeps its own mode, and whoever has it open reads on
        with open(aside, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as f:
            f.write(body)
            f.flush()
            os.fsync(f.fileno())
        os.replace(aside, path)
        _sync(path.parent)
    except OSError as e:
        raise RunPaused(f"{path}: cannot be written ({e.strerror}); nothing was lost, make room and resume") from e


def _sync(folder: Path) -> None:
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def verified(path: Path) -> bytes | None:
    """The body of a committed file, or None if it is absent, torn or altered."""
    try:
        raw = path.read_bytes()
    except OSError:
        return None
    body = raw[DIGEST_BYTES:]
    return body if hashlib.sha256(body).digest() == raw[:DIGEST_BYTES] else None


def metadata(body: bytes) -> dict[str, str]:
    """The metadata in a safetensors body. Raises ValueError or KeyError if it is none."""
    size = int.from_bytes(body[:8], "little")  # length of the JSON header, then the header
    return json.loads(body[8 : 8 + size])["__metadata__"]


@contextmanager
def alone(lock: Path, taken: str) -> Iterator[None]:
    """Keep other processes out while this lasts; a killed process holds no lock.

    Raises ConfigError with the text `taken` if another process is inside, or if the file cannot be written.
    """
    try:
        file = lock.open("wb")
    except OSError as e:
        raise ConfigError(f"{lock}: cannot be written: {e.strerror}") from e
    with file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as e:
                raise ConfigError(taken) from e
            except OSError:
                log.warning("%s: this file system has no locks; see that nothing else uses the folder", lock.parent)
        yield
