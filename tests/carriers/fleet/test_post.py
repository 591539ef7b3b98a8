"""Letters to clients that are dealt out to workers: who gets which, in how many calls, and whose answers count."""

from functools import partial
from itertools import pairwise

import pytest
from inline_crew import InlineCrew

from fedft.carriers.fleet import post as posts
from fedft.carriers.fleet.post import FleetPost, dealt
from fedft.carriers.interface import Kind, Letter, Refused
from fedft.carriers.local import LocalPost
from fedft.errors import ClientFailed, DataError, RejectedUpdate

WORKERS = {"anna": 0, "bert": 1, "carl": 0}


def answer(client: str, kind: Kind, payload: bytes) -> bytes | Refused:
    """What one client says to a letter."""
    if payload == b"refuse":
        return Refused("behind", "3 x")
    if payload == b"mistake":
        raise DataError("row 3 has no text")
    if payload == b"bug":
        raise KeyError("rank")
    return f"{client} {kind} ".encode() + payload


def crew_of() -> InlineCrew:
    """Two workers, with the clients that WORKERS says."""
    return InlineCrew(
        [LocalPost({name: partial(answer, name) for name, at in WORKERS.items() if at == n}) for n in (0, 1)]
    )


def asked(*pairs: tuple[str, bytes], max_bytes: int = 100) -> tuple[FleetPost, InlineCrew, list[str]]:
    crew = crew_of()
    post = FleetPost(crew, WORKERS)
    letters = [Letter(c, "train", lambda p=p: p, max_bytes=max_bytes) for c, p in pairs]  # type: ignore[misc]
    return post, crew, [post.push(letter)[0] for letter in letters]


def test_every_client_is_asked_at_its_own_worker_and_its_answer_has_its_ticket() -> None:
    post, _, tickets = asked(("anna", b"1"), ("bert", b"2"), ("carl", b"3"))
    replies = {r.ticket: (r.client, r.answer) for r in post.pull(tickets)}
    assert replies == dict(
        zip(
            tickets,
            [("anna", b"anna train 1"), ("bert", b"bert train 2"), ("carl", b"carl train 3")],
            strict=True,
        )
    )
    assert list(post.pull(tickets)) == []


def test_a_cohort_is_one_call_for_each_worker_and_equal_payloads_are_in_it_once() -> None:
    post, crew, tickets = asked(("anna", b"x" * 9), ("bert", bytes(bytearray(9 * b"x"))), ("carl", bytes(9 * [120])))
    assert crew.calls == []
    assert len(list(post.pull(tickets))) == 3
    assert crew.calls == [(0, 2, 1), (1, 1, 1)]


def test_letters_that_come_while_a_worker_is_at_work_wait_for_its_next_call() -> None:
    post, crew, tickets = asked(("anna", b"1"), ("carl", b"2"))
    replies = post.pull(tickets)
    next(replies)
    more = [post.push(Letter("anna", "evaluate", lambda: b"3"))[0] for _ in range(2)]
    said = [(r.ticket, r.answer) for r in replies]
    assert said == [(tickets[1], b"carl train 2"), (more[0], b"anna evaluate 3"), (more[1], b"anna evaluate 3")]
    assert crew.calls == [(0, 2, 2), (0, 2, 1)]


def test_a_cancelled_letter_that_was_not_sent_costs_nobody_any_work() -> None:
    post, crew, tickets = asked(("anna", b"1"), ("bert", b"2"))
    post.cancel([tickets[0]])
    assert [r.client for r in post.pull(tickets)] == ["bert"]
    assert crew.calls == [(1, 1, 1)]


def test_a_worker_whose_letters_are_all_cancelled_is_stopped_and_its_late_answers_are_dropped() -> None:
    post, crew, tickets = asked(("anna", b"1"), ("carl", b"2"), ("bert", b"3"))
    replies = post.pull(tickets)
    assert {next(replies).client, next(replies).client} == {"anna", "bert"}
    post.cancel([tickets[1]])
    assert crew.stopped == [0]
    assert [r.client for r in replies] == []
    again = post.push(Letter("carl", "train", lambda: b"4"))[0]
    assert [(r.ticket, r.answer) for r in post.pull([again])] == [(again, b"carl train 4")]


def test_refusals_and_what_is_no_answer_are_told_as_over_a_network() -> None:
    post, _, tickets = asked(("anna", b"refuse"), ("bert", b"12345678"), max_bytes=10)
    said = {r.client: r.answer for r in post.pull(tickets)}
    assert said["anna"] == Refused("behind", "3 x")
    assert isinstance(said["bert"], RejectedUpdate)
    assert said["bert"].code == "too_large"


def test_what_a_client_fails_with_is_raised_as_in_one_process() -> None:
    post, _, tickets = asked(("anna", b"mistake"))
    with pytest.raises(DataError, match=r"^row 3 has no text$"):
        list(post.pull(tickets))
    post, _, tickets = asked(("anna", b"bug"))
    with pytest.raises(ClientFailed, match="round 0: client 'anna' failed: KeyError: 'rank'") as e:
        list(post.pull(tickets))
    assert "test_post.py" in str(e.value.__cause__)


def test_a_pull_that_nobody_answers_ends_so_that_deadlines_are_looked_at() -> None:
    crew = crew_of()
    heard: list[float] = []
    crew.hear = lambda timeout_s: iter(heard.append(timeout_s) or ())  # type: ignore[func-returns-value,method-assign]
    post = FleetPost(crew, WORKERS)
    ticket, _ = post.push(Letter("anna", "train", lambda: b"1"))
    assert list(post.pull([ticket])) == []
    assert heard == [posts.WAIT_S]
    assert posts.WAIT_S <= 1


@pytest.mark.parametrize("workers", [1, 2, 7])
def test_clients_are_dealt_by_name_evenly_and_to_the_same_worker_every_time(workers: int) -> None:
    names = [f"client-{n}" for n in range(100)]
    found = dealt(names, workers)
    assert found == dealt(names[::-1], workers)
    sizes = [list(found.values()).count(w) for w in range(workers)]
    assert max(sizes) - min(sizes) <= 1
    assert found.keys() == {*names}
    neighbours = [found[a] != found[b] for a, b in pairwise(names)]
    assert workers == 1 or 0.2 < sum(neighbours) / len(neighbours) < 0.98  # not in order of name
