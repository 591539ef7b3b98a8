"""Whoever is lost, whenever: the sum is exact, or there is none; and a block goes on from its files."""

import itertools
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from sampled_kills import EACH
from secure_blocks import Sites, begun, copied, set_up, spec, total, vectors

from fedft.errors import RejectedUpdate
from fedft.privacy.secure_sum import derived_keys
from fedft.privacy.secure_sum.member import Member

SPEC = spec(3)
FATES = ("before", "keys", "upload", "none")
"""Lost before it sends its keys; after its keys and shares; after its upload; not at all."""


def outcome(sites: Sites, fates: dict[str, str], slot: int) -> str:
    """What becomes of a slot; the sites that are lost before have been so when the block was set up."""
    q = vectors([n for n, fate in fates.items() if fate in ("upload", "none")], SPEC, slot)
    y = sites.masked(slot, q)
    if len(q) < sites.block.context.t:
        with pytest.raises(RejectedUpdate, match="survived") as refused:
            sites.block.unmask(slot, q)
        assert refused.value.code == "secagg_threshold"
        return "too few survive"
    sites.opened(slot, q, [n for n in q if fates[n] == "none"])
    if not sites.block.enough(slot):
        with pytest.raises(ValueError, match="openings"):
            sites.block.sum(slot, y)
        return "too few open"
    assert (sites.block.sum(slot, y) == total(q)).all(), fates
    return "exact"


def set_up_without(n: int, silent: list[str]) -> Sites | None:
    """A block whose silent sites never said a word; None where it has no book."""
    sites = begun(n, SPEC)
    if n - len(silent) >= sites.block.context.t:
        return set_up(sites, silent)
    with pytest.raises(RejectedUpdate, match="sent keys") as refused:
        set_up(sites, silent)
    assert refused.value.code == "secagg_threshold"
    return None


def test_all_fates_of_five() -> None:
    """4^5: exact where four uploaded and four opened, else refused; by hand: 5 + 1 subsets of those who open."""
    names, found = [f"site-{i}" for i in range(1, 6)], Counter[str]()
    stood: dict[tuple[str, ...], Sites | None] = {}
    for fates in itertools.product(FATES, repeat=5):
        by_name = dict(zip(names, fates, strict=True))
        silent = tuple(n for n in names if by_name[n] == "before")
        if silent not in stood:
            stood[silent] = set_up_without(5, [*silent])
        sites = stood[silent]
        found[outcome(restarted(sites), by_name, 2) if sites else "no book"] += 1
        opened, uploaded = fates.count("none"), fates.count("none") + fates.count("upload")
        wanted = "no book" if len(silent) > 1 else "too few survive" if uploaded < 4 else "too few open"
        assert found["exact" if opened >= 4 else wanted], fates
    assert found.total() == 4**5
    assert found["exact"] == 1 + 5 * 3, "all five open, or all but one, which has one of three other fates"


