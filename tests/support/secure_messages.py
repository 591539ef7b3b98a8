"""The eight messages of a secure sum, and who reads each of them."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache

from secure_blocks import RUN, begun, copied, set_up, signing_key, spec, vectors

from fedft.privacy.secure_sum import member, messages
from fedft.privacy.secure_sum.messages import Step

SPEC, N, NAME = spec(4), 5, "site-2"
Reader = Callable[[bytes], object]


@cache
def readers() -> dict[Step, tuple[Reader, bytes]]:
    """By step who reads it, as it stands just before, and the honest message."""
    fresh = begun(N, SPEC)
    booked = copied(fresh)
    for name, site in booked.members.items():
        booked.block.took_keys(name, site.keys())
    dealt, book = copied(booked), booked.block.book()
    for name, site in booked.members.items():
        dealt.members[name], shares = site.shares(book)
        dealt.block.booked = True
        dealt.block.took_shares(name, shares)
    server, m = dealt.block, booked.members[NAME]
    delivery, sent = server.deliver(NAME), set_up(copied(fresh))
    q = vectors(sent.members, SPEC)
    sent.masked(9, q)
    ask = sent.block.unmask(9, [n for n in q if n != "site-5"])
    found: dict[Step, tuple[Reader, bytes]] = {
        Step.OPEN: (
            lambda data: member.begun(data, server.cards, NAME, signing_key(NAME), 2, SPEC, RUN),
            server.open(),
        ),
        Step.KEYS: (lambda data: replace(fresh.block, entries={}).took_keys(NAME, data), m.keys()),
        Step.BOOK: (m.shares, book),
        Step.SHARES: (
            lambda data: replace(booked.block, boxes={}).took_shares(NAME, data),
            dealt.members[NAME].sent,
        ),
        Step.DELIVER: (dealt.members[NAME].delivered, delivery),
        Step.READY: (
            lambda data: replace(server, at_hand=()).took_ready(NAME, data),
            messages.write(Step.READY, server.context),
        ),
        Step.UNMASK: (sent.members[NAME].opened, ask),
        Step.OPENED: (
            lambda data: replace(sent.block, openings={}).took_opening(9, NAME, data),
            sent.members[NAME].opened(ask)[1],
        ),
    }
    return found


def read(data: bytes) -> object:
    """What a site or a server makes of a message of the step that it says it is."""
    step = data[6] if len(data) > 6 and data[6] in [*Step] else Step.OPEN
    return readers()[Step(step)][0](data)
