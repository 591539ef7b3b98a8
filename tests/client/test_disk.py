"""What a site takes for the same work, whose answer it has on its disk."""

from dataclasses import replace
from typing import Any

import pytest

from fedft.client.disk import work_of
from fedft.config import Local
from fedft.contract import Turn
from fedft.update import Plan

PLAN = Plan("a" * 16, 3, 2, steps=4, learning_rate=0.25, rank=2, extra={"pool": 3})


def work(**how: Any) -> str:
    return work_of(Turn(replace(PLAN, **how), {}, "d" * 64, Local(), 7, 8))


@pytest.mark.parametrize(
    "other",
    [{"chosen": ("layers.3",)}, {"batch": 2}, {"bits": 4}, {"ranks": {"m": 0}}, {"steps": 5}, {"extra": {"pool": 4}}],
)
def test_a_plan_made_anew_that_asks_for_something_else_is_other_work(other: dict[str, Any]) -> None:
    assert work(**other) != work()


def test_another_attempt_is_the_same_work() -> None:
    assert work(attempt=9) == work()
    assert work(attempt=9, chosen=("a", "b")) == work(chosen=("a", "b"))
