"""The hashes of a weight file's tensors, kept in fedft's cache folder so that gigabytes are read once.

    digests/<hash of the path>      SHA-256 of what follows; JSON: path, stamp, tensors

A file is known again by its path, size, inode and times of change (of its content, and of the inode, which no program
can set back). So a file that was written to or replaced is hashed again, and one that was written within SETTLED_S
before is not remembered: a clock's tick might not tell the next change. What is trusted: that the file system keeps
those times, and that nobody else writes to the cache folder. A record that is torn or altered counts for nothing.
"""

import hashlib
import json
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from fedft import durable
from fedft.errors import FedftError

log = logging.getLogger(__name__)

FOLDER = "digests"
SETTLED_S = 2.0  # the coarsest clock of a file system that is in use, FAT's
LEAST_BYTES = 2**24  # smaller files are hashed about as fast as a record is made durable
MOST = 1000  # records; those of files that are long gone make room


class Hashed(NamedTuple):
    """One tensor, as it is stored."""

    dtype: str
    """torch's name, as "bfloat16", where there is one."""
    shape: tuple[int, ...]
    sha256: str
    """Of its bytes in row order, hexadecimal."""


class Stamp(NamedTuple):
    """What tells a file from another one at its place, and from itself before a change."""

    size: int
    inode: int
    modified_ns: int
    changed_ns: int


def stamp(path: Path) -> Stamp:
    """The stamp of the file that a path leads to. Raises OSError."""
    found = os.stat(path)
    return Stamp(found.st_size, found.st_ino, found.st_mtime_ns, found.st_ctime_ns)


def known(path: Path, of: Stamp) -> dict[str, Hashed] | None:
    """The tensors by name of the file with this stamp at `path`; None where it is not known."""
    body = durable.verified(_record(path)) if of.size >= LEAST_BYTES else None
    try:
        said = json.loads(body) if body is not None else {}
        if (said.get("path"), said.get("stamp")) != (os.path.realpath(path), list(of)):
            return None
        return {n: Hashed(dtype, tuple(shape), sha256) for n, (dtype, shape, sha256) in said["tensors"].items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def lasting(of: Stamp) -> bool:
    """Whether a file that is hashed from now on may be remembered by this stamp: it is large, and has been at rest."""
    return of.size >= LEAST_BYTES and time.time() - max(of.modified_ns, of.changed_ns) / 1e9 >= SETTLED_S


def keep(path: Path, of: Stamp, tensors: Mapping[str, Hashed]) -> None:
    """Remember the tensors of the file with this stamp; a cache that cannot be written is no error."""
    said = {"path": os.path.realpath(path), "stamp": list(of), "tensors": tensors}
    try:
        durable.commit(record := _record(path), json.dumps(said).encode())
        oldest = sorted(record.parent.iterdir(), key=lambda p: p.stat().st_mtime)
        for old in oldest[: max(0, len(oldest) - MOST)]:
            old.unlink()
    except (FedftError, OSError) as e:
        log.debug("hashes of %s are not kept: %s", path, e)


def _record(path: Path) -> Path:
    from fedft.quickstart import base  # late: it brings the quickstart's training

    return base.cache_folder() / FOLDER / hashlib.sha256(os.path.realpath(path).encode()).hexdigest()[:32]
