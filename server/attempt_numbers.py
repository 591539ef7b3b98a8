"""The numbers of a run's attempts at rounds, on disk: what a site answers to one counts for no other."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fedft import durable

JUMP, MAX_AHEAD = 2**16, 2**30  # at a time, and beyond the seconds since 1970 in all


@dataclass(frozen=True)
class AttemptNumbers:
    """The last number given, in the file `path`: SHA-256 of the rest, then the number in decimal."""

    path: Path
    commit: Callable[[Path, bytes], None]
    """Writes a file, see `durable.commit`."""

    def next(self, *, begun: bool) -> int:
        """A number greater than any given before in this run, durable when returned: no two attempts share one.

        `begun`: whether rounds were committed, so that there was a number, though it may be lost.
        """
        if (last := self._last()) is not None:
            number = last + 1
        elif not self.path.exists() and not begun:
            number = 0
        else:  # damaged, or lost: a number far beyond what can have been given
            number = int(max(self.path.stat().st_mtime if self.path.exists() else 0, time.time()))
        self.commit(self.path, str(number).encode())
        return number

    def jump(self) -> bool:
        """Have the next attempt's number lie far beyond those given, of which some are not known here.

        Durable when it returns. False, and nothing is changed, for a number that would be beyond all bounds.
        """
        number = max((self._last() or 0) + JUMP, int(time.time()))
        if number > time.time() + MAX_AHEAD:
            return False
        self.commit(self.path, str(number).encode())
        return True

    def _last(self) -> int | None:
        body = durable.verified(self.path)
        return None if body is None else int(body)
