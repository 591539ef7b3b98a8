"""A post whose clients are dealt out to workers: each always to the same one, which remembers where the client stands.

    workers = dealt(names, 2)                    0 or 1 by name
    post = FleetPost(crew, workers)

A worker is sent all letters of a cohort that are its clients' in one call, so that what its clients can do together
they do, and equal messages reach it once. Answers come one by one, and here one at a time is in memory; a worker goes
on to its next client until a few of its answers wait. What the clients answer does not depend on the workers.
"""

import hashlib
from collections.abc import Collection, Iterator, Mapping

from fedft.carriers.fleet import crew as crews
from fedft.carriers.fleet.crew import Crew, Order
from fedft.carriers.interface import Letter, Reply

WAIT_S = 1.0  # that a pull waits for a first answer: the caller's deadlines are looked at so often


def dealt(names: Collection[str], workers: int) -> dict[str, int]:
    """The worker of each client: in order of the SHA-256 of their names, in turn, so that all have as many.

    >>> dealt(["anna", "bert", "carl"], 2)
    {'bert': 0, 'anna': 1, 'carl': 0}
    """
    order = sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())
    return {name: number % workers for number, name in enumerate(order)}


class FleetPost:
    """`Post` to clients in the workers of a crew. Used by one thread."""

    def __init__(self, crew: Crew, worker_of: Mapping[str, int], together: int = 1) -> None:
        """`worker_of`: the number of the worker that has a client, for every client. A crew has one post ever.

        `together`: letters of training that a worker begins at once, at most; only said.
        """
        self._crew, self._worker_of, self.together = crew, worker_of, together
        workers = range(max(worker_of.values(), default=0) + 1)
        self._count = 0
        self._letters: dict[str, Letter] = {}
        """Those that wait for an answer, by ticket."""
        self._queues: list[dict[str, Order]] = [{} for _ in workers]
        """By worker: what has not been sent yet."""
        self._asked: list[set[str] | None] = [None for _ in workers]
        """By worker: the tickets of its call that are still to be answered; None: it has none at work."""
        self._payloads: dict[bytes, bytes] = {}
        """Those in the queues, each once: a cohort is sent few different ones."""

    def push(self, letter: Letter) -> tuple[str, int]:
        """Keep a letter until the next pull; (ticket, bytes of the payload)."""
        payload = letter.payload()
        payload = self._payloads.setdefault(payload, payload)
        self._count += 1
        ticket = str(self._count)
        self._letters[ticket] = letter
        self._queues[self._worker_of[letter.client]][ticket] = Order(ticket, letter, payload)
        return ticket, len(payload)

    def pull(self, tickets: Collection[str]) -> Iterator[Reply]:
        """The replies that have come; waits up to a second for the first. The workers go on between two pulls.

        Raises what a client failed with as `LocalPost.pull` does, and RunPaused where a worker has died.
        """
        self._give()
        wait_s = WAIT_S
        while any(asked is not None for asked in self._asked):
            came = False
            for worker, said in self._crew.hear(wait_s):
                came = True
                if (reply := self._heard(worker, said)) is not None:
                    yield reply
                    wait_s = 0.0
            if not came:
                return
            self._give()

    def _heard(self, worker: int, said: crews.Said) -> Reply | None:
        """The reply that a worker has said, if it is one that is waited for."""
        line = said[0]
        if line["is"] == "failed":
            crews.raise_failure("", line)
        if line["is"] == "done":
            self._asked[worker] = None
            return None
        ticket = line["ticket"]
        (self._asked[worker] or set()).discard(ticket)
        letter = self._letters.pop(ticket, None)
        return None if letter is None else Reply(ticket, letter.client, crews.answer_in(said))

    def cancel(self, tickets: Collection[str]) -> None:
        """Drop these letters. A worker finishes the one that it is at, and begins no other of them."""
        gone = {*tickets}
        for ticket in gone:
            self._letters.pop(ticket, None)
        for worker, (queue, asked) in enumerate(zip(self._queues, self._asked, strict=True)):
            for ticket in gone & queue.keys():
                del queue[ticket]
            if asked:
                asked -= gone
                if not asked:
                    self._crew.stop(worker)

    def gone(self, client: str) -> bool:
        """False: a worker that is out of reach ends the run."""
        return False

    def _give(self) -> None:
        """Send each worker that has nothing to do all that lies there for it."""
        for worker, queue in enumerate(self._queues):
            if queue and self._asked[worker] is None:
                self._asked[worker] = {*queue}
                self._queues[worker] = {}
                self._crew.give(worker, list(queue.values()))
        if not any(self._queues):
            self._payloads.clear()
