"""Letters over an untrusted network: sealed, sent again when they are lost, answered once.

    letter   -> sealed TRAIN, EVALUATE or JOB           site: ANSWER, REFUSAL, or PROGRESS "ready" for a long answer
    ready    -> sealed FETCH, a few sites at a time     site: ANSWER
    silence  -> sealed STATUS                           site: PROGRESS: loading, queued, step 12 of 40, ready, unknown

Nothing below is trusted to deliver. A letter is pushed when its site can be reached, and again when the transport says
it is lost or the site does not know of it. The first answer that is signed by the site, for this run, round, attempt
and plan, is the answer; the same bytes again are dropped, other bytes are an `equivocation`.
"""

import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fedft.carriers.interface import Letter, Link, LinkLost, Refused, Reply, refused
from fedft.errors import RejectedUpdate
from fedft.reports.observers import Observer
from fedft.security import sealed
from fedft.security.sealed import About, Kind, Opened
from fedft.server.traffic import Clock

log = logging.getLogger(__name__)

DOING = ("loading", "queued", "working", "training", "ready", "unknown")
STATUS_S = 5.0  # silence after which a site is asked what it is doing
PLAN_BYTES_S = 1_000_000  # at which a plan is taken to arrive: until then a site cannot know of it
RETRY_S = 1.0  # between two attempts to reach the network
AGAIN_S = 1.0, 60.0  # before a letter that was lost goes out again: the first time, doubled each time up to
FETCH_S, FETCH_BYTES_S = 60.0, 100_000  # after so long, and slower than this, a long answer's place goes to the next
PARALLEL_FETCHES = 2  # long answers on their way at once: the transport holds them in memory
LATE_BYTES = 65536  # of an answer when nothing is open: it is told of, not used
MAX_FORGERIES = 3  # answers to one letter that are nobody's, before it is given up
KINDS = {"query": Kind.JOB, "train": Kind.TRAIN, "evaluate": Kind.EVALUATE}


class Keyring(Protocol):
    """Whose messages count: a roster."""

    @property
    def members(self) -> Mapping[str, Any]:
        """The sites."""

    def key_of(self, name: str) -> Ed25519PublicKey:
        """What the site signs with. Raises RejectedUpdate."""


@dataclass
class _Open:
    """A letter that waits for its answer."""

    letter: Letter
    digest: bytes
    size: int = 0
    reached: bool = False
    """Whether the site has said anything about it."""
    pushed: bool = False
    ready: bool = False
    """The site has a long answer and waits to be asked for it."""
    fetching: bool = False
    fetched_at: float = -math.inf
    """When the long answer was last asked for."""
    not_before: float = 0.0
    tries: int = 0
    heard: float = 0.0
    forgeries: int = 0


