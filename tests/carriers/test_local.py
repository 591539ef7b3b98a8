"""Letters within one process: answered as over a network, one at a time, and Flower has no part in it."""

import weakref
from typing import NoReturn

import pytest

from fedft.carriers.interface import MAX_REASON, Kind, Letter, Refused, Reply
from fedft.carriers.local import LocalPost, Serve
from fedft.errors import ClientFailed, DataError, RejectedUpdate

ASKED: list[tuple[Kind, bytes]] = [("query", b"job"), ("train", b"plan")]


def _post(answer: Serve, *letters: Letter) -> tuple[LocalPost, list[str]]:
    post = LocalPost({"anna": answer, "bert": answer})
    return post, [post.push(letter)[0] for letter in letters or [Letter("anna", "train", lambda: b"plan")]]


def _only(answer: Serve, *letters: Letter) -> Reply:
    post, tickets = _post(answer, *letters)
    (reply,) = post.pull(tickets)
    return reply


@pytest.mark.parametrize(("kind", "payload"), ASKED)
def test_a_client_is_given_the_letter_s_kind_and_bytes_and_its_answer_comes_back(kind: Kind, payload: bytes) -> None:
    heard = []
    post, tickets = _post(lambda *asked: heard.append(asked) or b"said", Letter("bert", kind, lambda: payload))
    (reply,) = post.pull(tickets)
    assert heard == [(kind, payload)]
    assert (reply.ticket, reply.client, reply.answer, reply.proven) == (tickets[0], "bert", b"said", True)
    assert list(post.pull(tickets)) == []


def test_pushing_says_how_long_the_payload_is_and_asks_nobody() -> None:
    heard = []
    post = LocalPost({"anna": lambda kind, payload: heard.append(payload) or b""})
    assert post.push(Letter("anna", "train", lambda: b"12345"))[1] == 5
    assert heard == []


def test_a_pull_answers_one_letter_the_first_of_those_asked_for() -> None:
    heard = []
    letters = [Letter(c, "train", lambda: b"x") for c in ("anna", "bert", "anna")]
    post, tickets = _post(lambda kind, payload: heard.append(payload) or b"said", *letters)
    (reply,) = post.pull([tickets[1], tickets[2]])
    assert reply.ticket == tickets[1]
    assert len(heard) == 1
    assert [r.ticket for _ in range(3) for r in post.pull(tickets)] == [tickets[0], tickets[2]]


def test_a_cancelled_letter_costs_nobody_any_work() -> None:
    heard = []
    post, tickets = _post(lambda kind, payload: heard.append(payload) or b"said")
    post.cancel(tickets)
    assert list(post.pull(tickets)) == []
    assert heard == []


def test_a_client_that_fails_would_fail_again_and_is_told_in_one_line_with_its_cause() -> None:
    def broken(kind: Kind, payload: bytes) -> bytes:
        raise OSError("no\ndisk " + "x" * 1000)

    with pytest.raises(ClientFailed, match="round 0: client 'anna' failed: OSError: no disk xx") as e:
        _only(broken)
    assert isinstance(e.value.__cause__, OSError)
    assert "\n" not in str(e.value)
    assert len(str(e.value)) < 600


def test_a_user_s_mistake_that_a_client_finds_is_still_a_user_s_mistake() -> None:
    def mistaken(kind: Kind, payload: bytes) -> bytes:
        raise DataError("row 3 has no text")

    with pytest.raises(DataError, match=r"^row 3 has no text$"):
        _only(mistaken)


def test_an_interruption_by_hand_is_no_client_s_failure_and_the_letter_is_done_with() -> None:
    def interrupted(kind: Kind, payload: bytes) -> bytes:
        raise KeyboardInterrupt

    post, tickets = _post(interrupted)
    with pytest.raises(KeyboardInterrupt):
        next(post.pull(tickets))
    assert list(post.pull(tickets)) == []


def test_an_answer_longer_than_the_letter_allows_is_refused() -> None:
    letter = Letter("anna", "train", lambda: b"plan", max_bytes=4)
    assert _only(lambda kind, payload: b"1234", letter).answer == b"1234"
    answer = _only(lambda kind, payload: b"12345", letter).answer
    assert isinstance(answer, RejectedUpdate)
    assert answer.code == "too_large"


def test_a_client_s_refusal_is_bounded_and_its_code_is_one_that_a_client_may_give() -> None:
    answer = _only(lambda kind, payload: Refused("behind", "7\n" + "x" * 1000)).answer
    assert isinstance(answer, Refused)
    assert (answer.code, answer.reason[:3], len(answer.reason)) == ("behind", "7 x", MAX_REASON)
    for code in ("deadline", "client_error", "No Code"):
        answer = _only(lambda kind, payload, code=code: Refused(code, "")).answer  # type: ignore[misc]
        assert isinstance(answer, RejectedUpdate)
        assert answer.code == "malformed"


class Counted(dict[str, Letter]):
    """Letters by ticket that count how often one is looked up."""

    looked = 0

    def __contains__(self, ticket: object) -> bool:
        self.looked += 1
        return super().__contains__(ticket)

    def __iter__(self) -> NoReturn:
        raise AssertionError("all tickets were gone through")


@pytest.mark.parametrize("together", [1, 4])
def test_a_pull_looks_at_no_more_letters_than_it_begins_however_many_wait(together: int) -> None:
    letters = [Letter("anna", "train", lambda: b"plan") for _ in range(200)]
    post = LocalPost({"anna": lambda *_: b"alone"}, lambda asked: [lambda: b"shared" for _ in asked], together)
    waiting = Counted((post.push(letter)[0], letter) for letter in letters)
    answers = []
    while waiting:
        for reply in post.pull(waiting):
            del waiting[reply.ticket]
            answers.append(reply.answer)
    assert len(answers) == 200
    assert (b"shared" in answers) == (together > 1)
    assert waiting.looked <= 2 * len(letters)


def test_a_letter_that_waits_is_what_it_was_read_as_and_its_bytes_are_not_kept() -> None:
    heard, made = [], []

    def payload() -> bytes:
        made.append(weakref.ref(data := Bytes(b"a long plan")))
        return data

    post = LocalPost(
        {"anna": lambda kind, plan: heard.append(plan) or b"said"},
        read=lambda letter, payload: (letter.tensors["w"], len(payload)),
    )
    ticket, size = post.push(Letter("anna", "train", payload, tensors={"w": 3}))
    assert size == len(b"a long plan")
    assert made[0]() is None
    assert [r.answer for r in post.pull([ticket])] == [b"said"]
    assert heard == [(3, size)]


class Bytes(bytearray):
    """Bytes that can be asked whether they are still there."""
