"""A secure sum: what a client and the server compute for masks that the same integers without masks do not need.

    client, a block    keys, a box of shares for every other client, and the boxes of the others opened: once in 16 sums
    client, a round    the vector under its masks, and the shares that open the sum; beside: fixed point alone
    server, a block    keys, book and boxes of all clients
    server, a round    the worst case, n - t clients lost behind their shares: their masks are made anew, one for each
                       pair of a lost client and one that is not; beside: the same integers added up as they are

Bytes are of one client's messages, in both directions, and what the definition of the protocol says of them.
"""

from dataclasses import dataclass, replace

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedft.benchmarks.measure import Act, take_turns
from fedft.benchmarks.results import Result, Row
from fedft.privacy.secure_sum import member, ring
from fedft.privacy.secure_sum.collector import Block
from fedft.privacy.secure_sum.context import Spec, context_of
from fedft.privacy.secure_sum.member import Member
from fedft.privacy.secure_sum.messages import FRAME_BYTES

RUN, SLOT = "0123456789abcdef", 5
ALONE, MASKED = "without masks", "masked"


@dataclass(frozen=True)
class Made:
    """A block of n clients, and one of them at every step."""

    block: Block
    """As its setup leaves it."""
    asked: Block
    """As it is when t clients have opened the slot."""
    signing_key: Ed25519PrivateKey
    """The client's."""
    steps: tuple[Member, Member, Member, Member]
    """The client: begun; with its shares dealt; with all boxes open; with its vector sent."""
    said: dict[str, bytes]
    """What the server tells the client, and what the client says."""
    masked: dict[str, np.ndarray]
    vectors: dict[str, np.ndarray]


def made_up(n: int, wanted: Spec) -> Made:
    """A block in which all have dealt and n - t are lost then."""
    names = [f"client-{i:03}" for i in range(n)]
    signing = {name: Ed25519PrivateKey.generate() for name in names}
    cards = {name: key.public_key().public_bytes_raw() for name, key in signing.items()}
    block = Block(context_of(RUN, 1, cards, wanted), cards, wanted)
    began = {m: member.begun(block.open(), cards, m, signing[m], 0, wanted, RUN) for m in names}
    for name in names:
        block.took_keys(name, began[name].keys())
    book = block.book()
    dealt = {name: m.shares(book) for name, m in began.items()}
    for name, (_, boxes) in dealt.items():
        block.took_shares(name, boxes)
    t, me = block.context.t, names[0]
    delivery = block.deliver(me)
    ready = {name: dealt[name][0].delivered(block.deliver(name)) for name in names[:t]}
    rng = np.random.default_rng(0)
    vectors = {m: rng.integers(-wanted.largest, wanted.largest, wanted.length).astype(np.int32) for m in ready}
    sent = {name: m.masked(SLOT, vectors[name]) for name, (m, _) in ready.items()}
    asked = replace(block)
    ask = asked.unmask(SLOT, sent)
    openings = {name: m.opened(ask)[1] for name, (m, _) in sent.items()}
    for name, opening in openings.items():
        asked.took_opening(SLOT, name, opening)
    said = {"open": block.open(), "keys": began[me].keys(), "book": book, "shares": dealt[me][1], "deliver": delivery,
            "ready": ready[me][1], "unmask": ask, "opened": openings[me]}  # fmt: skip
    steps = (began[me], dealt[me][0], ready[me][0], sent[me][0])
    return Made(block, asked, signing[me], steps, said, {name: y for name, (_, y) in sent.items()}, vectors)


def set_up(made: Made, n: int) -> None:
    """The server's part of a block's setup."""
    old = made.block
    block = Block(old.context, old.cards, old.spec)
    names = sorted(old.cards)
    keys, shares = made.said["keys"], made.said["shares"]
    frame = keys[:FRAME_BYTES]
    for index, name in enumerate(names, 1):
        block.took_keys(name, frame + old.entries[index].body())
    block.book()
    for index, name in enumerate(names, 1):
        block.took_shares(name, shares[:FRAME_BYTES] + old.boxes[index])
    for name in names[:n]:
        block.deliver(name)


def acts(made: Made, label: str) -> list[Act]:
    """A client's round and the server's, with masks and without."""
    _, _, ready, sent = made.steps
    spec, q = made.block.spec, next(iter(made.vectors.values()))
    floats = {name: q.reshape(shape) / spec.largest for name, shape in spec.tensors}
    client, server = f"client, a round, {label}", f"server, a round, {label}"

    def round_of_client() -> None:
        ready.masked(SLOT, q)
        sent.opened(made.said["unmask"])

    return [
        Act(client, ALONE, lambda: ring.quantised(floats, spec, 1)),
        Act(client, MASKED, round_of_client),
        Act(server, ALONE, lambda: ring.clear_sum(made.vectors)),
        Act(server, MASKED, lambda: made.asked.sum(SLOT, made.masked)),
    ]


def setup_acts(made: Made, n: int) -> list[Act]:
    """A client's block and the server's."""
    began, dealt, _, _ = made.steps
    name = sorted(made.block.cards)[0]
    last, spec = made.block.context.block - 1, made.block.spec

    def begin() -> None:
        member.begun(made.said["open"], made.block.cards, name, made.signing_key, last, spec, RUN).keys()

    return [
        Act("client, a block: keys", MASKED, begin),
        Act("client, a block: book to shares", MASKED, lambda: began.shares(made.said["book"])),
        Act("client, a block: boxes opened", MASKED, lambda: dealt.delivered(made.said["deliver"])),
        Act("server, a block", MASKED, lambda: set_up(made, n)),
    ]


def sizes(made: Made, n: int, length: int) -> tuple[Row, ...]:
    """Bytes of a client, counted and as the definition has them."""
    said, width = made.said, made.block.spec.ring // 8
    block = sum(len(said[what]) - FRAME_BYTES for what in ("keys", "book", "shares", "deliver", "ready"))
    told = sum(len(said[what]) - FRAME_BYTES for what in ("unmask", "opened")) + next(iter(made.masked.values())).nbytes
    bits = -(-n // 8)
    return (
        Row("client, a block", "counted", facts={"bytes": block}),
        Row("client, a block", "defined", facts={"bytes": 608 + 610 * n + 2 * 1040 * (n - 1) + bits}),
        Row("client, a round", "counted", facts={"bytes": told}),
        Row("client, a round", "defined", facts={"bytes": width * length + 32 * n + bits}),
    )


def bench(*, quick: bool = False, turns: int = 7) -> Result:
    """CPU seconds and bytes with 100 clients: FedKSeed's 4096 numbers, and 200,000 of one factor of LoRA."""
    n, lengths = (5, {"64 numbers": 64}) if quick else (100, {"4096 numbers": 4096, "200,000 numbers": 200_000})
    made = {label: made_up(n, Spec(24, 1.0, 32, (("w", (length,)),))) for label, length in lengths.items()}
    first, length = next(iter(made.values())), next(iter(lengths.values()))
    todo = setup_acts(first, n) + [act for label, m in made.items() for act in acts(m, label)]
    return Result(
        "secure-sum",
        "fedft-secagg/1 beside the same integers without masks; the server's round with as many clients lost as can be",
        {"clients": n, "threshold": first.block.context.t, "value_bits": 24, "ring_bits": 32, "turns": turns},
        (*take_turns(todo, turns), *sizes(first, n, length)),
    )
