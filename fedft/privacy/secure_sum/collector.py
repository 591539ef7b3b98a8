"""The server in one block of secure sums: what it asks and collects, none of which says anything of a single site.

    open -> took_keys ... -> book -> took_shares ... -> deliver ... took_ready         once per block
    sites' masked vectors -> unmask -> took_opening ... -> enough -> sum               once per slot

What has been said stays said: `book`, `deliver` and `unmask` fix their content with the first call, before anybody is
asked, and the state must be on the disk before the message leaves. RejectedUpdate carries one of

    bad_magic, version, malformed   bytes that are no such message of this block
    secagg_context        of another block or slot
    secagg_roster         keys that are not signed by their site's key, or of no member
    secagg_threshold      fewer than t sent keys, dealt, or survived: try again with more, or in a new slot
    secagg_out_of_range   what was opened is no possible sum: discard the round
    late, equivocation    after the door was closed; other bytes than before
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fedft.errors import RejectedUpdate
from fedft.privacy.secure_sum import context as contexts
from fedft.privacy.secure_sum import derived_keys, messages, saved
from fedft.privacy.secure_sum.context import Context, Spec
from fedft.privacy.secure_sum.messages import Entry, Step
from fedft.privacy.secure_sum.unmasking import unmasked


@dataclass(repr=False)
class Block:
    """A block as the server knows it; methods change it."""

    context: Context
    cards: Mapping[str, bytes]
    """Ed25519 public keys, 32 raw bytes each, of all members by name."""
    spec: Spec
    entries: dict[int, Entry] = field(default_factory=dict)
    """Keys by index, of the sites that sent theirs."""
    booked: bool = False
    """Whether `entries` are fixed."""
    boxes: dict[int, bytes] = field(default_factory=dict)
    """Message 4's body by index of the dealer; empty when every dealer is ready."""
    dealt: tuple[int, ...] = ()
    """Indices of the dealers; () until they are fixed."""
    at_hand: tuple[int, ...] = ()
    """Indices of the dealers that are ready."""
    survivors: dict[int, tuple[int, ...]] = field(default_factory=dict)
    """Indices by slot, of the slots in which they are fixed."""
    openings: dict[int, dict[int, bytes]] = field(default_factory=dict)
    """Message 8 by slot and index of the survivor."""

    def __post_init__(self) -> None:
        wanted = contexts.context_of(self.context.run, self.context.block, self.cards, self.spec)
        if self.context != wanted:
            raise ValueError("the block's context is not that of its cards and its vector")
        self.spec.check_fits(self.context.n)
        self._names = contexts.members(self.cards)

    def _index(self, name: str) -> int:
        if name not in self.cards:
            raise RejectedUpdate("secagg_roster", f"{name!r} is no member of block {self.context.block}")
        return self._names.index(name) + 1

    def _named(self, indices: Iterable[int]) -> tuple[str, ...]:
        return tuple(self._names[i - 1] for i in sorted(indices))

    def _needs(self, count: int, what: str) -> None:
        if count < self.context.t:
            raise RejectedUpdate(
                "secagg_threshold", f"{count} of {self.context.n} sites {what}, {self.context.t} needed"
            )

    def open(self) -> bytes:
        """Message 1, for every member."""
        body = messages.opening(self.context.roster, self.context.t, self.spec.json())
        return messages.write(Step.OPEN, self.context, body)

    def took_keys(self, name: str, payload: bytes) -> None:
        """Take a site's message 2; the same again is fine. Raises RejectedUpdate."""
        index = self._index(name)
        frame = messages.read(payload, Step.KEYS, RejectedUpdate, self.context)
        entry = messages.read_keys(frame, index, RejectedUpdate)
        if _again(entry, self.entries.get(index), name):
            return
        if self.booked:
            raise RejectedUpdate("late", f"{name!r} sent its keys after the book was made")
        try:
            card = Ed25519PublicKey.from_public_bytes(self.cards[name])
            card.verify(entry.signature, messages.signed_text(self.context.digest, index, entry.keys))
        except (InvalidSignature, ValueError):
            raise RejectedUpdate("secagg_roster", f"keys in the name of {name!r}, not signed by its card") from None
        taken = {k for e in self.entries.values() for k in e.keys}
        if taken & set(entry.keys) or len(set(entry.keys)) != messages.KEYS:
            raise RejectedUpdate("secagg_context", f"a key of {name!r} stands twice in the block")
        if any(map(derived_keys.weak, entry.keys)):
            raise RejectedUpdate("secagg_context", f"a key of {name!r} is weak: all would know its secrets")
        self.entries[index] = entry

    def book(self) -> bytes:
        """Message 3, for every site that sent keys; fixed from now on. Raises RejectedUpdate("secagg_threshold")."""
        self._needs(len(self.entries), "sent keys")
        self.booked = True
        body = messages.book([self.entries[i] for i in sorted(self.entries)])
        return messages.write(Step.BOOK, self.context, body)

    def took_shares(self, name: str, payload: bytes) -> None:
        """Take a site's message 4; the same again is fine. Raises RejectedUpdate."""
        index = self._index(name)
        frame = messages.read(payload, Step.SHARES, RejectedUpdate, self.context)
        messages.read_shares(frame, len(self.entries) - 1, RejectedUpdate)
        if not self.booked or index not in self.entries:
            raise RejectedUpdate("secagg_context", f"{name!r} is not in the book")
        if _again(frame.body, self.boxes.get(index), name):
            return
        if self.dealt:
            raise RejectedUpdate("late", f"{name!r} dealt its shares after the dealers were fixed")
        self.boxes[index] = frame.body

    def deliver(self, name: str) -> bytes:
        """Message 5, for a site that dealt; who dealt is fixed from now on. Raises RejectedUpdate."""
        index = self._index(name)
        if not self.dealt:
            self._needs(len(self.boxes), "dealt shares")
            self.dealt = tuple(sorted(self.boxes))
        if index not in self.boxes:
            raise RejectedUpdate("late", f"there is nothing to deliver to {name!r}")
        parts = [messages.bitmap(self.dealt, self.context.n)]
        for j in self.dealt:
            if j != index:
                at = [i for i in sorted(self.entries) if i != j].index(index) * messages.BOX_BYTES
                parts.append(self.boxes[j][at : at + messages.BOX_BYTES])
        return messages.write(Step.DELIVER, self.context, b"".join(parts))

    def took_ready(self, name: str, payload: bytes) -> None:
        """Take a site's message 6. Raises RejectedUpdate."""
        index = self._index(name)
        messages.read_ready(messages.read(payload, Step.READY, RejectedUpdate, self.context), RejectedUpdate)
        if index not in self.dealt:
            raise RejectedUpdate("secagg_context", f"{name!r} has dealt no shares")
        self.at_hand = tuple(sorted({*self.at_hand, index}))
        if self.at_hand == self.dealt:
            self.boxes = {}

    @property
    def dealers(self) -> tuple[str, ...]:
        """D: the sites that dealt shares, in roster order; only their vectors can be summed. () before `deliver`."""
        return self._named(self.dealt)

    @property
    def ready(self) -> tuple[str, ...]:
        """The dealers that have opened their boxes, in roster order: who can be asked for a masked vector."""
        return self._named(self.at_hand)

    def unmask(self, slot: int, survivors: Iterable[str]) -> bytes:
        """Message 7, for every survivor; the survivors of a slot are fixed from now on, ValueError for others.

        Raises RejectedUpdate("secagg_threshold") for fewer than t.
        """
        indices = tuple(sorted(self._index(name) for name in survivors))
        if not 0 <= slot < contexts.SLOTS or not set(indices) <= set(self.dealt):
            raise ValueError(f"slot {slot} has survivors {self._named(indices)} of the dealers {self.dealers}")
        if self.survivors.get(slot, indices) != indices:
            raise ValueError(f"slot {slot} has the survivors {self._named(self.survivors[slot])} already")
        self._needs(len(indices), "survived")
        self.survivors[slot] = indices
        return messages.write(Step.UNMASK, self.context, messages.bitmap(indices, self.context.n), slot)

    def took_opening(self, slot: int, name: str, payload: bytes) -> None:
        """Take a survivor's message 8; the same again is fine. Raises RejectedUpdate."""
        index = self._index(name)
        frame = messages.read(payload, Step.OPENED, RejectedUpdate, self.context)
        messages.read_opened(frame, len(self.dealt), RejectedUpdate)
        if frame.slot != slot or index not in self.survivors.get(slot, ()):
            raise RejectedUpdate("secagg_context", f"{name!r} was not asked to open slot {frame.slot}")
        openings = self.openings.setdefault(slot, {})
        if not _again(payload, openings.get(index), name):
            openings[index] = payload

    def enough(self, slot: int) -> bool:
        """Whether t survivors have opened a slot."""
        return len(self.openings.get(slot, ())) >= self.context.t

    def sum(self, slot: int, masked: Mapping[str, np.ndarray]) -> np.ndarray:
        """The sum of the survivors' integers, int64 [spec.length].

        Raises RejectedUpdate("secagg_out_of_range") where what was opened is none.

        Args:
            slot: one that has `enough` openings.
            masked: the survivors' vectors by name, uint32 or uint16 [spec.length]; others in it are not read.
        """
        if not self.enough(slot):
            raise ValueError(f"slot {slot} has {len(self.openings.get(slot, ()))} openings of {self.context.t}")
        holders = sorted(self.openings[slot])[: self.context.t]
        frames = (messages.read(self.openings[slot][i], Step.OPENED, RejectedUpdate, self.context) for i in holders)
        held = [messages.read_opened(f, len(self.dealt), RejectedUpdate) for f in frames]
        vectors = {i: masked[self._names[i - 1]] for i in self.survivors[slot]}
        public = {i: self.entries[i].keys[slot] for i in self.dealt}
        return unmasked(vectors, holders, dict(zip(self.dealt, zip(*held, strict=True), strict=True)), public, slot,
                        self.context.digest, self.spec)  # fmt: skip

    def to_bytes(self) -> bytes:
        """The whole block, for a file."""
        fields = {k: v for k, v in vars(self).items() if k not in ("context", "spec", "entries", "_names")}
        entries = {i: (e.keys, e.signature) for i, e in self.entries.items()}
        about = {"run": self.context.run, "block": self.context.block, "spec": self.spec.json()}
        return saved.written("block", {**about, "entries": entries, **fields})


def from_bytes(data: bytes) -> Block:
    """The Block that `to_bytes` wrote. Raises OtherVersion for a form of another version."""
    said = saved.read("block", data)
    spec, entries = contexts.spec_of(said.pop("spec")), said.pop("entries")
    context = contexts.context_of(said.pop("run"), said.pop("block"), said["cards"], spec)
    return Block(context, spec=spec, entries={i: Entry(i, *e) for i, e in entries.items()}, **said)


def _again(found: object, before: object, name: str) -> bool:
    """Whether a site says again what it said before; RejectedUpdate where it says something else."""
    if before is not None and before != found:
        raise RejectedUpdate("equivocation", f"{name!r} said something else before")
    return before is not None
