"""The one routine that puts files on disk: whole or not at all, and recognised when torn or altered.

A file is written aside, fsynced, renamed and its folder fsynced before anything is acknowledged. What must be trusted
after a crash carries its SHA-256 in front.
"""

import hashlib
import os
from pathlib import Path

from fedft.errors import RunPaused

DIGEST_BYTES = 32


def commit(path: Path, body: bytes) -> None:
    """Make `path` hold `body` behind its SHA-256, durably, or raise RunPaused with the disk's reason."""
    write(path, hashlib.sha256(body).digest() + body)


def write(path: Path, body: bytes) -> None:
    """Make `path` hold `body`, whole or not at all, or raise RunPaused with the disk's reason."""
    aside = path.with_name(path.name + ".tmp")
    try:
        with open(aside, "wb") as f:
            f.write(body)
            f.flush()
            os.fsync(f.fileno())
        os.replace(aside, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as e:
        raise RunPaused(f"{path}: cannot be written ({e.strerror}); nothing was lost, make room and resume") from e


def verified(path: Path) -> bytes | None:
    """The body of a committed file, or None if it is absent, torn or altered."""
    try:
        raw = path.read_bytes()
    except OSError:
        return None
    body = raw[DIGEST_BYTES:]
    return body if hashlib.sha256(body).digest() == raw[:DIGEST_BYTES] else None
