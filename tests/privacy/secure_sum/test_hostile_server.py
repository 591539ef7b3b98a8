"""A server that lies: every site refuses, each lie by its code, and no secret stands in any message or refusal."""

import struct
from collections.abc import Callable
from dataclasses import replace

import pytest
from secure_blocks import RUN, Sites, begun, roster, set_up, signed, signing_key, spec, vectors

from fedft.errors import PlanRefused
from fedft.privacy.secure_sum import derived_keys, member, messages
from fedft.privacy.secure_sum.context import SLOTS, Spec, context_of
from fedft.privacy.secure_sum.member import Member
from fedft.privacy.secure_sum.messages import Entry, Step

SPEC = spec(4)
CARDS = roster(5)
FRAME = messages.FRAME_BYTES
NAME, INDEX = "site-2", 2
Act = Callable[[], object]


def refused(code: str, act: Act, sites: Sites | None = None) -> None:
    """The act is refused by its code, in a text without any of the sites' secrets."""
    with pytest.raises(PlanRefused) as found:
        act()
    assert found.value.code == code, found.value
    said = str(found.value)
    assert "\n" not in said
    for secret in secrets_of(sites) if sites else ():
        assert secret.hex() not in said
        assert repr(secret) not in said


def secrets_of(sites: Sites) -> list[bytes]:
    """What no message may hold as it is: seeds, private keys and shares, of all sites."""
    found = []
    for m in sites.members.values():
        seeds = [x for pair in m.secrets.values() for x in pair] + [m.box_secret] * bool(m.box_secret)
        found += seeds + [derived_keys.exchange_key(s).private_bytes_raw() for s in seeds]
        found += [pair[at : at + 32] for h in m.held.values() for pair in h.values() for at in (0, 32)]
    return found


def with_body(message: bytes, body: bytes) -> bytes:
    """The same frame with another body."""
    return message[:FRAME] + body


# Opening a block


def opening(cards: dict[str, bytes] = CARDS, wanted: Spec = SPEC, block: int = 3) -> bytes:
    """An honest server's message 1."""
    context = context_of(RUN, block, cards, wanted)
    return messages.write(Step.OPEN, context, messages.opening(context.roster, context.t, wanted.json()))


def join(said: bytes, cards: dict[str, bytes] = CARDS, wanted: Spec = SPEC, last: int = 2) -> Member:
    return member.begun(said, cards, NAME, signing_key(NAME), last, wanted, RUN)


def test_another_roster() -> None:
    assert join(opening())
    stranger = {**CARDS, "site-9": signing_key("site-9").public_key().public_bytes_raw()}
    swapped = {**CARDS, "site-1": CARDS["site-3"], "site-3": CARDS["site-1"]}
    for cards in (stranger, swapped, {n: c for n, c in CARDS.items() if n != "site-5"}):
        refused("secagg_roster", lambda cards=cards: join(opening(cards)))
    n = with_n(opening(), 4)
    refused("secagg_roster", lambda: join(n))
    mine = {**CARDS, NAME: CARDS["site-1"]}
    refused("secagg_roster", lambda: join(opening(mine), mine))


def with_n(message: bytes, n: int) -> bytes:
    return message[:12] + struct.pack("<H", n) + message[FRAME:]


def test_a_threshold_of_its_own() -> None:
    said = opening()
    for t in (0, 3, 5, 65_535):
        low = with_body(said, said[FRAME : FRAME + 32] + struct.pack("<H", t) + SPEC.json())
        refused("secagg_threshold", lambda low=low: join(low))


def test_an_old_block_another_vector_and_a_roster_that_is_too_small_or_large() -> None:
    for last in (3, 4, 2**32 - 1):
        refused("secagg_context", lambda last=last: join(opening(), last=last))
    for wrong in (spec(5), spec(4, bits=23), replace(SPEC, clip=2.0), replace(SPEC, tensors=(("v", (4,)),))):
        refused("secagg_context", lambda wrong=wrong: join(opening(wanted=wrong)))
    narrow = spec(4, 15, 16)
    refused("secagg_context", lambda: join(opening(wanted=narrow), wanted=narrow))
    two = roster(2)
    said = with_n(opening(), 2)
    refused("secagg_roster", lambda: join(said, two))


# The book


@pytest.fixture
def booked() -> Sites:
    """Five sites whose keys are in the book."""
    sites = begun(5, SPEC)
    for name, m in sites.members.items():
        sites.block.took_keys(name, m.keys())
    sites.block.book()
    return sites


def entries(sites: Sites) -> dict[int, Entry]:
    return {**sites.block.entries}


def book_of(sites: Sites, changed: dict[int, Entry]) -> bytes:
    found = {i: e for i, e in {**entries(sites), **changed}.items() if e.keys}
    return with_body(sites.block.book(), messages.book([found[i] for i in sorted(found)]))


