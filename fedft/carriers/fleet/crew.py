"""What a fleet's post asks of its workers, and the form in which a post and a worker talk.

A call is all letters of a cohort that a worker's clients get, in one message; payloads that are equal are in it once:

    {"letters": [[ticket, client, kind, round, longest answer, number of its payload], ...]}      and the payloads
    {"is": "answer", "ticket": ...}                                                               and the answer
    {"is": "answer", "ticket": ..., "refused": [code, reason]}       also "rejected": what is no answer, and why
    {"is": "failed", "error": ..., "text": ..., "traceback": ...}    what a client, or the worker, ended with
    {"is": "done"}                                                   all that was asked has been answered, or stopped

Each line is JSON; what is said beside it are bytes as they are. Nothing that a worker says is code.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from fedft import errors
from fedft.carriers.interface import Answer, Letter, Refused
from fedft.errors import ClientFailed, FedftError, Refusal, RejectedUpdate

Said = tuple[dict[str, Any], bytes]
"""A line that a worker says, and the bytes beside it."""


@dataclass(frozen=True)
class Order:
    """A letter with its bytes made, and the ticket by which its answer is known."""

    ticket: str
    letter: Letter
    payload: bytes


class Crew(Protocol):
    """The workers of a fleet, numbered from 0; each has at most one call at a time."""

    def give(self, worker: int, orders: Sequence[Order]) -> None:
        """Send a call to a worker that is done with the one before."""

    def hear(self, timeout_s: float) -> Iterator[tuple[int, Said]]:
        """(worker, what it says), at most one of each; waits until one says something, or for so long.

        Raises RunPaused with the reason where a worker has died.
        """

    def stop(self, worker: int) -> None:
        """Tell a worker that nobody waits for the rest of its call."""


class WorkerTraceback(Exception):
    """The traceback of an exception in a worker, as text."""


def call(orders: Sequence[Order]) -> tuple[bytes, list[bytes]]:
    """(the line, payloads) of a call with these orders."""
    place: dict[bytes, int] = {}
    letters = [
        [o.ticket, o.letter.client, o.letter.kind, o.letter.round, o.letter.max_bytes, number]
        for o in orders
        for number in [place.setdefault(o.payload, len(place))]
    ]
    return json.dumps({"letters": letters, "payloads": len(place)}).encode(), list(place)


def orders(letters: Sequence[Sequence[Any]], payloads: Sequence[bytes]) -> list[Order]:
    """The orders of a call, as the worker takes them."""
    found = []
    for ticket, client, kind, number, longest, place in letters:
        payload = payloads[place]
        letter = Letter(client, kind, partial(_same, payload), round=number, max_bytes=longest)
        found.append(Order(ticket, letter, payload))
    return found


def _same(payload: bytes) -> bytes:
    return payload


def answer(ticket: str, found: Answer) -> Said:
    """What a worker says that has an answer to the letter of a ticket."""
    said: dict[str, Any] = {"is": "answer", "ticket": ticket}
    if isinstance(found, Refused):
        return {**said, "refused": [found.code, found.reason]}, b""
    if isinstance(found, RejectedUpdate):
        return {**said, "rejected": [found.code, str(found)]}, b""
    return said, found


def answer_in(said: Said) -> Answer:
    """The answer that `answer` was given."""
    line, payload = said
    if "refused" in line:
        return Refused(*line["refused"])
    if "rejected" in line:
        return RejectedUpdate(*line["rejected"])
    return payload


def raise_failure(worker: str, line: dict[str, Any]) -> None:
    """Raise what a worker says that it failed with: a FedftError again; anything else is a bug, with its traceback.

    `worker` is what messages call it: said in front of a mistake that it found as it began.
    """
    kind = getattr(errors, line["error"], None)
    known = isinstance(kind, type) and issubclass(kind, FedftError) and not issubclass(kind, Refusal)
    text = f"{worker}: {line['text']}" if worker else line["text"]
    cause = WorkerTraceback(f"\n{line['traceback']}") if line["traceback"] else None
    if known and isinstance(kind, type):
        raise kind(text) from cause
    raise ClientFailed(text) from cause
