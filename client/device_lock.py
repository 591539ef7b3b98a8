"""A lock file that several processes of one machine name, so that one of them uses its GPU or CPU at a time."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from fedft.errors import ConfigError

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]


def check(path: str) -> None:
    """Return None if `path` can be a lock. Raises ConfigError."""
    try:
        file = _opened(path)
    except OSError as e:
        raise ConfigError(f"[local] device_lock = {path!r}: cannot be opened: {e.strerror}") from e
    try:
        if fcntl is None:
            raise ConfigError(f"[local] device_lock = {path!r}: there are no file locks on this system")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pass  # another process works: that is what it is for
    except OSError as e:
        raise ConfigError(f"[local] device_lock = {path!r}: this file system has no locks: {e.strerror}") from e
    finally:
        os.close(file)


@contextmanager
def held(path: str) -> Iterator[None]:
    """Hold the lock inside, once no other process does. The system ends the lock of a process that is killed."""
    file = _opened(path)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)


def _opened(path: str) -> int:
    """A descriptor of the file, made if missing; it may be another user's, who made it first."""
    try:
        return os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return os.open(path, os.O_RDONLY | os.O_CREAT, 0o644)