def test_a_swapped_key(booked: Sites) -> None:
    """The server's own key in place of a site's: it could read that site's boxes."""
    e = entries(booked)[4]
    for at in (0, 7, SLOTS):
        keys = (*e.keys[:at], derived_keys.public(b"server" * 5 + b"!"), *e.keys[at + 1 :])
        refused("secagg_roster", lambda keys=keys: tell(booked, {4: replace(e, keys=keys)}), booked)
    refused("secagg_roster", lambda: tell(booked, {4: replace(entries(booked)[5], index=4)}), booked)
    two = {4: replace(entries(booked)[5], index=4), 5: replace(e, index=5)}
    refused("secagg_roster", lambda: tell(booked, two), booked)


def tell(sites: Sites, changed: dict[int, Entry]) -> object:
    return sites.members[NAME].shares(book_of(sites, changed))


def test_a_signature_of_another_block_run_or_roster(booked: Sites) -> None:
    other = begun(5, SPEC, block=4)
    refused("secagg_roster", lambda: tell(booked, {4: other.members["site-4"].entry}), booked)
    refused("secagg_roster", lambda: tell(booked, {4: begun(5, spec(5)).members["site-4"].entry}), booked)


def test_a_repeated_key_and_a_weak_one(booked: Sites) -> None:
    """Even where the site with the key has signed it."""
    mine, theirs = entries(booked)[1].keys, entries(booked)[4].keys
    for keys in ((mine[0], *theirs[1:]), (theirs[1], *theirs[1:]), (*theirs[:SLOTS], theirs[0])):
        refused("secagg_context", lambda keys=keys: tell(booked, {4: signed(booked.block, 4, keys)}), booked)
    weak = (bytes(32), *theirs[1:])
    refused("secagg_context", lambda: tell(booked, {4: signed(booked.block, 4, weak)}), booked)


def test_own_keys_changed_or_left_out_and_too_few(booked: Sites) -> None:
    fresh = begun(5, SPEC).members[NAME].entry
    gone = Entry(INDEX, (), b"")
    refused("secagg_context", lambda: tell(booked, {INDEX: fresh}), booked)
    refused("secagg_context", lambda: tell(booked, {INDEX: gone}), booked)
    refused("secagg_threshold", lambda: tell(booked, {3: Entry(3, (), b""), 5: Entry(5, (), b"")}), booked)


def test_another_book_after_the_first(booked: Sites) -> None:
    """A second one would get the same secrets in shares for other keys."""
    m, _ = booked.members[NAME].shares(booked.block.book())
    four = book_of(booked, {5: Entry(5, (), b"")})
    assert booked.members[NAME].shares(four), "it would have done as the first"
    refused("secagg_context", lambda: m.shares(four), booked)


# Boxes


@pytest.fixture
def dealt(booked: Sites) -> Sites:
    """Five sites that have dealt their shares."""
    book = booked.block.book()
    for name, m in [*booked.members.items()]:
        booked.members[name], boxes = m.shares(book)
        booked.block.took_shares(name, boxes)
    return booked


def test_boxes_of_another_site_another_receiver_and_another_block(dealt: Sites) -> None:
    good = dealt.block.deliver(NAME)
    m, box = dealt.members[NAME], messages.BOX_BYTES
    assert m.delivered(good)
    start = FRAME + 1
    parts = [good[at : at + box] for at in range(start, len(good), box)]
    for_three = dealt.block.deliver("site-3")
    before = begun(5, SPEC, block=2)
    for name, other in before.members.items():
        before.block.took_keys(name, other.keys())
    old = before.members["site-1"].shares(before.block.book())[1]
    lies = [
        [parts[1], parts[0], *parts[2:]],
        [for_three[start : start + box], *parts[1:]],
        [old[FRAME : FRAME + box], *parts[1:]],
        [parts[0][:64] + parts[0][:64] + parts[0][128:], *parts[1:]],
        [parts[0][:-1] + bytes((parts[0][-1] ^ 1,)), *parts[1:]],
    ]
    for lie in lies:
        refused("secagg_context", lambda lie=lie: m.delivered(good[:start] + b"".join(lie)), dealt)


def test_dealers_without_this_site_too_few_or_not_in_the_book(dealt: Sites) -> None:
    good, m = dealt.block.deliver(NAME), dealt.members[NAME]
    box = messages.BOX_BYTES
    none = good[:FRAME] + bytes((0b11101,)) + good[FRAME + 1 : FRAME + 1 + 3 * box]
    few = good[:FRAME] + bytes((0b00111,)) + good[FRAME + 1 : FRAME + 1 + 2 * box]
    refused("secagg_context", lambda: m.delivered(none), dealt)
    refused("secagg_threshold", lambda: m.delivered(few), dealt)
    after, _ = m.delivered(good)
    four = good[:FRAME] + bytes((0b01111,)) + good[FRAME + 1 : FRAME + 1 + 3 * box]
    assert m.delivered(four), "it would have done as the first"
    refused("secagg_context", lambda: after.delivered(four), dealt)