def test_random_patterns() -> None:
    found = random_patterns(20, 16, seed=1)
    assert found.keys() == {"exact", "too few survive", "too few open"}


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("n", [20, 100])
def test_many_random_patterns(
    n: int, record_property: Callable[[str, object], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What two sites agree on, and a site's keys of a slot, are remembered: at 100 sites they are most of the time."""
    count, agreed, masks = 1000 if n == 20 or EACH else 150, derived_keys.agreed, Member._masks
    shared, keys = dict[tuple[bytes, bytes], bytes](), dict[tuple[bytes, int], list[tuple[bytes, bool]]]()

    def remembered(key: X25519PrivateKey, other: bytes) -> bytes:
        pair = (key.private_bytes_raw(), other)
        return shared[pair] if pair in shared else shared.setdefault(pair, agreed(key, other))

    def remembered_masks(m: Member, slot: int) -> list[tuple[bytes, bool]]:
        of = (m.delivery, slot)
        return keys[of] if of in keys else keys.setdefault(of, masks(m, slot))

    monkeypatch.setattr(derived_keys, "agreed", remembered)
    monkeypatch.setattr(Member, "_masks", remembered_masks)
    found = random_patterns(n, count, seed=7)
    assert found.total() == count
    assert all(found[o] > count // 50 for o in ("exact", "too few survive", "too few open")), found
    record_property("told", ", ".join(f"{o} {k}" for o, k in sorted(found.items())))


def random_patterns(n: int, count: int, seed: int) -> Counter[str]:
    """Outcomes of slots in which sites are lost at random, of a few blocks whose setup has lost some, too."""
    rng, found = random.Random(seed), Counter[str]()
    stood: list[Sites] = []
    for _ in range(-(-count // 300)):
        lost = rng.sample(range(1, n + 1), rng.randrange(n // 6))
        stood.append(set_up(begun(n, SPEC), *([f"site-{i}" for i in lost[k::3]] for k in range(3))))
    for number in range(count):
        sites, slot = restarted(stood[number % len(stood)]), number % 16
        late, dead = rng.random() * 0.3, rng.random() * 0.2
        fates = {m: "keys" if rng.random() < late else "upload" if rng.random() < dead else "none"
                 for m in sites.members}  # fmt: skip
        found[outcome(sites, fates, slot)] += 1
    return found


def restarted(sites: Sites) -> Sites:
    """The block as it was after its setup."""
    return Sites(replace(sites.block, survivors={}, openings={}), {**sites.members})


def test_sites_lost_at_every_point_of_the_setup() -> None:
    """n 20, t 14: one without keys, one without shares, two that dealt and are gone, one that never uploads."""
    sites = set_up(begun(20, SPEC), ["site-3"], ["site-7"], ["site-11", "site-20"])
    assert len(sites.block.dealers) == 18
    assert len(sites.block.ready) == 16
    q = vectors(sites.members, SPEC)
    assert (sites.sum(0, q, lost=["site-1"]) == total({n: x for n, x in q.items() if n != "site-1"})).all()


def test_every_slot_of_a_block_and_from_its_files_between_all_of_them() -> None:
    sites = set_up(begun(5, SPEC))
    for slot in range(16):
        sites = copied(sites)
        q = vectors(sites.members, SPEC, slot)
        lost = [f"site-{slot % 5 + 1}"] if slot % 2 else []
        assert (sites.sum(slot, q, lost) == total({n: x for n, x in q.items() if n not in lost})).all()


def test_a_site_or_a_server_that_was_killed_says_the_same_again() -> None:
    """At every step from the file that was written before: the same bytes, from then on the same secrets."""
    sites = begun(5, SPEC)
    again = copied(sites)
    assert [m.keys() for m in again.members.values()] == [m.keys() for m in sites.members.values()]
    set_up(sites)
    killed, q = copied(sites), vectors(sites.members, SPEC)
    assert {n: y.tobytes() for n, y in killed.masked(4, q).items()} == {
        n: y.tobytes() for n, y in sites.masked(4, q).items()
    }
    assert {n: y.tobytes() for n, y in copied(sites).masked(4, q).items()} == {
        n: y.tobytes() for n, y in killed.masked(4, q).items()
    }
    ask = sites.block.unmask(4, q)
    for name, m in sites.members.items():
        after, said = m.opened(ask)
        assert copied(killed).members[name].opened(ask)[1] == said
        assert after.opened(ask) == (after, said)
        killed.members[name] = after
    assert all(m.opened(ask)[0].to_bytes() == m.to_bytes() for m in copied(killed).members.values())
    assert sites.block.unmask(4, q) == copied(sites).block.unmask(4, q) == ask


def test_the_same_book_and_the_same_boxes_get_the_same_answers() -> None:
    sites = begun(5, SPEC)
    for name, m in sites.members.items():
        sites.block.took_keys(name, m.keys())
    book = sites.block.book()
    for name, m in [*sites.members.items()]:
        sites.members[name], boxes = m.shares(book)
        assert copied(sites).members[name].shares(book)[1] == boxes
        sites.block.took_shares(name, boxes)
        sites.block.took_shares(name, boxes)
    for name, m in [*sites.members.items()]:
        delivery = sites.block.deliver(name)
        sites.members[name], ready = m.delivered(delivery)
        assert copied(sites).members[name].delivered(delivery)[1] == ready
        assert copied(sites).block.deliver(name) == delivery


def test_slots_may_be_used_in_any_order_and_left_out() -> None:
    sites = set_up(begun(4, SPEC))
    for slot in (15, 3, 7):
        q = vectors(sites.members, SPEC, slot)
        assert (sites.sum(slot, q) == total(q)).all()


def test_what_is_no_longer_needed_is_gone_from_the_file() -> None:
    """A site's own secrets once its vector is on the disk, others' shares once it has opened, box keys at once."""
    sites = set_up(begun(4, SPEC))
    name, m = next(iter(sites.members.items()))
    a, b = m.secrets[5]
    pairs = [*m.held[5].values()]
    assert not m.box_secret
    assert a in m.to_bytes()
    q = vectors(sites.members, SPEC)
    y = sites.masked(5, q)
    m = sites.members[name].erased(5)
    assert a not in m.to_bytes()
    assert b not in m.to_bytes()
    assert all(pair in m.to_bytes() for pair in pairs)
    m, said = m.opened(sites.block.unmask(5, q))
    assert not any(pair[:32] in m.to_bytes() for pair in pairs), "shares of keys, which nobody asked for"
    assert all(pair[32:] in said for pair in pairs)
    assert np.any(y[name] != q[name].view(np.uint32))
