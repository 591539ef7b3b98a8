"""One client's part in the secure sums of a run: its secrets on the disk, and what it says to the server of them.

    secagg-<run>.fedft        SHA-256 of the rest, a line of JSON (`Said`), the member's secrets
    integers-<run>.fedft      SHA-256 of the rest, a line of JSON (what work it was), the update without masks

Both are of mode 0600, and on the disk before anything that depends on them leaves. So a client that is killed says the
same once more; and work that is asked for again, in another slot, is masked again without being done again. Whoever
loses the first file sits out until the next block. To overwrite a file does not wipe a disk: encrypt it.

A copy of the first file has forgotten what was said since: two vectors under one mask tell their difference. `fedft
backup` leaves it out, so a site that is restored begins with the next block. One that finds the file in another folder
than it was written in takes it for a copy, and does the same. Put back by hand into the folder it came from it is not
recognised: remove it. What was opened over whom is forgotten, too; a site that forgot is to the others as one that
colludes with the server, and secure sums stand less than a third of these.

Of one work a client opens sums over the same clients only, in whatever slot or block: two that differ by one client
would give that one away.
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedft import durable
from fedft.client.disk import work_of
from fedft.client.site_settings import SiteConfig
from fedft.config import RunConfig
from fedft.contract import Layout, Turn
from fedft.errors import PlanRefused
from fedft.privacy.secure_sum import member as members
from fedft.privacy.secure_sum.context import Spec
from fedft.privacy.secure_sum.integer_uploads import (
    RING,
    Integers,
    as_they_travel,
    integers_of,
    of_ring,
)
from fedft.privacy.secure_sum.member import Member
from fedft.privacy.secure_sum.messages import Step, read
from fedft.recipe import Recipe
from fedft.security import private_keys
from fedft.security.roster import load_roster
from fedft.update import BLOCK, MEMBERS, SLOT, Plan, Update
from fedft.wire import messages

log = logging.getLogger(__name__)

STEP_AT = 6  # of a message's bytes
MAX_RANK = 256  # of an adapter whose numbers are summed under masks

WORKS = 64  # that a client remembers having opened a sum of: a run goes back by some rounds at most


@dataclass(frozen=True)
class Said:
    """What a client remembers beside its secrets."""

    opening: str = ""
    """SHA-256, hexadecimal, of the message that opened the block."""
    works: Mapping[str, str] = field(default_factory=dict)
    """Work by slot of the block."""
    opened: Mapping[str, str] = field(default_factory=dict)
    """By work, the last WORKS of them: the clients over which a sum of it was opened, as the message had them."""
    block: int = -1
    """The highest block so far; -1: none."""
    folder: int = 0
    """The folder that the secrets were made in, by its number in the file system; 0: none."""


@dataclass
class SecureSums:
    """The secrets of one client in one run. Used by one thread."""

    name: str
    key: Ed25519PrivateKey
    """The client's own, whose public half stands in `cards`."""
    cards: Mapping[str, bytes]
    """Ed25519 public keys, 32 raw bytes each, of all members by name: from their operators, not from the server."""
    folder: Path | None
    """Of the files; None: nothing outlives the process."""
    integers: Integers
    """What the run makes of an update."""
    run: str = ""
    _said: Said = field(default_factory=Said)
    _member: Member | None = None
    _done: tuple[str, bytes] = "", b""
    """The work that was done last, and the bytes of its update before masks."""

    def open(self, run: str) -> None:
        """Take up what is on the disk of `run`. Raises PlanRefused where it was begun with another key."""
        if run == self.run:
            return
        self.run, self._said, self._member, self._done = run, Said(), None, ("", b"")
        if (body := self._read("secagg")) is not None:
            head, _, secrets = body.partition(b"\n")
            self._said, self._member = Said(**json.loads(head)), members.from_bytes(secrets, self.key)
            if self._said.folder not in (0, self._place):
                log.warning(
                    "run %s: one-time secrets were copied here, which may be used; the next block has new ones", run
                )
                self._member, self._said = None, replace(self._said, opening="", works={}, folder=0)
        if (body := self._read("integers")) is not None:
            head, _, update = body.partition(b"\n")
            self._done = json.loads(head)["work"], update

    def answer(self, message: bytes, layout: Layout) -> bytes:
        """The answer to a message of the server's; `layout` is the base model's. Raises PlanRefused."""
        step = message[STEP_AT] if len(message) > STEP_AT else 0
        if step == Step.OPEN:
            return self._begin(message, layout)
        if (held := self._member) is None:
            raise PlanRefused("secagg_context", "no block is open here")
        if step == Step.BOOK:
            held, said = held.shares(message)
        elif step == Step.DELIVER:
            held, said = held.delivered(message)
        else:
            return self._open_sum(held, message)
        self._keep(held, self._said)
        return said

    def _open_sum(self, held: Member, message: bytes) -> bytes:
        frame = read(message, Step.UNMASK, PlanRefused, held.context)
        work, over = self._said.works.get(str(frame.slot), ""), frame.body.hex()
        if self._said.opened.get(work, over) != over:
            raise PlanRefused("secagg_second_answer", "a sum of this work was opened over other clients")
        held, said = held.opened(message)
        opened = dict([*self._said.opened.items(), (work, over)][-WORKS:])
        self._keep(held, replace(self._said, opened=opened))
        return said

    def masked(self, update: Update, turn: Turn, layout: Layout, rows: str) -> Update:
        """The update with its integers under the masks of the turn's slot; as it is where it has none.

        `rows`: the digest of the rows that were trained on. Raises PlanRefused with a code of
        `fedft.privacy.secure_sum.member`.
        """
        if RING not in update.delta:
            return update
        spec, plan = self.integers.spec(layout, turn.plan), turn.plan
        block, slot, held = plan.extra.get(BLOCK), plan.extra.get(SLOT), self._member
        if held is None or block != held.context.block or type(slot) is not int:
            there = "none" if held is None else held.context.block
            raise PlanRefused("secagg_context", f"block {block!r:.20}, slot {slot!r:.20}; here the block is {there}")
        if plan.extra.get(MEMBERS, held.context.n) != held.context.n:
            raise PlanRefused("secagg_threshold", f"noise in shares of other than the {held.context.n} members")
        if spec != held.spec:
            raise PlanRefused("secagg_context", "the plan is for another vector than the block")
        held, y = held.masked(slot, of_ring(update.delta[RING]))
        work = work_of(turn, rows, any_slot=True)
        self._keep(held, replace(self._said, works={**self._said.works, str(slot): work}))
        return replace(update, delta={RING: as_they_travel(y)})

    def sent(self, plan: Plan) -> None:
        """Erase the client's own secrets of a slot, now that the masked vector is on the disk."""
        if self._member is not None and type(slot := plan.extra.get(SLOT)) is int:
            self._keep(self._member.erased(slot), self._said)

    def unmasked(self, work: str, plan: Plan, layout: Layout) -> Update | None:
        """The update of this work before masks, as an answer to `plan`, if it was the last that was done."""
        done, data = self._done
        if done != work:
            return None
        update = messages.decode_update(data, self.integers.upload(layout, plan), "fp32")
        return replace(update, round=plan.round, attempt=plan.attempt)

    def keep_unmasked(self, work: str, update: Update) -> None:
        """Keep an update of integers, durably, before it is masked."""
        self._done = work, messages.encode_update(update, "fp32")
        if self.folder is not None:
            durable.commit(self._file("integers"), json.dumps({"work": work}).encode() + b"\n", self._done[1])

    def _begin(self, message: bytes, layout: Layout) -> bytes:
        digest, held = hashlib.sha256(message).hexdigest(), self._member
        if held is not None and digest == self._said.opening:
            return held.keys()
        found = self._vectors(layout)
        first = next(found)
        wanted = next((spec for spec in chain([first], found) if message.endswith(spec.json())), first)
        before = self._said
        last = before.block if held is None else held.context.block
        held = members.begun(message, self.cards, self.name, self.key, last, wanted, self.run)
        self._keep(held, Said(digest, opened=before.opened, block=held.context.block, folder=self._place))
        return held.keys()

    def _vectors(self, layout: Layout) -> Iterator[Spec]:
        """What the job may imply: it does not say the rank of adapters, which a plan does."""
        of = self.integers
        for rank in [0] if of.recipe.space.rank_free else range(1, MAX_RANK + 1):
            yield of.spec(layout, Plan(self.run, 0, 0, rank=rank, steps=of.config.local.steps))

    def _keep(self, held: Member, said: Said) -> None:
        """Make the member and what was said durable, before anything is sent."""
        if self.folder is not None and (held is not self._member or said != self._said):
            durable.commit(self._file("secagg"), json.dumps(asdict(said)).encode() + b"\n", held.to_bytes())
        self._member, self._said = held, said

    @property
    def _place(self) -> int:
        return 0 if self.folder is None or not self.folder.exists() else self.folder.stat().st_ino

    def _read(self, kind: str) -> bytes | None:
        return None if self.folder is None else durable.verified(self._file(kind))

    def _file(self, kind: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{kind}-{self.run}.fedft"


def of_site(site: SiteConfig, config: RunConfig, recipe: Recipe) -> SecureSums | None:
    """A site's part in the masked sums of a run, None where it has none, with the roster that its file names.

    Raises ConfigError for a roster that is none, PlanRefused, `secagg_roster`, where the file names none.
    """
    integers = integers_of(recipe)
    if integers is None or config.privacy.secagg != "on":
        return None
    if site.keys.roster is None:
        return of(None)
    key = private_keys.load_signing(Path(site.keys.folder) / "signing.key")
    cards = load_roster(Path(site.keys.roster)).cards
    return SecureSums(site.site.name, key, cards, Path(site.site.state), integers)


def of(secure: SecureSums | None) -> SecureSums:
    """A client's part in masked sums. Raises PlanRefused where nobody has given it the others' keys."""
    if secure is None:
        raise PlanRefused("secagg_roster", "this site was given no roster by the operators: see [keys] roster")
    return secure
