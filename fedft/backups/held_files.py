"""Whether a backup has a file open, for whoever would write over it; who replaces a file need not know."""

from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]


def hold(file: BinaryIO) -> None:
    """Have `is_held` say so of an open file until it is closed; nothing happens where there are no locks."""
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:  # it is about to be taken away, which a backup sees, or the file system has no locks
            return


def is_held(path: Path) -> bool:
    """Whether some process holds the file `path`; True too where nobody can tell."""
    if fcntl is None:
        return True
    try:
        with open(path, "rb") as f:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    return False
