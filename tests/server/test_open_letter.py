"""When a letter is due: silence, loss, and long answers that wait for their turn."""

import math

import pytest

from fedft.carriers.interface import Letter
from fedft.server.open_letter import AGAIN_S, FETCH_BYTES_S, FETCH_S, PLAN_BYTES_S, READY_S, STATUS_S, OpenLetter


def opened(size: int = 0, max_bytes: int = 0) -> OpenLetter:
    return OpenLetter(Letter("anna", "train", lambda: bytes(size), max_bytes=max_bytes), b"d" * 32, size, heard=0.0)


def test_a_site_is_silent_only_after_the_letter_can_have_arrived() -> None:
    letter = opened(size=10 * PLAN_BYTES_S)
    letter.sent(100.0)
    assert not letter.silent(110.0 + STATUS_S)
    assert letter.silent(110.1 + STATUS_S)
    letter.hear(200.0)  # from then on it is there
    assert not letter.silent(200.0 + STATUS_S)
    assert letter.silent(200.1 + STATUS_S)


def test_a_site_with_an_answer_is_never_silent() -> None:
    letter = opened()
    letter.sent(0.0)
    letter.report("ready", 1.0)
    assert not letter.silent(1e9)


def test_a_lost_letter_waits_twice_as_long_each_time_up_to_a_minute() -> None:
    letter, waits = opened(), []
    for now in range(0, 12_000, 1000):
        letter.sent(now)
        letter.lose(now, "gone")
        assert not letter.pushed
        waits.append(letter.not_before - now)
    assert waits[:4] == [1.0, 2.0, 4.0, 8.0]
    assert waits[-1] == AGAIN_S[1] == max(waits)


@pytest.mark.parametrize("doing", ["loading", "queued", "working", "training", "?"])
def test_a_site_at_work_keeps_its_letter(doing: str) -> None:
    letter = opened()
    letter.sent(0.0)
    letter.report(doing, 1.0)
    assert (letter.pushed, letter.ready, letter.not_before) == (True, False, 0.0)


def test_a_site_that_knows_nothing_of_the_letter_is_sent_it_again() -> None:
    letter = opened()
    letter.sent(0.0)
    letter.report("unknown", 1.0)
    assert (letter.pushed, letter.not_before) == (False, 2.0)


def test_a_site_that_is_asked_for_its_answer_and_says_ready_is_asked_again_in_a_while() -> None:
    letter = opened()
    letter.sent(0.0)
    letter.report("ready", 1.0)
    assert letter.not_before == 1.0, "the first time at once"
    letter.fetch(1.0)
    letter.report("ready", 2.0)
    assert (letter.ready, letter.fetching, letter.not_before) == (True, False, 2.0 + READY_S)


def test_a_fetch_is_slow_when_its_longest_answer_would_be_there() -> None:
    letter = opened(max_bytes=100 * FETCH_BYTES_S)
    assert letter.fetched_at == -math.inf
    letter.fetch(10.0)
    assert not letter.slow(109.9 + FETCH_S)
    assert letter.slow(110.0 + FETCH_S)


def test_the_loss_of_the_network_costs_a_letter_no_waiting() -> None:
    letter = opened()
    letter.sent(0.0)
    letter.report("ready", 1.0)
    letter.fetch(1.0)
    letter.void()
    assert (letter.pushed, letter.ready, letter.fetching) == (False, False, False)
    assert letter.tries == 0
