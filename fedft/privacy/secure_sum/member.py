"""A site in one block of secure sums: what it says, and what it refuses to say.

    begun      1 open -> keys (2)
    shares     3 book -> 4 shares
    delivered  5 boxes -> 6 ready
    masked     y_i = q_i + self_i + sum_(j in D, j > i) pair_ij - sum_(j in D, j < i) pair_ij        mod 2^ring
    opened     7 survivors -> 8 one share per dealer

A Member is a value: a call gives the next one and what is to be sent. The next one must be on the disk before anything
is sent: otherwise a killed site would draw new secrets and say two things under one key. The same message again gets
the same bytes.

PlanRefused carries one of

    bad_magic, version, malformed   bytes that are no such message
    secagg_roster         members or keys are not those of the roster that this site was given by people
    secagg_threshold      t is not floor(2 n / 3) + 1, or fewer than t take part, have dealt, or survived
    secagg_context        another block, specification, book or dealers than before; a key twice or a weak one; a box
                          that does not open; a slot in which nothing was sent; survivors that never dealt
    secagg_slot_used      another vector for a slot: two vectors under the same masks give their difference away
    secagg_second_answer  other survivors for a slot that was answered: somebody's both kinds of share
    secagg_both_shares    survivors without this site, which is asked as one: its key beside its vector

No text of a refusal holds a secret. Vectors of the same work may have sums in several slots, also of several blocks:
that these are over the same sites, or their difference is a site's vector, is for the caller to see to.
"""

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedft.errors import PlanRefused
from fedft.privacy.secure_sum import context as contexts
from fedft.privacy.secure_sum import derived_keys, messages, ring, saved, shamir, site_checks
from fedft.privacy.secure_sum.context import SLOTS, Context, Spec
from fedft.privacy.secure_sum.messages import Entry, Step

Draw = Callable[[int], bytes]
"""So many bytes that nobody can guess: the operating system's."""


