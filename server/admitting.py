"""Answers that are looked at and written down while the next ones come: in one thread, in the order in which they came.

Hashing, writing, waiting for the disk and the arithmetic on large tensors leave Python to others. What comes of an
answer is told in the caller's thread, in the same order: nobody but the caller changes what the round knows.
"""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import Any, NamedTuple

LARGE = 2**20  # bytes of an answer; for less the thread's turns in Python would cost the caller more than the work
MOST = 2  # answers at work or waiting for it: each is in memory, as it came and decoded


class Rest(NamedTuple):
    """What is left to do with an answer."""

    size: int
    """Bytes of the answer."""
    work: Callable[[], Any]
    """Most of it, which may be done in another thread. Raises RejectedUpdate for an answer that must not count."""
    then: Callable[[Any], None]
    """Done in the caller's thread with what `work` has returned: from then on the answer counts."""


Settle = Callable[[Callable[[], None]], None]
"""Is given a function that ends an answer's work: it raises what `work` has raised, or does what comes `then`."""


class Admitting:
    """Does the rest of answers; a context, within which answers come. It ends when all of them are settled.

    An exception that leaves the block ends what is at work, which may be durable then, and drops what has not begun.
    """

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._begun: deque[tuple[Future[Any], Callable[[Any], None], Settle]] = deque()

    def __enter__(self) -> "Admitting":
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        try:
            if kind is None:
                self.settle()
        finally:
            self._begun.clear()
            if self._pool is not None:
                self._pool.shutdown(wait=True, cancel_futures=True)
                self._pool = None

    def begin(self, rest: Rest, settle: Settle) -> None:
        """Do the rest of an answer behind those that came before it: at once, or in the thread if it is LARGE.

        `settle` is called in this thread, now or in a later call; it is also where errors come out.
        """
        self.look()
        if rest.size < LARGE and not self._begun:
            settle(lambda: rest.then(rest.work()))
            return
        while len(self._begun) >= MOST:
            self._settle_first()
        self._pool = self._pool or ThreadPoolExecutor(1, "admitting")
        self._begun.append((self._pool.submit(rest.work), rest.then, settle))  # the work may hold the answer's bytes

    def settle(self) -> None:
        """Wait until no answer is at work any more, and tell what came of each."""
        while self._begun:
            self._settle_first()

    def look(self, wait_s: float = 0.0) -> bool:
        """Settle the answers whose work is done; whether any was at work. Waits so long for the first, at most."""
        there = bool(self._begun)
        if there and wait_s:
            wait([self._begun[0][0]], timeout=wait_s)
        while self._begun and self._begun[0][0].done():
            self._settle_first()
        return there

    def _settle_first(self) -> None:
        """Wait for the first answer's work, and tell."""
        work, then, settle = self._begun.popleft()
        settle(lambda: then(work.result()))