def test_a_dealer_that_never_was_in_the_book() -> None:
    sites = begun(5, SPEC)
    for name in ("site-1", "site-2", "site-3", "site-4"):
        sites.block.took_keys(name, sites.members[name].keys())
    m, _ = sites.members[NAME].shares(sites.block.book())
    said = messages.write(Step.DELIVER, sites.block.context, bytes((0b11111,)) + bytes(4 * messages.BOX_BYTES))
    refused("secagg_context", lambda: m.delivered(said), sites)


# Slots


@pytest.fixture
def sent() -> Sites:
    """Five sites of which four have sent a vector in slot 6."""
    sites = set_up(begun(5, SPEC))
    sites.masked(6, {n: q for n, q in vectors(sites.members, SPEC).items() if n != "site-5"})
    return sites


def ask(sites: Sites, indices: list[int], slot: int = 6) -> bytes:
    """Message 7 as a server writes it that may lie."""
    return messages.write(Step.UNMASK, sites.block.context, messages.bitmap(indices, 5), slot)


def test_another_vector_in_a_used_slot(sent: Sites) -> None:
    m, q = sent.members[NAME], vectors(sent.members, SPEC)[NAME]
    other = q.copy()
    other[0] ^= 1
    assert (m.masked(6, q)[1] == m.masked(6, q)[1]).all()
    refused("secagg_slot_used", lambda: m.masked(6, other), sent)
    refused("secagg_slot_used", lambda: m.erased(6).masked(6, q), sent)
    refused("secagg_context", lambda: m.masked(16, q), sent)
    refused("secagg_context", lambda: begun(5, SPEC).members[NAME].masked(0, q), sent)
    assert m.masked(7, other)


def test_two_sets_of_survivors(sent: Sites) -> None:
    """The second one would open somebody's other kind of share."""
    m, _ = sent.members[NAME].opened(ask(sent, [1, 2, 3, 4]))
    for indices in ([1, 2, 3, 5], [1, 2, 3, 4, 5], [2, 3, 4, 5]):
        refused("secagg_second_answer", lambda i=indices: m.opened(ask(sent, i)), sent)
        again = member.from_bytes(m.to_bytes(), signing_key(NAME))
        refused("secagg_second_answer", lambda i=indices, again=again: again.opened(ask(sent, i)), sent)


def test_this_site_s_own_key_beside_its_vector(sent: Sites) -> None:
    refused("secagg_both_shares", lambda: sent.members[NAME].opened(ask(sent, [1, 3, 4, 5])), sent)


def test_too_few_survivors_and_strangers_among_them(sent: Sites) -> None:
    refused("secagg_threshold", lambda: sent.members[NAME].opened(ask(sent, [1, 2, 3])), sent)
    refused("secagg_threshold", lambda: sent.members[NAME].opened(ask(sent, [2])), sent)
    sites = set_up(begun(6, SPEC), ["site-6"])
    sites.masked(6, vectors(sites.members, SPEC))
    said = messages.write(Step.UNMASK, sites.block.context, messages.bitmap([1, 2, 3, 4, 5, 6], 6), 6)
    refused("secagg_context", lambda: sites.members[NAME].opened(said), sites)


def test_a_slot_in_which_nothing_was_sent_and_another_block(sent: Sites) -> None:
    refused("secagg_context", lambda: sent.members[NAME].opened(ask(sent, [1, 2, 3, 4], slot=7)), sent)
    refused("secagg_context", lambda: sent.members["site-5"].opened(ask(sent, [1, 2, 3, 4, 5])), sent)
    other = begun(5, SPEC, block=4)
    refused("secagg_context", lambda: sent.members[NAME].opened(ask(other, [1, 2, 3, 4])), sent)


def test_a_state_of_another_key_is_not_gone_on_with(sent: Sites) -> None:
    refused("secagg_roster", lambda: member.from_bytes(sent.members[NAME].to_bytes(), signing_key("site-3")), sent)


# What is on the network, of an honest block


def test_no_secret_is_in_any_message_but_one_share_of_each_when_asked() -> None:
    sites = begun(5, SPEC)
    before = secrets_of(sites)
    set_up(sites)
    q = {n: x for n, x in vectors(sites.members, SPEC).items() if n != "site-5"}
    y = sites.masked(2, q)
    held = {n: {**m.held[2]} for n, m in sites.members.items()}
    secrets = before + secrets_of(sites)
    setup = b"\0".join(sites.said)
    assert not [s for s in secrets if s in setup]
    sites.opened(2, q, q)
    opened = dict(zip(q, sites.said[-4:], strict=True))
    gone = [pair[at : at + 32] for h in held.values() for pair in h.values() for at in (0, 32)]
    allowed = {h[j][32:] if j < 5 else h[j][:32] for n, h in held.items() if n in q for j in h}
    said = b"\0".join([*sites.said, *(x.tobytes() for x in y.values())])
    assert {s for s in gone if s in said} == allowed
    assert len(allowed) == 4 * 5
    assert not [s for s in set(secrets) - {*gone} if s in said]
    for name, h in held.items():
        for j in h:
            shown = [half in opened.get(name, b"") for half in (h[j][:32], h[j][32:])]
            assert shown == ([name in q and j == 5, name in q and j < 5]), "never both kinds of one site"