@dataclass(frozen=True, repr=False)
class Member:
    """A site in a block, with its secrets."""

    context: Context
    spec: Spec
    cards: Mapping[str, bytes]
    """Ed25519 public keys, 32 raw bytes each, of all members by name."""
    entry: Entry
    """The site's own keys, signed."""
    secrets: Mapping[int, tuple[bytes, bytes]]
    """Of every slot that is not `erased`: a and b, SECRET_BYTES each."""
    box_secret: bytes
    """Of the key for boxes; b"" once all boxes are open, or they could be opened again."""
    book: bytes = b""
    """SHA-256 of message 3."""
    keys_of: Mapping[int, tuple[bytes, ...]] = field(default_factory=dict)
    """Public keys by index, of the sites in the book."""
    sent: bytes = b""
    """Message 4, until all boxes are open."""
    delivery: bytes = b""
    """SHA-256 of message 5."""
    dealers: tuple[int, ...] = ()
    """D: indices of the sites whose shares are here, this one's too."""
    held: Mapping[int, Mapping[int, bytes]] = field(default_factory=dict)
    """Of every slot that is not opened: a share of a and one of b by index of the dealer."""
    used: Mapping[int, bytes] = field(default_factory=dict)
    """SHA-256 of its vector, of every slot that has one."""
    answered: Mapping[int, tuple[tuple[int, ...], bytes]] = field(default_factory=dict)
    """Of every opened slot: the survivors, and message 8."""
    draw: Draw = field(default=os.urandom, compare=False)

    def keys(self) -> bytes:
        """Message 2: the site's public keys of the block, signed."""
        return messages.write(Step.KEYS, self.context, self.entry.body())

    def shares(self, book: bytes) -> tuple["Member", bytes]:
        """(the next Member, message 4: a box of shares for every other site in the book, message 3)."""
        digest = hashlib.sha256(book).digest()
        if self.book:
            if digest != self.book or not self.sent:
                raise PlanRefused("secagg_context", f"block {self.context.block} has a book already")
            return self, self.sent
        entries = site_checks.checked_book(book, self.context, self.cards, self.entry)
        ctx, t, n, own = self.context.digest, self.context.t, self.context.n, self.entry.index
        columns = []  # per slot and secret: the shares of all members
        for slot in range(SLOTS):
            for secret in self.secrets[slot]:
                value = int.from_bytes(secret, "little")
                columns.append(shamir.shares(value, shamir.random_elements(t - 1, self.draw), n))
        plain = {
            e.index: b"".join(c[e.index - 1].to_bytes(shamir.SHARE_BYTES, "little") for c in columns) for e in entries
        }
        key = derived_keys.exchange_key(self.box_secret)
        boxes = []
        for e in entries:
            if e.index != own:
                shared = derived_keys.agreed(key, e.keys[SLOTS])
                boxes.append(derived_keys.boxed(shared, ctx, own, e.index, plain[e.index]))
        sent = messages.write(Step.SHARES, self.context, b"".join(boxes))
        held = {slot: {own: part} for slot, part in enumerate(_by_slot(plain[own]))}
        return replace(self, book=digest, keys_of={e.index: e.keys for e in entries}, sent=sent, held=held), sent

    def delivered(self, message: bytes) -> tuple["Member", bytes]:
        """(the next Member, message 6: ready) once every box of message 5 is open."""
        digest, ready = hashlib.sha256(message).digest(), messages.write(Step.READY, self.context)
        if self.delivery:
            if digest != self.delivery:
                raise PlanRefused("secagg_context", "other boxes than before")
            return self, ready
        own, ctx = self.entry.index, self.context.digest
        dealers, boxes = site_checks.checked_delivery(message, self.context, own, [*self.keys_of])
        key, held = derived_keys.exchange_key(self.box_secret), {slot: dict(h) for slot, h in self.held.items()}
        for j, box in boxes.items():
            shared = derived_keys.agreed(key, self.keys_of[j][SLOTS])
            if (plain := derived_keys.unboxed(shared, ctx, j, own, box)) is None:
                raise PlanRefused("secagg_context", f"the box of site {j} for this one does not open")
            for slot, part in enumerate(_by_slot(plain)):
                held[slot][j] = part
        return replace(self, delivery=digest, dealers=dealers, held=held, sent=b"", box_secret=b""), ready

    def masked(self, slot: int, q: np.ndarray) -> tuple["Member", np.ndarray]:
        """(the next Member, uint32 or uint16 [spec.length]: the vector under its masks).

        The same vector gives the same bytes, until `erased`.

        Args:
            slot: from 0 to 15, each for one vector for ever.
            q: int32 [spec.length], within +-spec.most of one client; ValueError otherwise.
        """
        most = self.spec.most(1, self.context.t)
        if q.dtype != np.int32 or q.shape != (self.spec.length,) or q.max() > most or q.min() < -most:
            raise ValueError(f"expected {self.spec.length} int32 within +-{most}, got {q.dtype} {q.shape}")
        if not self.dealers or not 0 <= slot < SLOTS:
            raise PlanRefused("secagg_context", f"slot {slot} of a block with {len(self.dealers)} dealers")
        digest = hashlib.sha256(q.tobytes()).digest()
        if slot not in self.secrets or self.used.get(slot, digest) != digest:
            raise PlanRefused("secagg_slot_used", f"slot {slot} of block {self.context.block} has had its vector")
        y = q.astype(ring.word(self.spec.ring))
        ring.add_masks(y, self._masks(slot))
        return replace(self, used={**self.used, slot: digest}), y

    def _masks(self, slot: int) -> list[tuple[bytes, bool]]:
        """The keys of the site's masks in a slot, and which of them are subtracted."""
        (a, b), ctx, own = self.secrets[slot], self.context.digest, self.entry.index
        key, found = derived_keys.exchange_key(a), [(derived_keys.self_key(b, ctx, slot), False)]
        for j in self.dealers:
            if j != own:
                shared = derived_keys.agreed(key, self.keys_of[j][slot])
                found.append((derived_keys.mask_key(shared, ctx, slot), j < own))
        return found

    def erased(self, slot: int) -> "Member":
        """The Member without its own secrets of a slot: for when the masked vector is on the disk."""
        return replace(self, secrets={s: pair for s, pair in self.secrets.items() if s != slot})

    def opened(self, message: bytes) -> tuple["Member", bytes]:
        """(the next Member, message 8: a share of each dealer's self mask if it survived, of its key if it did not).

        The same survivors again get the same bytes; a slot has no others. What is left of the slot's secrets is erased.
        """
        frame = messages.read(message, Step.UNMASK, PlanRefused, self.context)
        survivors, slot = messages.read_survivors(frame, PlanRefused), frame.slot
        if slot not in self.used:
            raise PlanRefused("secagg_context", f"nothing was sent in slot {slot} of block {frame.block}")
        if slot in self.answered:
            before, said = self.answered[slot]
            if before != survivors:
                raise PlanRefused("secagg_second_answer", f"slot {slot} was opened for other survivors")
            return self, said
        site_checks.checked_survivors(survivors, self.context, self.entry.index, self.dealers)
        half, held, alive = shamir.SHARE_BYTES, self.held[slot], set(survivors)
        body = b"".join(held[j][half:] if j in alive else held[j][:half] for j in self.dealers)
        said = messages.write(Step.OPENED, self.context, body, slot)
        left = {s: h for s, h in self.held.items() if s != slot}
        return replace(self.erased(slot), held=left, answered={**self.answered, slot: (survivors, said)}), said

    def to_bytes(self) -> bytes:
        """The Member with its secrets, for a file of mode 0600."""
        unlike = ("context", "spec", "entry", "draw")
        fields = {k: v for k, v in vars(self).items() if k not in unlike}
        e = self.entry
        about = {"run": self.context.run, "block": self.context.block, "spec": self.spec.json()}
        return saved.written("member", {**about, "entry": (e.index, e.keys, e.signature), **fields})


