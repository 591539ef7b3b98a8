"""Paired differences: what they are of, how sure they are, and who gains."""

import math
from typing import Any

import pytest

from fedft.reports import comparison, energy, paired, per_client


def result(after: float, seed: int, **clients: float) -> dict[str, Any]:
    """A run's result of which nothing else is looked at."""
    numbers = {"before": 3.0, "after": after, "rounds": 1, "up": 0.0, "down": 0.0, "bytes": 0, "steps": 1}
    timed = {"seconds": 1.0, "work": 3600.0, "error": None}
    return {**numbers, **timed, "seed": seed, "clients": clients, "curve": []}


@pytest.mark.parametrize(
    ("freedom", "wanted"),
    [(1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (9, 2.2622), (10, 2.2281), (30, 2.0423), (999, 1.9623)],
)
def test_quantiles_of_student_are_those_of_tables(freedom: int, wanted: float) -> None:
    assert paired.t_quantile(freedom) == pytest.approx(wanted, abs=1e-4)


def test_what_seeds_have_in_common_is_no_part_of_the_spread() -> None:
    """Seeds differ by 1, the methods by 0.1: unpaired nobody could tell them apart."""
    results = {
        "a": [result(1.0 + s, s) for s in range(4)],
        "b": [result(1.1 + s + e, s) for s, e in enumerate((0.01, -0.01, 0.01, -0.01))],
    }
    (row,) = paired.rows(results, "a")
    of = row["seeds"]
    assert (row["method"], of["n"], of["mean"]) == ("b", 4, pytest.approx(0.1))
    assert of["se"] == pytest.approx(0.01 * math.sqrt(4 / 3) / 2)
    assert of["low"] == pytest.approx(0.1 - 3.18245 * of["se"], abs=1e-5)
    assert of["high"] == pytest.approx(0.1 + 3.18245 * of["se"], abs=1e-5)


def test_runs_are_paired_by_their_seed_wherever_they_stand() -> None:
    results = {"a": [result(1.0, 0), result(2.0, 1)], "b": [result(2.5, 1), result(9.0, 7), result(1.5, 0)]}
    assert paired.rows(results, "a")[0]["seeds"] == {"n": 2, "mean": 0.5, "se": 0.0, "low": None, "high": None}


def test_an_interval_is_said_of_three_or_more_and_an_error_of_two() -> None:
    assert paired.said(paired.spread([0.5])) == "+0.500"
    assert paired.said(paired.spread([0.5, 0.7])) == "+0.600 ± 0.100"
    assert paired.said(paired.spread([-0.5, -0.7, -0.6])) == "-0.600 ± 0.058, -0.848 to -0.352"
    assert paired.said(None) == "-"


def test_clients_are_paired_with_themselves() -> None:
    results = {
        "a": [result(0, 0, x=1.0, y=2.0, left=9.0), result(0, 1, x=1.2, y=2.2)],
        "b": [result(0, 0, x=0.9, y=2.4), result(0, 1, x=1.3, y=2.4, came=1.0)],
    }
    assert paired.by_client(results["b"], results["a"]) == {"x": pytest.approx(0.0), "y": pytest.approx(0.3)}
    assert paired.rows(results, "a")[0]["clients"]["n"] == 2


def test_a_comparison_is_against_the_best_federated_method_unless_one_is_named() -> None:
    results = {"fedit": [result(1.2, 0)], "flora": [result(1.1, 0)], "central": [result(0.5, 0)]}
    found = comparison.compare({}, results)
    assert (found["against"], found["picked"]) == ("flora", True)
    assert [r["method"] for r in found["paired"]] == ["fedit", "central"]
    named = comparison.compare({}, results, against="fedit")
    assert (named["against"], named["picked"]) == ("fedit", False)
    assert comparison.compare({}, {"central": results["central"]})["against"] == "central"
    assert comparison.compare({}, {})["paired"] == []


def test_who_gains_and_who_loses_is_measured_against_training_alone() -> None:
    results = {
        "local": [result(0, 0, **{f"c{n}": 2.0 for n in range(8)})],
        "fedit": [result(0, 0, **{f"c{n}": 1.3 + 0.1 * n for n in range(8)})],
        "silent": [result(0, 0)],
    }
    (row,) = per_client.rows(results)
    assert (row["method"], row["clients"], row["gain"]) == ("fedit", 8, pytest.approx(7 / 8))
    assert [w["client"] for w in row["worst"]] == ["c7", "c6", "c5"]
    assert (row["worst"][0]["alone"], row["worst"][0]["with"]) == (2.0, pytest.approx(2.0))
    assert per_client.rows({"fedit": results["fedit"]}) == []


def test_energy_is_work_times_what_is_assumed_and_says_so() -> None:
    found = comparison.compare({}, {"fedit": [result(1.0, 0)]}, watts=50.0)
    assert comparison.readable(found)[0]["energy"] == "50 Wh"
    assert "assumed, not measured" in energy.assumption(50.0)
    assert "energy" not in comparison.readable(comparison.compare({}, {"fedit": [result(1.0, 0)]}))[0]