@dataclass
class NetworkPost:
    """`Post` over a `Link`, for the members of a roster. `run` is the run's identifier."""

    link: Link
    roster: Keyring
    key: Ed25519PrivateKey
    run: str
    observe: Observer = lambda kind, info: None
    clock: Clock = time
    _open: dict[str, _Open] = field(default_factory=dict)
    _ids: dict[str, tuple[str, str, Kind]] = field(default_factory=dict)
    """Ticket, site and kind of each message that may still be answered."""
    _answered: dict[tuple[str, int, int, bytes], str] = field(default_factory=dict)
    """Digest of the answer that counted, by site, round, attempt and plan."""
    _online: Mapping[str, int] = field(default_factory=dict)
    _count: int = 0
    _hashed: tuple[bytes, bytes] = (b"", sealed.digest(b""))
    _down_until: float = 0.0

    def push(self, letter: Letter) -> tuple[str, int]:
        """See `Post`. The letter leaves when its site can be reached."""
        payload = letter.payload()
        self._count += 1
        ticket = str(self._count)
        self._open[ticket] = _Open(letter, self._digest(payload), len(payload), heard=self.clock.monotonic())
        if self.clock.monotonic() >= self._down_until:
            self._linked(lambda: self._deliver(ticket, payload))
        return ticket, len(payload)

    def pull(self, tickets: Collection[str]) -> Iterator[Reply]:
        """See `Post`. Also sends what is due: letters not out yet, fetches of long answers, questions to the silent."""
        if self.clock.monotonic() < self._down_until:
            return
        self._hashed = b"", sealed.digest(b"")  # lets go of the payload
        self._linked(self._send_due)
        try:
            limit = max([o.letter.max_bytes for o in self._open.values()], default=LATE_BYTES)
            for mid, found in self.link.pull(list(self._ids), limit + sealed.OVERHEAD):
                if mid in self._ids and (reply := self._received(mid, found)) is not None:
                    yield reply
        except LinkLost as e:
            self._lost(e)

    def cancel(self, tickets: Collection[str]) -> None:
        """See `Post`. The last messages stay known, so that a late answer is told of."""
        for ticket in tickets:
            self._open.pop(ticket, None)
        if not self._open:
            kept = 4 * len(self.roster.members)
            self._answered = dict(list(self._answered.items())[-kept:])
            if old := list(self._ids)[:-kept]:
                self._linked(lambda: self.link.forget(old))
                self._ids = {mid: about for mid, about in self._ids.items() if mid not in set(old)}

    def gone(self, client: str) -> bool:
        """See `Post`."""
        return self.clock.monotonic() >= self._down_until and client not in self._online

    # -- out -----------------------------------------------------------------------------------------------------

    def _send_due(self) -> None:
        now = self.clock.monotonic()
        self._online = self.link.nodes()
        due = {t: o for t, o in self._open.items() if o.letter.client in self._online and now >= o.not_before}
        for o in self._open.values():
            allowed = FETCH_S + o.letter.max_bytes / FETCH_BYTES_S
            o.fetching = o.fetching and o.letter.client in self._online and now < o.fetched_at + allowed
        for ticket, o in due.items():
            if not o.pushed:
                self._deliver(ticket, o.letter.payload())
            elif not o.ready and now > o.heard + STATUS_S + (0 if o.reached else o.size / PLAN_BYTES_S):
                o.not_before = now + STATUS_S
                self._send(ticket, Kind.STATUS, b"")
        places = PARALLEL_FETCHES - sum(o.fetching for o in self._open.values())
        ready = sorted((o.fetched_at, t) for t, o in due.items() if o.ready and not o.fetching)
        for _, ticket in ready[: max(0, places)]:
            self._open[ticket].fetching, self._open[ticket].fetched_at = True, now
            self._send(ticket, Kind.FETCH, b"")

    def _deliver(self, ticket: str, payload: bytes) -> None:
        o = self._open[ticket]
        if not self._online:
            self._online = self.link.nodes()
        if o.letter.client in self._online:
            o.digest = self._digest(payload)
            self._send(ticket, KINDS[o.letter.kind], payload, o.digest)
            o.pushed, o.heard = True, self.clock.monotonic()

    def _digest(self, payload: bytes) -> bytes:
        """SHA-256, taken once of the plan that many sites are sent."""
        if payload is not self._hashed[0]:
            self._hashed = payload, sealed.digest(payload)
        return self._hashed[1]

    def _send(self, ticket: str, kind: Kind, payload: bytes, sha256: bytes | None = None) -> None:
        letter = self._open[ticket].letter
        about = About(self.run, letter.round, letter.attempt, letter.client, self._open[ticket].digest)
        data = sealed.seal(kind, about, payload, self.key, sha256)
        flower = "query" if kind in (Kind.STATUS, Kind.FETCH) else letter.kind
        mid = self.link.push(self._online[letter.client], flower, data, str(letter.round))
        self._ids[mid] = (ticket, letter.client, kind)

    def _linked(self, act: Callable[[], None]) -> None:
        try:
            act()
        except LinkLost as e:
            self._lost(e)

    def _lost(self, e: LinkLost) -> None:
        """All that was on its way is void: it is sent again once there is a link."""
        log.warning("network: %s; trying again", e)
        self.observe("link", {"lost": str(e)})
        self._ids.clear()
        self._online = {}
        self._down_until = self.clock.monotonic() + RETRY_S
        for o in self._open.values():
            o.pushed = o.ready = o.fetching = False

    # -- in ------------------------------------------------------------------------------------------------------

    def _received(self, mid: str, found: bytes | Refused | RejectedUpdate) -> Reply | None:
        ticket, site, kind = self._ids.pop(mid)
        o = self._open.get(ticket)
        if isinstance(found, Refused):  # the transport's own: nothing of ours is unsigned
            if kind is not Kind.STATUS:
                self._again(o, found.reason)
            return None
        try:
            if isinstance(found, RejectedUpdate):
                raise found
            opened = self._opened(found, site)
        except RejectedUpdate as e:
            return self._forged(ticket, site, e, found, kind)
        if o is not None and opened.about.plan == o.digest:
            o.heard, o.reached = self.clock.monotonic(), True
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

    def _forged(
        self, ticket: str, site: str, e: RejectedUpdate, found: bytes | RejectedUpdate, kind: Kind
    ) -> Reply | None:
        """What nobody can be blamed for: told of, and the letter goes out again, a few times."""
        size = len(found) if isinstance(found, bytes) else 0
        sha256 = hashlib.sha256(found).hexdigest() if isinstance(found, bytes) else ""
        o = self._open.get(ticket)
        if o is not None:
            o.forgeries += 1
            if o.forgeries >= MAX_FORGERIES:
                del self._open[ticket]
                return Reply(ticket, site, e, proven=False, size=size, sha256=sha256)
        if kind is not Kind.STATUS:
            self._again(o, str(e))
        return Reply("", site, e, proven=False, size=size, sha256=sha256)

    def _again(self, o: _Open | None, why: str) -> None:
        """The letter is lost: it goes out once more, in a while."""
        if o is not None:
            log.debug("%s: %s", o.letter.client, why)
            o.not_before = self.clock.monotonic() + min(AGAIN_S[0] * 2**o.tries, AGAIN_S[1])
            o.tries = min(o.tries + 1, 10)
            o.pushed = o.ready = o.fetching = False

    def _progress(self, o: _Open, payload: bytes) -> None:
        said = _json(payload)
        doing = said.get("doing")
        if doing not in DOING:
            doing = "?"
        if doing == "unknown":  # it restarted after the letter had reached it
            self._again(o, "does not know of the letter")
        if doing == "ready":
            o.not_before = self.clock.monotonic() + RETRY_S * o.fetching  # it had been asked for the answer just now
            o.ready, o.fetching = True, False
        told = {k: said[k] for k in ("step", "steps", "left_s") if _plain(said.get(k))}
        self.observe("progress", {"client": o.letter.client, "round": o.letter.round, "doing": doing, **told})

    def _answer(self, ticket: str, site: str, opened: Opened) -> Reply | None:
        """The first answer to a letter counts; what else comes is a repetition, an equivocation, or late."""
        about, digest = opened.about, opened.digest.hex()
        facts: dict[str, Any] = {"size": len(opened.payload), "sha256": digest}
        key = (site, about.round, about.attempt, about.plan)
        o = self._open.get(ticket)
        if o is not None and key[1:] == (o.letter.round, o.letter.attempt, o.digest):
            del self._open[ticket]
            if opened.kind is Kind.ANSWER:
                self._answered[key] = digest
                return Reply(ticket, site, opened.payload, **facts)
            said = _json(opened.payload)
            try:
                return Reply(ticket, site, refused(said.get("code"), said.get("reason")), **facts)
            except RejectedUpdate as e:
                return Reply(ticket, site, e, **facts)
        if opened.kind is not Kind.ANSWER or self._answered.get(key) == digest:
            return None
        text = f"answer to round {about.round}, attempt {about.attempt}"
        if key in self._answered:
            return Reply("", site, RejectedUpdate("equivocation", f"another {text}"), **facts)
        ahead = o is not None and (about.round, about.attempt) > (o.letter.round, o.letter.attempt)
        self._again(o, "answered another letter")
        code = "wrong_round" if ahead else "late"
        return Reply("", site, RejectedUpdate(code, f"{text}, which is not open"), **facts)


def _plain(x: object) -> bool:
    return type(x) in (int, float) and 0 <= x <= 1e9  # type: ignore[operator]


def _json(payload: bytes) -> dict[str, Any]:
    """A site's few words about itself; {} if they are none."""
    try:
        said = json.loads(payload) if len(payload) <= 4096 else {}
    except (ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}
