"""Bad clients: how a site may answer other than it should, and the link and clock under which many meet one server.

Each `Bad` says what it does, by which code the server tells of it and at which check of the threat model. A check below
5 proves nothing about the site it names, which is then never quarantined; from 5 on it is, after three rounds.
"""

import json
import struct
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from deployed import SERVER_KEY, Direct, Site, key_of
from flwr.app import RecordDict

from fedft.carriers.flower import grid
from fedft.carriers.interface import Refused
from fedft.client.disk import Asked, SiteDisk
from fedft.config import RunConfig
from fedft.contract import State
from fedft.errors import RejectedUpdate
from fedft.security import sealed
from fedft.security.sealed import Kind, Opened
from fedft.update import Plan, Update
from fedft.wire import messages, versions
from fedft.wire.table import Entry, form

NOBODY, SEEDS, REFUSES = 0, 15, 16
"""Beside the checks 1 to 14: nothing came that could be checked; the table of seed updates; a signed refusal."""


@dataclass(frozen=True)
class Declared:
    """An answer that is only said to be so large: whoever reads it has lost."""

    size: int


Said = bytes | Declared | RecordDict | Refused
"""What a link may bring: sealed bytes, a size, a record that is none of ours, or word that there is no answer."""


class Kept(SiteDisk):
    """A disk that is memory."""

    _kept: tuple[Asked, bytes] | None = None
    _held: tuple[str, State] | None = None

    def keep_answer(self, asked: Asked, payload: bytes) -> None:
        """See `SiteDisk`."""
        self._kept = asked, payload

    def answer(self, run: str) -> tuple[Asked, bytes] | None:
        """See `SiteDisk`."""
        return self._kept

    def keep_state(self, run: str, label: str, state: State, plan: Plan | None = None) -> None:
        """See `SiteDisk`."""
        self._held = label, state

    def state(self, run: str) -> tuple[str, State] | None:
        """See `SiteDisk`."""
        return self._held


class BadSite(Site):
    """A site with everything an honest one has, that answers as its `Bad` says."""

    def __init__(self, bad: "Bad", name: str, index: int, folder: Path, configured: RunConfig) -> None:
        super().__init__(name, index, folder, configured)
        self.bad, self.heard = bad, 0
        self.overheard: dict[str, bytes] = {}
        """What others have answered, by name."""
        self.kept: dict[Any, Any] = {}
        """What this kind remembers."""

    def start(self) -> None:
        """A process whose disk is memory: a crowd of these would spend its time on fsync."""
        super().start()
        self.responder.disk = self.responder.runs.disk = Kept(self.folder)

    def says(self, data: bytes) -> Sequence[Said] | None:
        """Answers to a message, or None: not yet."""
        server = SERVER_KEY.public_key()
        return self.bad.says(self, sealed.open_sealed(data, lambda _: server), data)

    def honest(self, data: bytes) -> list[bytes]:
        """What it would say if it were good."""
        return Direct.answers(None, self, data)  # type: ignore[arg-type]

    def good(self, data: bytes) -> bytes:
        """Payload of the good answer to a plan."""
        (said,) = self.honest(data)
        return self.read(said).payload

    def read(self, said: bytes) -> Opened:
        """What it has sealed itself."""
        mine = key_of(self.name).public_key()
        return sealed.open_sealed(said, lambda _: mine)


Says = Callable[[BadSite, Opened, bytes], Sequence[Said] | None]


@dataclass(frozen=True)
class Bad:
    """One kind of bad client."""

    name: str
    does: str
    check: int
    code: str
    """What the audit says; "" where nothing is refused."""
    says: Says
    also: frozenset[str] = frozenset()
    """Codes that stand beside it in the audit."""
    counts: bool = False
    """Its update is good and counts, whatever else it does."""

    @property
    def blamed(self) -> bool:
        """Whether it is quarantined."""
        return self.check >= 5


@dataclass
class Hostile(Direct):
    """A link between good and bad sites; nothing longer than `max_bytes` is ever made."""

    limits: set[int] = field(default_factory=set)

    def push(self, node: int, kind: str, payload: Sequence[bytes], group: str) -> str:
        """Keep it for `pull`, and count it."""
        site = list(self.sites.values())[node]
        if isinstance(site, BadSite):
            site.heard += 1
        return super().push(node, kind, payload, group)

    def pull(self, ids: Collection[str], max_bytes: int) -> Iterator[tuple[str, bytes | Refused | RejectedUpdate]]:
        """Every answer there is now, one after the other."""
        self.limits.add(max_bytes)
        for mid in [mid for mid in ids if mid in self._sent]:
            site, data = self._sent[mid]
            said = site.says(data) if isinstance(site, BadSite) else self.answers(site, data)
            if said is None:
                continue
            del self._sent[mid]
            for answer in said:
                if isinstance(answer, bytes) and not isinstance(site, BadSite):
                    for other in self.sites.values():
                        if isinstance(other, BadSite):
                            other.overheard[site.name] = answer
                yield mid, _carried(answer, max_bytes)