def _by_slot(plain: bytes) -> list[bytes]:
    """The content of a box, slot by slot: a share of a and one of b."""
    return [plain[at : at + messages.PAIR_BYTES] for at in range(0, len(plain), messages.PAIR_BYTES)]


def begun(
    opened: bytes,
    cards: Mapping[str, bytes],
    name: str,
    signing_key: Ed25519PrivateKey,
    last_block: int,
    wanted: Spec,
    run: str,
    draw: Draw = os.urandom,
) -> Member:
    """The Member of a new block, once the server's message 1 says what this site knows already.

    Args:
        opened: message 1.
        cards: the roster that people gave to this site: Ed25519 public keys, 32 raw bytes each, by name.
        name: the site's own, which has `signing_key`'s key in the roster.
        signing_key: the site's.
        last_block: the highest block so far; -1: none.
        wanted: the vector that the job implies.
        run: the run's id, 16 hexadecimal digits.
        draw: for secrets.
    Raises:
        PlanRefused: with a code of the module's table.
    """
    own = signing_key.public_key().public_bytes_raw()
    context = site_checks.checked_opening(opened, cards, name, own, last_block, wanted, run)
    secrets = {s: (draw(shamir.SECRET_BYTES), draw(shamir.SECRET_BYTES)) for s in range(SLOTS)}
    box_secret = draw(shamir.SECRET_BYTES)
    index = contexts.members(cards).index(name) + 1
    keys = tuple(derived_keys.public(x) for x in (*(a for a, _ in secrets.values()), box_secret))
    signature = signing_key.sign(messages.signed_text(context.digest, index, keys))
    return Member(context, wanted, cards, Entry(index, keys, signature), secrets, box_secret, draw=draw)


def from_bytes(data: bytes, signing_key: Ed25519PrivateKey, draw: Draw = os.urandom) -> Member:
    """The Member that `to_bytes` wrote. Raises OtherVersion for a form of another version.

    Raises PlanRefused("secagg_roster") where the site has another `signing_key` by now.
    """
    said = saved.read("member", data)
    spec, entry = contexts.spec_of(said.pop("spec")), Entry(*said.pop("entry"))
    context = contexts.context_of(said.pop("run"), said.pop("block"), said["cards"], spec)
    name = contexts.members(said["cards"])[entry.index - 1]
    if said["cards"][name] != signing_key.public_key().public_bytes_raw():
        raise PlanRefused("secagg_roster", f"{name!r} began block {context.block} with another key than it has now")
    return Member(context, spec, entry=entry, draw=draw, **said)
