"""Observers: functions that are called with each event of a run. None of them can end the run by failing.

def observer(kind, info): ...      hears every event; KINDS says which there are

@fedft.observe("line")
def told(info): ...                hears of these only
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

from fedft import check
from fedft.errors import in_one_line

log = logging.getLogger(__name__)

Observer = Callable[[str, Mapping[str, Any]], None]
"""(kind of event, its facts by name) -> nothing."""
Observers = Observer | Iterable[Observer]
"""One observer, or several."""
KINDS: Mapping[str, str] = {
    "preparing": "the run's folder is there, and its base model is being loaded",
    "header": "what is trained, what it will take, what privacy will cost",
    "changed": "the run file says otherwise than when the run was begun",
    "enrolling": "clients are sent the job",
    "enrolled": "a client has taken it up",
    "joined": "a client takes part from this round on",
    "left": "a client takes part no more, and why",
    "lifted": "a client's quarantine has ended",
    "steered": "an operator has changed something while the run goes on",
    "round": "a round begins: who is asked",
    "asking": "plans are sent, and until when answers count",
    "terms": "until when answers count now",
    "progress": "what a site is doing",
    "admitted": "an update counts",
    "refused": "an answer does not count, and why",
    "memory_lost": "a client has lost what it kept between rounds",
    "quarantined": "a client is not asked any more",
    "evaluating": "clients are asked to measure a state",
    "measured": "a client has measured it",
    "line": "the line of metrics.jsonl of a state, when it is on the disk",
    "link": "the connection to somebody's SuperLink is lost",
    "ended": "the run has ended or stopped; its summary, or None",
}
"""Kind of event -> what has happened. The facts that come with it are by name, plain values and lists."""


def observe(*kinds: str) -> Callable[[Callable[[Mapping[str, Any]], None]], Observer]:
    """A decorator that makes a function of an event's facts an observer of these kinds of event only.

        @fedft.observe("line")
        def told(info):
            print(info["version"], info.get("loss"))

        fedft.simulate("run.toml", observe=told)

    Raises ValueError for a kind that there is not.
    """
    check.one_of(KINDS, **{f"kind {n}": kind for n, kind in enumerate(kinds, 1)})

    def of(function: Callable[[Mapping[str, Any]], None]) -> Observer:
        @wraps(function)
        def observer(kind: str, info: Mapping[str, Any]) -> None:
            if kind in kinds:
                function(info)

        return observer

    return of


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
