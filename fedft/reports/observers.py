"""Observers: functions that are called with each event of a run. None of them can end the run by failing.

def observer(kind, info): ...      kind "header", "round", "admitted", "line" (of metrics.jsonl), "asking", "ended", ...
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedft.errors import in_one_line

log = logging.getLogger(__name__)

Observer = Callable[[str, Mapping[str, Any]], None]
"""(kind of event, its facts by name) -> nothing."""
Observers = Observer | Iterable[Observer]
"""One observer, or several."""


class Audience:
    """Several observers as one: each is called with every event, in the order in which they were added.

    An observer that raises is named once, in one line of the log, and still gets later events. A `BaseException` such
    as KeyboardInterrupt is the user's and passes through.
    """

    def __init__(self, observers: Observers = ()) -> None:
        """`observers`: the first ones, called in this order."""
        self._all: list[Observer] = [observers] if callable(observers) else list(observers)
        self._told: set[int] = set()

    def add(self, observer: Observer) -> None:
        """Call `observer` with every later event, after the others."""
        self._all.append(observer)

    def __call__(self, kind: str, info: Mapping[str, Any]) -> None:
        """Call every observer with this event."""
        for observer in self._all:
            try:
                observer(kind, info)
            except Exception as e:
                if id(observer) not in self._told:
                    self._told.add(id(observer))
                    said = in_one_line(e)
                    log.warning("observer %s failed at %r, the run goes on: %s", _name(observer), kind, said)


@contextmanager
def told_of_the_end(observe: Observer, folder: Path) -> Iterator[dict[str, Any]]:
    """Call `observe` with "ended" when the block is left, also by an exception.

    The event's facts are the mapping that the block is given, {"folder": folder, "summary": None}: a block that reaches
    the end of the run puts the summary in.
    """
    ended: dict[str, Any] = {"folder": folder, "summary": None}
    try:
        yield ended
    finally:
        observe("ended", ended)


def _name(observer: Observer) -> str:
    """The name of an observer for the log."""
    return getattr(observer, "__qualname__", None) or type(observer).__qualname__
