"""Blocks of secure sums among sites in memory, honest ones: keys, setup, masked vectors, openings."""

import hashlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import cache

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedft.privacy.secure_sum import collector, member, messages
from fedft.privacy.secure_sum.collector import Block
from fedft.privacy.secure_sum.context import Spec, context_of
from fedft.privacy.secure_sum.member import Member
from fedft.privacy.secure_sum.messages import Entry

RUN = "01" * 8


def spec(length: int = 4, bits: int = 24, ring: int = 32) -> Spec:
    """The Spec of one tensor of so many entries."""
    return Spec(bits, 1.0, ring, (("w", (length,)),))


@cache
def signing_key(name: str) -> Ed25519PrivateKey:
    """A site's key, the same for every test."""
    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(name.encode()).digest())


def roster(n: int) -> dict[str, bytes]:
    """Cards of site-1 .. site-n."""
    names = [f"site-{i + 1}" for i in range(n)]
    return {name: signing_key(name).public_key().public_bytes_raw() for name in names}


def counted(seed: int) -> Callable[[int], bytes]:
    """A draw for tests: bytes that follow from a seed."""
    calls = iter(range(10**9))
    return lambda size: hashlib.shake_256(f"{seed} {next(calls)}".encode()).digest(size)


def signed(block: Block, index: int, keys: tuple[bytes, ...]) -> Entry:
    """Keys of a block that the site itself has signed, whatever they are."""
    text = messages.signed_text(block.context.digest, index, keys)
    return Entry(index, keys, signing_key(f"site-{index}").sign(text))


@dataclass
class Sites:
    """A block and the sites in it that are alive."""

    block: Block
    members: dict[str, Member]
    said: list[bytes] = field(default_factory=list)
    """Every message that went over the network, of both directions."""

    def masked(self, slot: int, vectors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What the server gets of the vectors, by name; the sites go on."""
        found = {}
        for name, q in vectors.items():
            self.members[name], found[name] = self.members[name].masked(slot, q)
        return found

    def opened(self, slot: int, survivors: Collection[str], answering: Collection[str]) -> None:
        """Ask the survivors to open a slot; the answering ones do."""
        ask = self.block.unmask(slot, survivors)
        self.said.append(ask)
        for name in answering:
            self.members[name], answer = self.members[name].opened(ask)
            self.said.append(answer)
            self.block.took_opening(slot, name, answer)

    def sum(self, slot: int, vectors: Mapping[str, np.ndarray], lost: Collection[str] = ()) -> np.ndarray:
        """The sum over all who are not lost before they send, and who all answer."""
        y = self.masked(slot, {n: q for n, q in vectors.items() if n not in lost})
        self.opened(slot, y.keys(), y.keys())
        return self.block.sum(slot, y)


def begun(n: int, wanted: Spec, block: int = 3, draw: Callable[[str], Callable[[int], bytes]] | None = None) -> Sites:
    """A block that is open, and every site with its keys."""
    cards = roster(n)
    server = Block(context_of(RUN, block, cards, wanted), cards, wanted)
    opening, kinds = server.open(), {} if draw is None else {name: {"draw": draw(name)} for name in cards}
    members = {
        name: member.begun(opening, cards, name, signing_key(name), block - 1, wanted, RUN, **kinds.get(name, {}))
        for name in cards
    }
    return Sites(server, members, [opening])


def set_up(
    sites: Sites, silent: Collection[str] = (), no_shares: Collection[str] = (), unready: Collection[str] = ()
) -> Sites:
    """The block after its setup: some sites send no keys, some no shares, some deal and are gone."""
    for name in [*sites.members]:
        if name in silent:
            del sites.members[name]
            continue
        sites.said.append(sites.members[name].keys())
        sites.block.took_keys(name, sites.said[-1])
    sites.said.append(book := sites.block.book())
    for name in [*sites.members]:
        if name in no_shares:
            del sites.members[name]
            continue
        sites.members[name], boxes = sites.members[name].shares(book)
        sites.said.append(boxes)
        sites.block.took_shares(name, boxes)
    for name in [*sites.members]:
        sites.said.append(sites.block.deliver(name))
        if name in unready:
            del sites.members[name]
            continue
        sites.members[name], ready = sites.members[name].delivered(sites.said[-1])
        sites.block.took_ready(name, ready)
    return sites


def copied(sites: Sites) -> Sites:
    """The same block, to be gone on with differently; by way of the files of both sides."""
    members = {n: member.from_bytes(m.to_bytes(), signing_key(n)) for n, m in sites.members.items()}
    return Sites(collector.from_bytes(sites.block.to_bytes()), members, [*sites.said])


def vectors(names: Collection[str], wanted: Spec, seed: int = 0) -> dict[str, np.ndarray]:
    """Integers over the whole range, by name."""
    rng = np.random.default_rng(seed)
    most = wanted.largest
    return {name: rng.integers(-most, most + 1, wanted.length).astype(np.int32) for name in sorted(names)}


def total(found: Mapping[str, np.ndarray]) -> np.ndarray:
    """The plain sum, int64."""
    return np.sum([q.astype(np.int64) for q in found.values()], axis=0)
