"""What a run came to, and the row of a method."""

import math

import pytest
from made_up_runs import lines, of

from fedft.reports import comparison, run_result


def test_a_result_says_what_was_reached_and_what_it_took() -> None:
    (r,) = of(lines(error=0.25))
    assert (r["before"], r["after"], r["accuracy"]) == (3.0, pytest.approx(1 + 2 * math.exp(-4)), 0.4)
    assert (r["up"], r["down"], r["bytes"]) == (500, 1500, 16000)
    assert (r["rounds"], r["steps"], r["seconds"], r["error"]) == (4, 40, 8.0, 0.25)
    assert [p["bytes"] for p in r["curve"]] == [0, 4000, 8000, 12000, 16000]
    assert [p["aggregation_error"] for p in r["curve"]] == [None, 0.25, 0.25, 0.25, 0.25]


def test_a_row_is_the_mean_over_seeds_and_its_spread() -> None:
    row = comparison.row("m", of(lines(0.0), lines(0.2)))
    assert row["after"] == pytest.approx(1.1 + 2 * math.exp(-4))
    assert row["after_sd"] == pytest.approx(0.2 / math.sqrt(2))
    assert row["gain_sd"] == pytest.approx(0.0)
    assert (row["seeds"], row["error"]) == (2, None)


def test_nothing_measured_is_no_result() -> None:
    bare = [{k: v for k, v in line.items() if k != "loss"} for line in lines()]
    assert run_result.result(bare, 10) is None
    assert run_result.result([], 10) is None