def _carried(answer: Said, max_bytes: int) -> bytes | Refused | RejectedUpdate:
    """As a transport hands it over: its own checks are done."""
    try:
        if isinstance(answer, RecordDict):
            return grid.unpack(_Message(answer), max_bytes)  # type: ignore[arg-type]
        size = answer.size if isinstance(answer, Declared) else len(answer) if isinstance(answer, bytes) else 0
        if size > max_bytes:
            raise RejectedUpdate("too_large", f"message of {size} bytes, at most {max_bytes} allowed")
        assert not isinstance(answer, Declared), "an answer of this size should not be read"
        return answer
    except RejectedUpdate as e:
        return e


@dataclass(frozen=True)
class _Message:
    content: RecordDict

    def has_error(self) -> bool:
        return False


# -- what is said ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Frame:
    """An update's message taken apart; header and table may be bytes that are no JSON."""

    header: Any
    table: Any
    body: bytes
    head: int | None = None
    """Length of the header as declared, if that is a lie."""
    index: int | None = None
    """Length of the table as declared, if that is a lie."""
    kind: int = 2
    protocol: int = versions.newest()

    @classmethod
    def of(cls, payload: bytes) -> "Frame":
        """The parts of a good message."""
        _, _, _, head, index = struct.unpack_from("<4sHBHI", payload)
        header, table = payload[13 : 13 + head], payload[13 + head : 13 + head + index]
        return cls(json.loads(header), json.loads(table), payload[13 + head + index :])

    def data(self) -> bytes:
        """The message."""
        head, index = (x if isinstance(x, bytes) else json.dumps(x).encode() for x in (self.header, self.table))
        lengths = (len(head) if self.head is None else self.head, len(index) if self.index is None else self.index)
        return struct.pack("<4sHBHI", b"FDFT", self.protocol, self.kind, *lengths) + head + index + self.body

    def tensors(self) -> dict[str, torch.Tensor]:
        """What the body says."""
        found, start = {}, 0
        for name, kind, *shape in self.table:
            codec, size, *_ = form(name, Entry(kind, tuple(shape)))
            end = start + size
            found[name], start = codec.unpack(name, tuple(shape), memoryview(self.body)[start:end]), end
        return found


Twist = Callable[[Frame, Plan], Frame | bytes | None]


def answered(twist: Twist) -> Says:
    """Trains, then signs and sends something else; None: nothing."""

    def says(site: BadSite, opened: Opened, data: bytes) -> Sequence[Said] | None:
        if opened.kind is not Kind.TRAIN:
            return [] if opened.kind is Kind.STATUS else site.honest(data)
        said = twist(Frame.of(site.good(data)), messages.decode_plan(opened.payload, max_bytes=2**31))
        payload = said.data() if isinstance(said, Frame) else said
        return [] if payload is None else [answer(site, opened, payload)]

    return says


def sent(make: Callable[[BadSite, Opened, bytes], Said | None], *kinds: Kind) -> Says:
    """Answers plans (and `kinds`) with what `make` makes of the good payload's seal; None: not yet."""

    def says(site: BadSite, opened: Opened, data: bytes) -> Sequence[Said] | None:
        if opened.kind in (Kind.TRAIN, *kinds):
            return None if (made := make(site, opened, data)) is None else [made]
        return [] if opened.kind in (Kind.STATUS, Kind.FETCH) else site.honest(data)

    return says


def answer(
    sender: BadSite, opened: Opened, payload: bytes, key: Ed25519PrivateKey | None = None, **about: Any
) -> bytes:
    """A sealed answer; `about`: what differs from the question's."""
    return sealed.seal(Kind.ANSWER, replace(opened.about, **about), payload, key or key_of(sender.name))


def told(kind: Kind, words: Any) -> Callable[[BadSite, Opened, bytes], bytes]:
    """A sealed refusal or progress."""
    text = words if isinstance(words, bytes) else json.dumps(words).encode()
    return lambda site, opened, data: sealed.seal(kind, opened.about, text, key_of(site.name))


def header(**fields: Any) -> Twist:
    """The good update with another header; `...`: left out."""
    return lambda f, plan: replace(f, header={k: v for k, v in {**f.header, **fields}.items() if v is not ...})


def raw_header(text: bytes, **more: Any) -> Twist:
    """A header that is not ours."""
    return lambda f, plan: replace(f, header=text, **more)


def raw_table(text: bytes, **more: Any) -> Twist:
    """A table that is not ours."""
    return lambda f, plan: replace(f, table=text, **more)


def first_row(change: Callable[[list[Any]], Any]) -> Twist:
    """The first tensor described otherwise."""
    return lambda f, plan: replace(f, table=[change(f.table[0]), *f.table[1:]])


def numbers(change: Callable[[np.ndarray], np.ndarray]) -> Twist:
    """All float32 entries changed."""
    return lambda f, plan: replace(f, body=change(np.frombuffer(f.body, "<f4")).astype("<f4").tobytes())


def delta(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Twist:
    """The update's tensors changed, and encoded as an honest client encodes."""

    def twist(f: Frame, plan: Plan) -> bytes:
        found = f.tensors()
        n, run, attempt = f.header["n"], plan.run, plan.attempt
        return messages.encode_update(Update({**found, **change(found)}, n, plan.round, run, attempt), "fp32")

    return twist


def sealed_again(change: Callable[[bytes], bytes]) -> Says:
    """The good answer, changed behind its signature."""
    return sent(lambda site, opened, data: change(answer(site, opened, site.good(data))))
