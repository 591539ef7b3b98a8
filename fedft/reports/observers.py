"""Who is told what happens in a run: any number of observers, none of which can end it by failing.

def observer(kind, info): ...        kind "round", "admitted", "line" (a line of metrics.jsonl), "ended", ...
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedft.errors import in_one_line

log = logging.getLogger(__name__)

Observer = Callable[[str, Mapping[str, Any]], None]
Observers = Observer | Iterable[Observer]


class Audience:
    """Several observers as one: each hears every event, in order.

    An exception of an observer's is told once, in one line of the log; it hears what comes next all the same. What is
    no `Exception`, such as a KeyboardInterrupt, is the user's word and passes.
    """

    def __init__(self, observers: Observers = ()) -> None:
        """`observers`: one, or several."""
        self._all: list[Observer] = [observers] if callable(observers) else list(observers)
        self._told: set[int] = set()

    def add(self, observer: Observer) -> None:
        """`observer` hears what comes from now on."""
        self._all.append(observer)

    def __call__(self, kind: str, info: Mapping[str, Any]) -> None:
        """One event."""
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
    """Tell `observe` "ended" once the block is left in whatever way, with the run's folder and its summary.

    Yields {"folder": folder, "summary": None}; who reaches the end puts the summary in.
    """
    ended: dict[str, Any] = {"folder": folder, "summary": None}
    try:
        yield ended
    finally:
        observe("ended", ended)


def _name(observer: Observer) -> str:
    return getattr(observer, "__qualname__", None) or type(observer).__qualname__
