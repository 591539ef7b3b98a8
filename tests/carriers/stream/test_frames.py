"""The form of what is on the wire: whatever the bytes, frames or Malformed, and little is held of them."""

import random

import pytest

from fedft.carriers.stream import frames
from fedft.carriers.stream.frames import HEAD, MOST, Kind, Malformed, Reader, announced, announcement, frame


def read(data: bytes, step: int) -> list[tuple[Kind, int, bytes]]:
    """All frames of bytes that come `step` at a time; pieces joined."""
    reader, found = Reader(), list[tuple[Kind, int, bytes]]()
    for at in range(0, len(data), step):
        for kind, number, body in reader.feed(memoryview(data[at : at + step])):
            if kind is Kind.PIECE and found and found[-1][:2] == (kind, number):
                found[-1] = (kind, number, found[-1][2] + bytes(body))
            else:
                found.append((kind, number, bytes(body)))
    return found


@pytest.mark.parametrize("step", [1, 7, 16, 1000, 10**6])
def test_frames_come_out_as_they_went_in_however_they_are_cut(step: int) -> None:
    sent = [(Kind.HELLO, 0, bytes(21)), (Kind.PIECE, 7, b"x" * 5000), (Kind.TAKEN, 2**64 - 1, b"")]
    sent += [(Kind.DROP, 3, b"why"), (Kind.PIECE, 8, b"y"), (Kind.PING, 0, b"")]
    assert read(b"".join(frame(kind, number, body) for kind, number, body in sent), step) == sent


@pytest.mark.parametrize("kind", list(Kind))
def test_a_frame_that_is_too_long_is_refused_before_its_body(kind: Kind) -> None:
    with pytest.raises(Malformed):
        read(HEAD.pack(kind, MOST[kind] + 1, 0), 1)


def test_whatever_the_bytes_there_are_frames_or_malformed() -> None:
    rng, refused = random.Random(1), 0
    for _ in range(2000):
        data = bytearray(frame(rng.choice(list(Kind)), rng.randrange(100), rng.randbytes(rng.randrange(20))))
        data[rng.randrange(len(data))] = rng.randrange(256)
        reader = Reader()
        try:
            for kind, _, body in reader.feed(memoryview(bytes(data))):
                assert len(body) <= MOST[kind]
                if kind is Kind.MESSAGE:
                    announced(bytes(body))
        except Malformed:
            refused += 1
        assert len(reader._held) <= max(MOST.values())
    assert 500 < refused < 2000


@pytest.mark.parametrize("size", [0, 1, frames.INLINE_BYTES])
def test_a_short_message_is_in_its_announcement(size: int) -> None:
    ((_, number, body),) = read(announcement(9, "train", size, bytes(size)), 10**6)
    assert (number, announced(body)) == (9, ("train", size, bytes(size)))


@pytest.mark.parametrize("body", [b"", bytes(8), frames.SIZE.pack(3, 5) + b"train", frames.SIZE.pack(10**9, 0) + b"x"])
def test_an_announcement_that_does_not_fit_its_bytes_is_malformed(body: bytes) -> None:
    with pytest.raises(Malformed):
        announced(body)
