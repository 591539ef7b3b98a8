"""Versions of the protocol: what two ends agree on, and that a message says the same in each of them."""

import pytest
import torch
from next_version import ALL, SEALS, spoken

from fedft.errors import RejectedUpdate
from fedft.update import Job, Plan, TensorSpec, Update
from fedft.wire import forms, frame, messages, versions
from fedft.wire.header import Field, as_count

RUN = "0123456789abcdef"
W = {"w": torch.tensor([[1.5, -2.0]])}
SPEC = {"w": TensorSpec((1, 2))}
UPDATE = Update(W, 7, round=3, run=RUN, attempt=2, metrics={"loss": 0.5})
PLAN = Plan(RUN, 3, 3, have=2, rank=4, ranks={"q": 2}, steps=5, learning_rate=0.1, extra={"mu": 0.5}, tensors=W)
JOB = Job(RUN, 1, "d" * 64, {"local": {"steps": 3}})


def test_the_tables_name_the_same_versions_two_at_most() -> None:
    assert versions.SEALS.keys() == forms.FORMS.keys()
    assert 1 <= len(versions.SEALS) <= 2
    assert list(versions.SEALS) == list(range(versions.oldest(), versions.newest() + 1))
    assert sorted(versions.SEALS.values()) == list(versions.SEALS.values())


@pytest.mark.parametrize(
    ("ours", "theirs", "agreed"),
    [((2, 3), (2, 3), 3), ((2, 3), (2, 2), 2), ((2,), (2, 3), 2), ((2, 3), (3, 4), 3), ((3, 4), (2, 2), None)],
)
def test_two_ends_speak_the_newest_version_that_both_know(
    ours: tuple[int, ...], theirs: tuple[int, int], agreed: int | None
) -> None:
    with spoken(*ours):
        assert versions.common(*theirs) == agreed
    with spoken(*range(theirs[0], theirs[1] + 1)):
        assert versions.common(min(ours), max(ours)) == agreed


@pytest.mark.parametrize("codec", ["fp32", "int4", "topk:0.5 | int8"])
def test_a_message_in_the_version_before_is_what_that_version_writes(codec: str) -> None:
    """Byte for byte, and says the same; and back again."""
    with spoken(2):
        old = [messages.encode_update(UPDATE, codec, 1), messages.encode_plan(PLAN, codec, 1), messages.encode_job(JOB)]
    with spoken(2, 3):
        new = [messages.encode_update(UPDATE, codec, 1), messages.encode_plan(PLAN, codec, 1), messages.encode_job(JOB)]
        assert [frame.version_of(data) for data in (*old, *new)] == [2, 2, 2, 3, 3, 3]
        assert [messages.in_version(data, 2) for data in new] == old
        assert [messages.in_version(data, 3) for data in old] == new
        assert all(messages.in_version(data, 3) is data for data in new)
        reads = (
            lambda data: messages.decode_update(data, SPEC, codec),
            lambda data: messages.decode_plan(data, max_bytes=10**6),
            messages.decode_job,
        )
        found = [[read(data) for read, data in zip(reads, of, strict=True)] for of in (old, new)]
    for a, b in zip(*found, strict=True):
        assert str(a) == str(b)


def test_only_known_versions_are_read_and_each_under_its_own_keys() -> None:
    with spoken(3, 4):
        new = messages.encode_plan(PLAN, "fp32")
        third = messages.in_version(new, 3)
    with pytest.raises(RejectedUpdate, match="protocol 4, here is protocol 2: update this side") as e:
        messages.decode_plan(new, max_bytes=10**6)
    assert e.value.code == "version"
    old = messages.encode_plan(PLAN, "fp32")
    with spoken(3, 4), pytest.raises(RejectedUpdate, match="protocol 2, here is protocol 3 to 4: update the peer"):
        messages.decode_plan(old, max_bytes=10**6)
    lying = frame.with_header(third, frame.unpack(old, frame.MessageKind.PLAN, 10**6, 10**6)[1], 3)
    with spoken(2, 3), pytest.raises(RejectedUpdate, match="no keys but") as e:
        messages.decode_plan(lying, max_bytes=10**6)
    assert e.value.code == "malformed"


def test_what_an_older_version_has_no_word_for_is_refused_and_not_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    bare = tuple(f for f in ALL[2].plan if f.name != "counted")
    monkeypatch.setitem(ALL, 2, forms.Forms(ALL[2].update, bare, ALL[2].job))
    counted = forms.Forms(ALL[3].update, (*ALL[3].plan[:-2], Field("w", "counted", as_count, None)), ALL[3].job)
    monkeypatch.setitem(ALL, 3, counted)
    with spoken(2, 3):
        assert messages.in_version(messages.encode_plan(Plan(RUN, 1, 1), "fp32"), 2)
        with pytest.raises(RejectedUpdate, match="protocol 2 cannot say 'counted': update the peer") as e:
            messages.in_version(messages.encode_plan(Plan(RUN, 1, 1, counted=0), "fp32"), 2)
    assert e.value.code == "version"


@pytest.mark.parametrize("junk", [b"", b"FDFT", b"FDFT\2\0\3", b"FDFT\2\0\7" + bytes(20), b"FDFT\2\0\1" + b"\xff" * 20])
def test_junk_is_rewritten_into_nothing(junk: bytes) -> None:
    with spoken(2, 3), pytest.raises(RejectedUpdate):
        messages.in_version(junk, 3)


def test_the_made_up_versions_are_other_ones() -> None:
    assert len({SEALS[n] for n in ALL}) == len({tuple(x.key for x in f.plan) for f in ALL.values()}) == 3
