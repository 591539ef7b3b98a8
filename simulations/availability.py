"""When a device is on: a trace of spans in virtual seconds, which repeats for ever.

    Trace(((0.0, 60.0), (90.0, 120.0)), 120.0)          on for a minute, off for half of one, on for half of one

A device works while it is on. What it is at when it goes off it goes on with when it is on again.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedft.errors import ConfigError


@dataclass(frozen=True)
class Trace:
    """When one device is on."""

    spans: tuple[tuple[float, float], ...] = ()
    """(from, to) in virtual seconds, in order, none touching the next; none at all: the device is always on."""
    period: float = math.inf
    """Virtual seconds after which the spans begin anew, at least the last `to`."""

    def on(self, at: float) -> bool:
        """Whether the device is on at this moment."""
        return not self.spans or any(start <= at % self.period < end for start, end in self.spans)

    def after(self, start: float, seconds: float) -> float:
        """The moment at which the device has been on for so many seconds since `start`.

        >>> trace = Trace(((0.0, 60.0), (90.0, 120.0)), 120.0)
        >>> trace.after(50.0, 10.0), trace.after(50.0, 20.0), trace.after(130.0, 900.0)
        (60.0, 100.0, 1330.0)
        """
        if not self.spans:
            return start + seconds
        begun = start - start % self.period
        of_period = sum(end - first for first, end in self.spans)
        while True:
            for first, end in self.spans:
                at = max(start, begun + first)
                if at + seconds <= begun + end:
                    return at + seconds
                seconds -= max(0.0, begun + end - at)
            whole = max(0, math.ceil(seconds / of_period) - 1)  # periods that it takes in full: no need to walk them
            seconds -= whole * of_period
            begun += (whole + 1) * self.period

    def next_off(self, at: float) -> float:
        """The next moment, later than `at`, at which the device goes off; infinity where it never does."""
        if not self.spans:
            return math.inf
        since = at % self.period
        end = min((end for _, end in self.spans if end > since), default=self.period + self.spans[0][1])
        return max(at - since + end, math.nextafter(at, math.inf))


ALWAYS = Trace()


def traces(said: str | Sequence[Any], period: float | None) -> list[Trace]:
    """The traces of `[clients.devices] availability`: the lists themselves, or a JSON file of them.

    Raises ConfigError in one line for a file that cannot be read, and for what is no trace.
    """
    where = "[clients.devices] availability"
    if isinstance(said, str):
        try:
            lists = json.loads(Path(said).read_text(encoding="utf-8"))
        except (OSError, ValueError) as e:
            why = e.strerror if isinstance(e, OSError) else f"no JSON: {e}"
            raise ConfigError(f"{where}: {said}: {why}; wanted a file with a list of traces") from e
        where = f"{where}: {said}"
        if not isinstance(lists, list) or not lists:
            raise ConfigError(f"{where} has no list of traces, wanted [[[from, to], ...], ...]")
        return [_trace(spans, period, f"{where}, trace {n}") for n, spans in enumerate(lists)]
    return [_trace(spans, period, f"{where}[{n}]") for n, spans in enumerate(said)]


def _trace(spans: Any, period: float | None, where: str) -> Trace:
    """One trace. Raises ConfigError, beginning with `where`."""
    found: list[tuple[float, float]] = []
    for span in spans if isinstance(spans, list) else ():
        numbers = span if isinstance(span, list) and all(type(x) in (int, float) for x in span) else []
        last = found[-1][1] if found else -math.inf
        if len(numbers) != 2 or not max(0, last) <= numbers[0] < numbers[1] < math.inf or numbers[0] == last:
            raise ConfigError(f"{where} has {span!r:.80}, wanted [from, to] in seconds, one behind the other")
        found.append((float(numbers[0]), float(numbers[1])))
    if not found:
        raise ConfigError(f"{where} is {spans!r:.80}, wanted a list of [from, to]: a device that is never on")
    repeats = found[-1][1] if period is None else period
    if repeats < found[-1][1]:
        raise ConfigError(f"{where} ends at {found[-1][1]:g} s, behind period_s = {period:g}")
    return Trace(tuple(found), repeats)
