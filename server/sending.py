"""Letters of one exchange on their way: pushed, answered, answered otherwise than hoped, or not waited for any more."""

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

from fedft.carriers.interface import Letter, Refused, Reply
from fedft.errors import ClientFailed, RejectedUpdate
from fedft.server.admitting import Admitting, Rest
from fedft.server.federation import Federation
from fedft.server.traffic import Terms, Traffic, Until

log = logging.getLogger(__name__)

POLL_S = 0.05, 0.5  # between two looks for answers: after one has come, and up to, when none has for ten seconds
MAX_HELP = 5  # times in one exchange that a client may have forgotten the run, or the state: killed so often, or a liar
SAY_S = 60.0  # between two lines of the log about who is missing
SHOWN = 10  # names in such a line


class Came(NamedTuple):
    """An answer that a client has given."""

    client: str
    payload: bytes
    sha256: str = ""
    """SHA-256 of the payload, hexadecimal, where it is known already; else empty."""


Accept = Callable[[Came], Rest | None]
"""Takes an answer; returns what is left to be done before it counts, None for nothing. RejectedUpdate: it must not."""


@dataclass
class Sending:
    """One `Exchange.send` under way: the letters that wait for an answer, and how many answers were accepted."""

    federation: Federation
    asked: Mapping[str, Letter]
    """The letter meant for each client; the job may have to go before it."""
    enrolment: Callable[[str], Letter]
    """Makes the letter with the job."""
    join: Callable[[str, bytes], None]
    """Takes the client's name and its answer to that."""
    accept: Accept
    """Takes the answers to the letters meant."""
    traffic: Traffic
    until: Terms
    behind: Callable[[str, str], None] | None
    """See `Exchange.send`."""
    early: list[Reply] = field(default_factory=list)
    """Replies that have come already; those that are heard are taken out."""
    elsewhere: Callable[[Reply], bool] = lambda reply: False
    """Takes a reply to a letter that waits outside of this exchange; whether it is one."""
    waiting: dict[str, Letter] = field(default_factory=dict)
    """Letters without an answer by ticket."""
    started: float = 0.0
    """By the federation's clock."""
    _terms: Until = field(default_factory=Until)
    """When the exchange ends, as last looked."""
    _accepted: int = 0
    _enough_at: float = math.inf
    _said: float = 0.0
    """When the log was last told who is missing."""
    _away: dict[str, float] = field(default_factory=dict)
    """Since when each client that is waited for cannot be reached."""
    _helped: Counter[tuple[str, str]] = field(default_factory=Counter)
    _admitting: Admitting = field(default_factory=Admitting)
    _sent_at: dict[str, float] = field(default_factory=dict)
    """When the letter meant for each client was first sent."""

    def push(self, letter: Letter) -> None:
        """Send a letter and wait for its answer; bytes count as needed where it is the one meant for its client."""
        ticket, size = self.federation.post.push(letter)
        self.waiting[ticket] = letter
        if letter is self.asked[letter.client]:
            self._sent(letter)
            self.traffic.needed.setdefault(letter.client, size)
        self.traffic.down[letter.client] = self.traffic.down.get(letter.client, 0) + size

    def go_on(self, ticket: str, letter: Letter) -> None:
        """Wait for the answer to a letter that an exchange before this one has sent."""
        self.waiting[ticket] = letter
        self._sent(letter)

    def _sent(self, letter: Letter) -> None:
        """Note when the letter meant for its client was first sent."""
        sent = letter.begun.sent if letter.begun is not None else self.federation.clock.monotonic()
        self._sent_at.setdefault(letter.client, sent)

    def listen(self) -> None:
        """Take answers until nothing waits, or `until` says that it is over; all that came are settled then."""
        with self._admitting:
            self._listen()

    def _listen(self) -> None:
        post, clock = self.federation.post, self.federation.clock
        self.started = heard = self._said = clock.monotonic()
        self._terms = self.until()
        while self._look():
            came = False
            for reply in self._replies():
                came, heard = True, clock.monotonic()
                self._hear(reply)
                del reply  # its bytes, before the next client's turn
                if self.federation.virtual:  # what counts by this moment does not depend on how fast we write
                    self._admitting.settle()
                if self._over():
                    return
            if self._over():
                return
            if self._accepted >= self._terms.need and all(post.gone(letter.client) for letter in self.waiting.values()):
                return
            if not came and not self._admitting.look(POLL_S[0]):
                clock.sleep(self._pause(heard))

    def _replies(self) -> Iterator[Reply]:
        """The replies that have come, the early ones first."""
        while self.early:
            yield self.early.pop(0)
        yield from self.federation.post.pull(self.waiting)

    def _pause(self, heard: float) -> float:
        """Seconds until the next look, after a reply at `heard`; a virtual clock says itself when there is news."""
        now = self.federation.clock.monotonic()
        return self._ends() - now if self.federation.virtual else min(max((now - heard) / 20, POLL_S[0]), POLL_S[1])

    def _look(self) -> bool:
        """See who has left and when the exchange ends now; whether any letter waits for its answer."""
        run = self.federation
        run.look()
        for ticket in [t for t, letter in self.waiting.items() if letter.client in run.gone] if run.gone else ():
            client = self.waiting.pop(ticket).client
            run.post.cancel([ticket])
            left = RejectedUpdate("left", "takes no part any more")
            self.traffic.refuse(Reply("", client, left, proven=False), left, run.observe)
        if (terms := self.until()) != self._terms:
            self._terms = terms
            run.observe("terms", {**terms.to_dict(), "elapsed_s": run.clock.monotonic() - self.started})
        self._see_whether_enough()
        if run.deployed and run.clock.monotonic() >= self._said + SAY_S:
            self._say_who_is_missing()
        return bool(self.waiting)

    def _say_who_is_missing(self) -> None:
        """A line of the log while there are too few answers: who is missing since when, and what ends the wait."""
        run, now, t = self.federation, self.federation.clock.monotonic(), self._terms
        self._said = now
        missing = sorted({letter.client for letter in self.waiting.values()}, key=str.encode)
        away = {c: self._away.get(c, now) for c in missing if run.post.gone(c)}
        self._away = away
        if self._accepted >= t.need or not missing:
            return
        since = {c: f" for {_minutes(now - began)}" if began < now else "" for c, began in away.items()}
        names = [f"{c} (out of reach{since[c]})" if c in since else c for c in missing[:SHOWN]]
        more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
        asked = self.asked[missing[0]]
        what = "enrolment" if asked.kind == "query" else f"round {asked.round}"
        have, need = self._accepted + t.before, t.need + t.before
        ends = f"; the wait ends with {need - have:g} more"
        if math.isfinite(t.deadline_s):
            ends += f", or in {_minutes(self.started + t.deadline_s - now)} ([server] deadline_s)"
        said = "%s: %d of the %g answers that are needed, after %s; missing: %s%s%s"
        log.warning(said, what, have, need, _minutes(now - self.started), ", ".join(names), more, ends)

    def _see_whether_enough(self) -> None:
        enough = self._accepted >= self._terms.need
        self._enough_at = min(self._enough_at, self.federation.clock.monotonic()) if enough else math.inf

    def _ends(self) -> float:
        return min(self.started + self._terms.deadline_s, self._enough_at + self._terms.grace_s)

    def _over(self) -> bool:
        return self.federation.clock.monotonic() >= self._ends()

    def _hear(self, reply: Reply) -> None:
        """Take one reply; what must not count is told as a refusal."""
        known = self.waiting.pop(reply.ticket) if reply.ticket in self.waiting else None
        if known is None and self.elsewhere(reply):
            return
        with self._refusing(reply, known):
            if known is not None:
                self._take(reply, known)
            elif isinstance(reply.answer, RejectedUpdate):  # nothing waits for it, but it may have to be told
                raise reply.answer

    @contextmanager
    def _refusing(self, reply: Reply, known: Letter | None) -> Iterator[None]:
        """What is raised inside as RejectedUpdate is told as a refusal of this reply to the letter `known`."""
        try:
            yield
        except RejectedUpdate as e:
            if known is not None and not self.federation.deployed:
                _end_where_it_would_fail_again(known, e)
            counts = known is not None or e.code == "equivocation"
            self.traffic.refuse(reply, e, self.federation.observe, counts)
        self._see_whether_enough()

    def _take(self, reply: Reply, letter: Letter) -> None:
        """Take the answer to a letter. Raises RejectedUpdate."""
        if isinstance(reply.answer, RejectedUpdate):
            raise reply.answer
        if isinstance(reply.answer, Refused):
            if not self._help(letter.client, reply.answer):
                raise RejectedUpdate(reply.answer.code, reply.answer.reason)
            return
        self.traffic.up[letter.client] = self.traffic.up.get(letter.client, 0) + len(reply.answer)
        if letter is self.asked[letter.client]:
            seconds = self.federation.clock.monotonic() - self._sent_at[letter.client]
            self.traffic.seconds[letter.client] = seconds
            rest = self.accept(Came(letter.client, reply.answer, reply.sha256))
            if rest is None:
                self._accepted += 1
            else:
                held = [reply]
                work = partial(_worked, rest.work, held)
                self._admitting.begin(rest._replace(work=work), partial(self._settle, held, letter))
            return
        self.join(letter.client, reply.answer)
        self.push(self.asked[letter.client])

    def _settle(self, held: list[Reply], letter: Letter, end: Callable[[], None]) -> None:
        """Count an answer whose rest is done, or tell why it does not count; it is the only one of `held`."""
        with self._refusing(held[0], letter):
            end()
            self._accepted += 1

    def _help(self, client: str, answer: Refused) -> bool:
        """Send what the client lacks; False if that is not why it refused, or no longer believed."""
        why = (client, answer.code)
        if self.behind is None or answer.code not in ("behind", "wrong_run") or self._helped[why] >= MAX_HELP:
            return False
        self._helped[why] += 1
        if answer.code == "behind":
            self.behind(client, answer.reason)
            self.push(self.asked[client])
        else:
            self.push(self.enrolment(client))
        return True


def _worked(work: Callable[[], Any], held: list[Reply]) -> Any:
    """What `work` returns; the bytes of the answer, the only one of `held`, are then not held here any more."""
    found = work()
    held[0] = replace(held[0], answer=b"")
    return found


def _end_where_it_would_fail_again(letter: Letter, e: RejectedUpdate) -> None:
    """Raise what ends a simulation where a client crashed, or its numbers went out of bounds: they would do so again.

    Raises ClientFailed or FloatingPointError. Other refusals, such as by `[limits]`, cost only who is refused.
    """
    said = f"round {letter.round}: client {letter.client!r} failed: {e}"
    if e.code in ("nonfinite", "out_of_bounds"):
        raise FloatingPointError(said) from None
    if e.code == "client_error":
        raise ClientFailed(said) from None


def _minutes(seconds: float) -> str:
    """A time in words.

    >>> _minutes(59.6), _minutes(61), _minutes(7260)
    ('1 min', '1 min', '2 h 1 min')
    """
    minutes = max(0, round(seconds / 60))
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
