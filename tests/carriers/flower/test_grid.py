"""Bytes as Flower messages: a payload comes out as it went in, and what is none of ours is told from it."""

from typing import Any

import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from fedft.carriers.flower import grid
from fedft.carriers.interface import Refused
from fedft.errors import RejectedUpdate


@pytest.fixture(autouse=True)
def _identity() -> None:
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1  # what Message() reads


@pytest.fixture
def asked() -> Message:
    message = grid.pack("train", b"plan", 8, "1")
    message.metadata.__dict__["_message_id"] = "m1"
    return message


def test_kind_node_and_bytes_are_in_a_message_and_its_answer_comes_back(asked: Message) -> None:
    assert (asked.metadata.message_type, asked.metadata.dst_node_id) == ("train", 8)
    assert grid.unpack(asked, 4) == b"plan"
    assert grid.unpack(grid.pack_reply(asked, b"said"), 4) == b"said"


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (RecordDict(), "malformed"),
        (RecordDict({"refusal": ConfigRecord({"code": "deadline", "reason": ""})}), "malformed"),
        (None, "too_large"),
    ],
)
def test_an_answer_that_is_too_long_or_none_of_ours_is_rejected(asked: Message, content: Any, code: str) -> None:
    answer = grid.pack_reply(asked, b"123456789") if content is None else Message(content, reply_to=asked)
    with pytest.raises(RejectedUpdate) as e:
        grid.unpack(answer, 8)
    assert e.value.code == code


def test_a_refusal_and_a_crash_are_refusals_in_one_printable_line(asked: Message) -> None:
    said = RecordDict({"refusal": ConfigRecord({"code": "behind", "reason": "3\nx"})})
    assert grid.unpack(Message(said, reply_to=asked), 8) == Refused("behind", "3 x")
    crashed = Message(Error(code=2, reason="no\nmemory"), reply_to=asked)
    assert grid.unpack(crashed, 8) == Refused("client_error", "no memory")
