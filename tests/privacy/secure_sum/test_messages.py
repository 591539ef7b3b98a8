"""The messages as bytes: exact lengths, and whatever the bytes, a message or a refusal by its code."""

import random
import struct
from collections import Counter
from collections.abc import Callable

import pytest
from secure_blocks import begun
from secure_messages import SPEC, N, readers

from fedft.errors import PlanRefused, Refusal, RejectedUpdate
from fedft.privacy.secure_sum import context, messages
from fedft.privacy.secure_sum.messages import Step

FRAME = messages.FRAME_BYTES
CODES = {"bad_magic", "version", "malformed", "late", "equivocation"} | {
    f"secagg_{what}" for what in ("context", "threshold", "roster", "both_shares", "second_answer")
}


def test_lengths_follow_from_the_step_and_n() -> None:
    sizes = {step: len(said) - FRAME for step, (_, said) in readers().items()}
    assert sizes == {
        Step.OPEN: 34 + len(SPEC.json()),
        Step.KEYS: 608,
        Step.BOOK: N * 610,
        Step.SHARES: (N - 1) * 1040,
        Step.DELIVER: 1 + (N - 1) * 1040,
        Step.READY: 0,
        Step.UNMASK: 1,
        Step.OPENED: N * 32,
    }


@pytest.mark.parametrize("step", Step)
def test_the_honest_message_is_taken_and_no_other_length(step: Step) -> None:
    take, said = readers()[step]
    take(said)
    for wrong in (said[:-1], said + b"\0", said[:FRAME] + b"\0" * (len(said) - FRAME + 32), said[:5], b""):
        with pytest.raises(Refusal) as refused:
            take(wrong)
        kinds = {"malformed", "bad_magic"} | ({"secagg_context", "secagg_roster"} if step == Step.OPEN else set())
        assert refused.value.code in kinds


@pytest.mark.parametrize("step", Step)
def test_the_frame_s_fields_are_checked(step: Step) -> None:
    take, said = readers()[step]
    expected = PlanRefused if step % 2 else RejectedUpdate
    block = "secagg_context"
    for at, form, value, code in [
        (0, "4s", b"FDSE", "bad_magic"), (4, "<H", 2, "version"), (6, "B", step % 8 + 1, "malformed"),
        (7, "B", 16, "malformed"), (7, "B", 255, "malformed"), (8, "<I", 2, block), (12, "<H", 0, "malformed"),
        (12, "<H", 129, "malformed"), (12, "<H", 6, "secagg_roster" if step == Step.OPEN else block),
    ]:  # fmt: skip
        wrong = bytearray(said)
        struct.pack_into(form, wrong, at, value)
        with pytest.raises(expected) as refused:
            take(bytes(wrong))
        assert refused.value.code == code, (step, at, value)
    if step < Step.UNMASK:
        with pytest.raises(expected, match="slot 1"):
            take(said[:7] + b"\1" + said[8:])


def mutated(rng: random.Random, data: bytes) -> bytes:
    """Bytes changed, cut, doubled, put in, or another step's."""
    found = bytearray(data)
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(len(found) + 1)
        match rng.randrange(6):
            case 0 | 1:
                if at < len(found):
                    found[at] = rng.choice((0, 1, 127, 128, 255, found[at] ^ 1 << rng.randrange(8)))
            case 2:
                del found[at : at + rng.choice((1, 2, 32, 610, 1040))]
            case 3:
                found[at:at] = found[: rng.choice((1, 32, 610, 1040))]
            case 4:
                found[at : at + 4] = rng.choice((b"\0" * 4, b"\xff" * 4, b"FDSA", rng.randbytes(4)))
            case 5:
                found[:FRAME] = rng.choice([said for _, said in readers().values()])[:FRAME]
    return bytes(found)


def fuzzed(count: int, seed: int) -> Counter[str]:
    """Outcomes of so many mutations; whatever is raised beside refusals goes up."""
    rng, outcomes = random.Random(seed), Counter[str]()
    exact = (Step.KEYS, Step.BOOK, Step.DELIVER, Step.READY)  # what is signed, encrypted or empty
    for number in range(count):
        step = Step(number % len(Step) + 1)
        take, said = readers()[step]
        data = mutated(rng, said)
        try:
            take(data)
            outcomes["altered" if step in exact and data != said else "taken"] += 1
        except Refusal as e:
            outcomes[e.code] += 1
            outcomes["too long"] += len(str(e)) > 1000
    return outcomes


def test_whatever_the_bytes_a_message_or_a_refusal() -> None:
    found = fuzzed(600, seed=1)
    assert {*+found} <= CODES | {"taken"}
    assert len(+found) >= 6, "mutations get past the frame"


@pytest.mark.slow
def test_a_hundred_thousand_of_them(record_property: Callable[[str, object], None]) -> None:
    found = fuzzed(100_000, seed=2)
    assert {*+found} <= CODES | {"taken"}
    record_property("told", ", ".join(f"{code} {k}" for code, k in found.most_common()))


def test_bitmaps() -> None:
    for n in (3, 8, 9, 128):
        frame = messages.Message(0, 0, n, messages.bitmap(range(1, n + 1), n))
        assert messages.read_survivors(frame, PlanRefused) == tuple(range(1, n + 1))
        assert messages.read_survivors(messages.Message(0, 0, n, bytes(-(-n // 8))), PlanRefused) == ()
    with pytest.raises(PlanRefused, match="beyond the 9 members"):
        messages.read_survivors(messages.Message(0, 0, 9, b"\0\2"), PlanRefused)


def test_a_specification_too_long_is_not_looked_at() -> None:
    said = messages.write(Step.OPEN, readers_context(), bytes(34 + messages.MAX_SPEC_BYTES + 1))
    with pytest.raises(PlanRefused, match="expected a body"):
        readers()[Step.OPEN][0](said)


def readers_context() -> context.Context:
    return begun(N, SPEC).block.context
