"""One link to the sites for several runs: each has a part of it, and hears only what was said to its own messages."""

import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress

from fedft.carriers.interface import Link, LinkLost, Refused
from fedft.errors import RejectedUpdate


class SharedLink:
    """A link that is used by several runs, each in a thread of its own; one call to the link is made at a time.

    The link takes answers in up to the longest that any of its runs waits for, and has room for as many bytes at a time
    as it has for one run, so memory does not grow with the number of runs.
    """

    def __init__(self, link: Link) -> None:
        """`link`: nobody else uses it from now on."""
        self.link = link
        self.lock = threading.RLock()  # a generator that was left alone may be closed in the middle of another call
        self.longest: dict[Part, int] = {}
        """Bytes of the longest answer that each part waits for."""

    def part(self, most: int) -> "Part":
        """A run's part, to be closed at the run's end; `most`: bytes of the run's longest answer."""
        return Part(self, most)

    def close(self) -> None:
        """Leave the network."""
        self.link.close()


class Part:
    """One run's link; see `fedft.carriers.interface.Link`. Used by one thread."""

    def __init__(self, shared: SharedLink, most: int) -> None:
        self._shared, self._sent = shared, set[str]()
        with shared.lock:
            shared.longest[self] = most

    def nodes(self) -> Mapping[str, int]:
        """Node id by site, of those that can be reached now. Raises LinkLost."""
        with self._shared.lock:
            return self._shared.link.nodes()

    def speaks(self, node: int) -> int:
        """Version of the protocol that is agreed with a node."""
        with self._shared.lock:
            return self._shared.link.speaks(node)

    def push(self, node: int, kind: str, payload: Sequence[bytes], group: str) -> str:
        """Send a payload to a node; returns the message's id. Raises LinkLost."""
        with self._shared.lock:
            mid = self._shared.link.push(node, kind, payload, group)
        self._sent.add(mid)
        return mid

    def pull(self, ids: Collection[str], max_bytes: int) -> Iterator[tuple[str, bytes | Refused | RejectedUpdate]]:
        """(id of the message that is answered, answer) of new replies, one in memory at a time. Raises LinkLost."""
        shared = self._shared
        with shared.lock:
            shared.longest[self] = max_bytes
            found = iter(shared.link.pull(ids, max(shared.longest.values())))
        try:
            while True:
                with shared.lock:
                    got = next(found, None)
                if got is None:
                    return
                mid, answer = got
                self._sent.discard(mid)
                if isinstance(answer, bytes) and len(answer) > max_bytes:  # another run's may be longer
                    answer = RejectedUpdate(
                        "too_large", f"an answer of {len(answer)} bytes, at most {max_bytes} allowed"
                    )
                del got
                yield mid, answer
                del answer
        finally:
            with shared.lock:
                getattr(found, "close", lambda: None)()  # what was handed over last is no longer ours

    def forget(self, ids: Collection[str]) -> None:
        """Withdraw messages; an answer that still comes to one is dropped. Raises LinkLost."""
        self._sent.difference_update(ids)
        with self._shared.lock:
            self._shared.link.forget(ids)

    def close(self) -> None:
        """The run is over: nothing of it is on its way any more, and the link stays for the others."""
        with suppress(LinkLost):
            self.forget(list(self._sent))
        with self._shared.lock:
            self._shared.longest.pop(self, None)
