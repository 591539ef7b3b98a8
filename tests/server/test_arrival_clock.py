"""The clock that a deployment waits by: an answer ends a wait, and answer upon answer leaves the server its rest."""

import threading
from types import SimpleNamespace
from typing import Any

import pytest

from fedft.server import arrival_clock
from fedft.server.arrival_clock import LEAST_S, ArrivalClock


class Time(SimpleNamespace):
    """Time that passes by sleep and by hand."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    monkeypatch.setattr(arrival_clock, "time", found := Time())
    return found


def test_an_answer_ends_a_wait_and_the_next_one_waits_again() -> None:
    clock = ArrivalClock()
    threading.Timer(0.01, clock.came).start()
    clock.sleep(3600)
    began = clock.monotonic()
    clock.sleep(0.02)
    assert clock.monotonic() - began >= 0.02


def test_an_answer_that_came_before_is_not_slept_over(time: Time) -> None:
    clock = ArrivalClock()
    clock.came()
    clock.sleep(3600)
    assert time.now == LEAST_S


@pytest.mark.parametrize(("worked", "asked", "slept"), [(0.3, 5.0, 0.3), (0.3, 0.05, 0.05), (0.0, 5.0, LEAST_S)])
def test_answers_upon_answers_leave_as_much_rest_as_there_is_work(
    time: Any, worked: float, asked: float, slept: float
) -> None:
    clock = ArrivalClock()
    for _ in range(3):
        time.now += worked
        began = time.now
        clock.came()
        clock.sleep(asked)
        assert time.now - began == pytest.approx(slept)
