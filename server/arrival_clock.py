"""A clock by which a run waits for answers and goes on as soon as one has come."""

import threading
import time

LEAST_S = 0.002  # between two looks for answers: others come with the first


class ArrivalClock:
    """`time`, but for a sleep that an answer ends. One thread sleeps, any may call `came`.

    Whoever sends answer upon answer makes nobody look all the time: a sleep is as long as the work was since the last
    one, unless that is longer than what was asked for.
    """

    def __init__(self) -> None:
        self._came = threading.Event()
        self._woke = time.monotonic()

    def came(self) -> None:
        """An answer has come."""
        self._came.set()

    def monotonic(self) -> float:
        """Seconds from any moment."""
        return time.monotonic()

    def sleep(self, seconds: float, /) -> None:
        """Return after so many seconds, or once an answer has come."""
        began = time.monotonic()
        if self._came.wait(seconds):
            time.sleep(max(0.0, min(began + seconds - time.monotonic(), max(LEAST_S, began - self._woke))))
            self._came.clear()
        self._woke = time.monotonic()
