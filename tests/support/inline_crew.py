"""Workers of a fleet that are none: posts of this process, which say one thing each time that they are listened to."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fedft.carriers.fleet import crew as crews
from fedft.carriers.fleet import worker
from fedft.carriers.fleet.crew import Order, Said
from fedft.carriers.interface import Post


class InlineCrew:
    """A crew whose workers have these posts; everything goes through the form of a call."""

    def __init__(self, posts: Sequence[Post], facts: Sequence[Mapping[str, Any]] = ()) -> None:
        self.posts, self.facts = posts, facts
        self.calls: list[tuple[int, int, int]] = []
        """(worker, letters, payloads) of each call."""
        self.stopped: list[int] = []
        self._saying: dict[int, Iterator[Said]] = {}

    def __enter__(self) -> "InlineCrew":
        return self

    def __exit__(self, *_: object) -> None:
        self._saying.clear()

    def give(self, number: int, orders: Sequence[Order]) -> None:
        """Begin a call."""
        assert number not in self._saying, "a call before the last one was done"
        line, payloads = crews.call(orders)
        letters = json.loads(line)["letters"]
        self.calls.append((number, len(letters), len(payloads)))
        stopped = self.stopped.count(number)
        self._saying[number] = worker.answers(
            self.posts[number], crews.orders(letters, payloads), lambda: self.stopped.count(number) > stopped
        )

    def hear(self, timeout_s: float) -> Iterator[tuple[int, Said]]:
        """One thing of each worker that is at work, the last of them first."""
        for number in sorted(self._saying, reverse=True):
            said = next(self._saying[number])
            if said[0]["is"] == "done":
                del self._saying[number]
            yield number, said

    def stop(self, number: int) -> None:
        """Noted."""
        self.stopped.append(number)
