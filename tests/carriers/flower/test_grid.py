"""Letters on a Flower Grid whose nodes stay, as its simulation engine has one; here a Grid of this process."""

from collections.abc import Callable, Iterable
from typing import Any, cast

import pytest
from flwr.app import ConfigRecord, Error, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from fedft.carriers.flower import grid
from fedft.carriers.flower.grid import Grid, GridPost, Message
from fedft.carriers.interface import Kind, Letter, Refused
from fedft.errors import RejectedUpdate

NODES = {"anna": 7, "bert": 8}


@pytest.fixture(autouse=True)
def _identity() -> None:
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1  # what Message() reads


class Here:
    """As much of a Grid as a post asks for: answers what it is asked to pull, at once."""

    def __init__(self, answer: Callable[[Message], Message]) -> None:
        self.answer, self.sent = answer, dict[str, Message]()

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Number them."""
        for message in messages:
            mid = message.metadata.__dict__["_message_id"] = f"m{len(self.sent)}"
            self.sent[mid] = message
        return [mid]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Every answer not given yet."""
        return [self.answer(self.sent.pop(mid)) for mid in message_ids if mid in self.sent]


def _post(answer: Callable[[Message], Message]) -> GridPost:
    return GridPost(cast(Grid, Here(answer)), NODES)


def _served(answer: Callable[[Kind, bytes], bytes | Refused], max_bytes: int = 100) -> Callable[[Message], Message]:
    return lambda message: grid.answered(message, answer, max_bytes)


def _said(answer: Callable[[Message], Message], payload: bytes = b"plan") -> Any:
    post = _post(answer)
    ticket, size = post.push(Letter("bert", "train", lambda: payload, max_bytes=8))
    assert size == len(payload)
    (reply,) = post.pull([ticket])
    assert (reply.ticket, reply.client) == (ticket, "bert")
    return reply.answer


def test_kind_and_bytes_reach_the_node_of_the_client_named_and_its_answer_comes_back() -> None:
    heard = []

    def at(message: Message) -> Message:
        heard.append(message.metadata.dst_node_id)
        return _served(lambda *asked: heard.append(asked) or b"said")(message)

    assert _said(at) == b"said"
    assert heard == [8, ("train", b"plan")]


def test_a_client_s_refusal_keeps_its_code_and_reason() -> None:
    assert _said(_served(lambda kind, payload: Refused("behind", "3 x"))) == Refused("behind", "3 x")


def test_an_answer_that_is_too_long_or_none_of_ours_is_rejected() -> None:
    for answer, code in (
        (_served(lambda kind, payload: b"123456789"), "too_large"),
        (lambda m: Message(RecordDict(), reply_to=m), "malformed"),
        (_served(lambda kind, payload: Refused("deadline", "")), "malformed"),
    ):
        found = _said(answer)
        assert isinstance(found, RejectedUpdate)
        assert found.code == code


def test_a_crash_is_a_refusal_in_one_printable_line() -> None:
    found = _said(lambda m: Message(Error(code=2, reason="no\nmemory"), reply_to=m))
    assert found == Refused("client_error", "no memory")


def test_a_client_is_not_asked_about_what_is_no_message_of_the_server_s() -> None:
    def never(kind: Kind, payload: bytes) -> bytes:
        raise AssertionError("asked")

    assert _said(_served(never, max_bytes=3)).code == "too_large"
    refusal = RecordDict({"refusal": ConfigRecord({"code": "behind", "reason": ""})})
    odd = Message(refusal, 8, "train")
    assert cast(Refused, grid.unpack(grid.answered(odd, never, 100), 100)).code == "malformed"


def test_an_answer_to_a_cancelled_letter_is_fetched_and_dropped() -> None:
    post = _post(_served(lambda kind, payload: payload))
    late, _ = post.push(Letter("anna", "train", lambda: b"late"))
    post.cancel([late])
    asked, _ = post.push(Letter("bert", "train", lambda: b"now"))
    assert [(r.client, r.answer) for r in post.pull([asked])] == [("bert", b"now")]
    assert cast(Here, post._grid).sent == {}
