"""Letters over an untrusted network: sealed, sent again when they are lost, answered once.

    letter   -> sealed TRAIN, EVALUATE, JOB or SECAGG   site: ANSWER, REFUSAL, or PROGRESS "ready" for a long answer
    ready    -> sealed FETCH, a few sites at a time     site: ANSWER
    silence  -> sealed STATUS                           site: PROGRESS: loading, queued, step 12 of 40, ready, unknown

Nothing below is trusted to deliver. A letter is pushed when its site can be reached, and again when the transport says
it is lost or the site does not know of it (`open_letter.py`). The first answer that is signed by the site, for this
run, round, attempt and plan, is the answer; the same bytes again are dropped, other bytes are an `equivocation`.

Everything here is in memory: after a restart the engine asks again, and a site that has answered sends the same bytes.
"""

import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedft.carriers.interface import Letter, Link, LinkLost, Refused, Reply
from fedft.errors import RejectedUpdate
from fedft.reports.observers import Observer
from fedft.security import sealed
from fedft.security.roster import Keyring
from fedft.security.sealed import About, Kind, Opened
from fedft.server import site_reports
from fedft.server.last_payload import LastPayload
from fedft.server.open_letter import OpenLetter
from fedft.server.traffic import Clock
from fedft.wire import versions

log = logging.getLogger(__name__)

RETRY_S = 1.0  # between two attempts to reach the network
PARALLEL_FETCHES = 2  # long answers on their way at once: the transport holds them in memory
LATE_BYTES = 65536  # of an answer when nothing is open: it is told of, not used, so a large one is not worth memory
MAX_FORGERIES = 3  # answers to one letter that are nobody's, before it is given up: who forges could go on for ever
KEPT_PER_SITE = 4  # messages and answers remembered between exchanges, so that what comes late is known for what it is
KINDS = {"query": Kind.JOB, "train": Kind.TRAIN, "evaluate": Kind.EVALUATE, "secagg": Kind.SECAGG}


@dataclass
class SealedPost:
    """`Post` over a `Link`, for the members of a roster. Used by one thread; its calls wait for the link at most."""

    link: Link
    roster: Keyring
    key: Ed25519PrivateKey
    """The server's, which the sites know."""
    run: str
    """The run's identifier: 16 hexadecimal digits."""
    observe: Observer = lambda kind, info: None
    """Hears of "link" when the network is lost, and of "progress" of sites."""
    clock: Clock = time
    _open: dict[str, OpenLetter] = field(default_factory=dict)
    """Letters that wait for their answer, by ticket."""
    _ids: dict[str, tuple[str, str, Kind]] = field(default_factory=dict)
    """Ticket, site and kind of each message that may still be answered, by the link's id of the message."""
    _answered: dict[tuple[str, int, int, bytes], str] = field(default_factory=dict)
    """Digest of the answer that counted, by site, round, attempt and plan."""
    _online: Mapping[str, int] = field(default_factory=dict)
    """Node by site, of those that could be reached when last looked."""
    _count: int = 0
    """Tickets given."""
    _last: LastPayload = field(default_factory=LastPayload)
    _unsaid: list[Reply] = field(default_factory=list)
    """Letters that cannot be written in the version of their site."""
    _down_until: float = 0.0
    """When the network is tried again."""

    def push(self, letter: Letter) -> tuple[str, int]:
        """Take a letter, which leaves when its site can be reached; (ticket, bytes of the payload)."""
        payload = letter.payload()
        self._count += 1
        ticket = str(self._count)
        self._open[ticket] = OpenLetter(letter, self._last.digest(payload), len(payload), self.clock.monotonic())
        if self.clock.monotonic() >= self._down_until:
            self._linked(lambda: self._deliver(ticket, payload))
        return ticket, len(payload)

    def pull(self, tickets: Collection[str]) -> Iterator[Reply]:
        """The replies that have come, one in memory at a time; also sends what is due.

        Due are letters not out yet, fetches of long answers, and questions to the silent. Replies beside a letter (late
        answers, equivocations, forgeries) have the ticket "". While the network is down nothing is done.
        """
        if self.clock.monotonic() < self._down_until:
            return
        self._last.let_go()
        self._linked(self._send_due)
        unsaid, self._unsaid = self._unsaid, []
        yield from unsaid
        try:
            limit = max([o.letter.max_bytes for o in self._open.values()], default=LATE_BYTES)
            for mid, found in self.link.pull(list(self._ids), limit + sealed.OVERHEAD):
                if mid in self._ids and (reply := self._received(mid, found)) is not None:
                    yield reply
        except LinkLost as e:
            self._lost(e)

    def cancel(self, tickets: Collection[str]) -> None:
        """Stop waiting for the answers to these letters. The last messages stay known: a late answer is told of."""
        for ticket in tickets:
            self._open.pop(ticket, None)
        kept = KEPT_PER_SITE * len(self.roster.members)
        if not self._open or len(self._answered) > 2 * kept:  # there may always be letters that wait
            self._answered = dict(list(self._answered.items())[-kept:])
            if old := [mid for mid, (ticket, _, _) in self._ids.items() if ticket not in self._open][:-kept]:
                self._linked(lambda: self.link.forget(old))
                self._ids = {mid: about for mid, about in self._ids.items() if mid not in set(old)}

    def gone(self, client: str) -> bool:
        """Whether the site could not be reached when last looked; never while the network itself is down."""
        return self.clock.monotonic() >= self._down_until and client not in self._online

    # Out

    def _send_due(self) -> None:
        now = self.clock.monotonic()
        self._online = self.link.nodes()
        due = {t: o for t, o in self._open.items() if o.letter.client in self._online and now >= o.not_before}
        for o in self._open.values():
            o.fetching = o.fetching and o.letter.client in self._online and not o.slow(now)
        for ticket, o in due.items():
            if not o.pushed:
                self._deliver(ticket, o.letter.payload())
            elif o.silent(now):
                o.ask_later(now)
                self._send(ticket, Kind.STATUS, b"")
        places = PARALLEL_FETCHES - sum(o.fetching for o in self._open.values())
        ready = sorted((o.fetched_at, t) for t, o in due.items() if o.ready and not o.fetching)
        for _, ticket in ready[: max(0, places)]:
            self._open[ticket].fetch(now)
            self._send(ticket, Kind.FETCH, b"")

    def _deliver(self, ticket: str, payload: bytes) -> None:
        o = self._open[ticket]
        if not self._online:
            self._online = self.link.nodes()
        if o.letter.client in self._online:
            try:
                if o.letter.kind != "secagg":  # whose messages have a version of their own
                    payload = self._last.spoken(payload, self.link.speaks(self._online[o.letter.client]))
            except RejectedUpdate as e:  # what the letter asks cannot be said to so old a site
                del self._open[ticket]
                self._unsaid.append(Reply(ticket, o.letter.client, e, proven=False))
                return
            o.digest = self._last.digest(payload)
            self._send(ticket, KINDS[o.letter.kind], payload, o.digest)
            o.sent(self.clock.monotonic())

    def _send(self, ticket: str, kind: Kind, payload: bytes, sha256: bytes | None = None) -> None:
        letter = self._open[ticket].letter
        node = self._online[letter.client]
        about = About(self.run, letter.round, letter.attempt, letter.client, self._open[ticket].digest)
        head = sealed.head(kind, about, payload, self.key, sha256, versions.SEALS[self.link.speaks(node)])
        flower = "query" if kind in (Kind.STATUS, Kind.FETCH, Kind.SECAGG) else letter.kind
        mid = self.link.push(node, flower, [head, payload], str(letter.round))
        self._ids[mid] = (ticket, letter.client, kind)

    def _linked(self, act: Callable[[], None]) -> None:
        try:
            act()
        except LinkLost as e:
            self._lost(e)

    def _lost(self, e: LinkLost) -> None:
        """Note that the network is gone: all that was on its way is void, and is sent again once there is a link."""
        log.warning("network: %s; trying again", e)
        self.observe("link", {"lost": str(e)})
        self._ids.clear()
        self._online = {}
        self._down_until = self.clock.monotonic() + RETRY_S
        for o in self._open.values():
            o.void()

    # In

    def _received(self, mid: str, found: bytes | Refused | RejectedUpdate) -> Reply | None:
        ticket, site, kind = self._ids.pop(mid)
        o = self._open.get(ticket)
        if isinstance(found, Refused):  # the transport's own: nothing of ours is unsigned
            if kind is not Kind.STATUS and o is not None:
                o.lose(self.clock.monotonic(), found.reason)
            return None
        try:
            if isinstance(found, RejectedUpdate):
                raise found
            opened = self._opened(found, site)
        except RejectedUpdate as e:
            return self._forged(ticket, site, e, found, kind)
        if o is not None and opened.about.plan == o.digest:
            o.hear(self.clock.monotonic())
            if opened.kind is Kind.PROGRESS:
                self._progress(o, opened.payload)
                return None
        return self._answer(ticket, site, opened)

    def _opened(self, data: bytes, site: str) -> Opened:
        opened = sealed.open_sealed(data, self.roster.key_of)
        about = opened.about
        if about.site != site:
            raise RejectedUpdate("bad_signature", f"asked {site}, answered and signed by {about.site}")
        if about.run != self.run:
            raise RejectedUpdate("wrong_run", f"answer of run {about.run}, this is run {self.run}")
        if opened.kind not in (Kind.ANSWER, Kind.REFUSAL, Kind.PROGRESS):
            raise RejectedUpdate("malformed", f"a message of kind {opened.kind.name} from a site")
        return opened

    def _forged(self, ticket: str, site: str, e: RejectedUpdate, found: bytes | RejectedUpdate, kind: Kind) -> Reply:
        """The reply for bytes that nobody can be blamed for; the letter goes out again, or is given up."""
        facts: dict[str, Any] = {}
        if isinstance(found, bytes):
            facts = {"size": len(found), "sha256": sealed.digest(found).hex()}
        o = self._open.get(ticket)
        if o is None:
            return Reply("", site, e, proven=False, **facts)
        o.forgeries += 1
        if o.forgeries >= MAX_FORGERIES:
            del self._open[ticket]
            return Reply(ticket, site, e, proven=False, **facts)
        if kind is not Kind.STATUS:
            o.lose(self.clock.monotonic(), str(e))
        return Reply("", site, e, proven=False, **facts)

    def _progress(self, o: OpenLetter, payload: bytes) -> None:
        doing, numbers = site_reports.progress(payload)
        if o.report(doing, self.clock.monotonic()):
            self.observe("progress", {"client": o.letter.client, "round": o.letter.round, "doing": doing, **numbers})

    def _answer(self, ticket: str, site: str, opened: Opened) -> Reply | None:
        """The reply for a signed answer: the first to a letter counts, others are dropped, equivocations, or late."""
        about, digest = opened.about, opened.digest.hex()
        facts: dict[str, Any] = {"size": len(opened.payload), "sha256": digest}
        key = (site, about.round, about.attempt, about.plan)
        o = self._open.get(ticket)
        if o is not None and key[1:] == (o.letter.round, o.letter.attempt, o.digest):
            del self._open[ticket]
            if opened.kind is Kind.ANSWER:
                self._answered[key] = digest
                return Reply(ticket, site, opened.payload, **facts)
            try:
                return Reply(ticket, site, site_reports.refusal(opened.payload), **facts)
            except RejectedUpdate as e:
                return Reply(ticket, site, e, **facts)
        if opened.kind is not Kind.ANSWER or self._answered.get(key) == digest:
            return None
        text = f"answer to round {about.round}, attempt {about.attempt}"
        if key in self._answered:
            return Reply("", site, RejectedUpdate("equivocation", f"another {text}"), **facts)
        ahead = o is not None and (about.round, about.attempt) > (o.letter.round, o.letter.attempt)
        if o is not None:
            o.lose(self.clock.monotonic(), "answered another letter")
        code = "wrong_round" if ahead else "late"
        return Reply("", site, RejectedUpdate(code, f"{text}, which is not open"), **facts)
