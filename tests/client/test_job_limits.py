"""What a site requires of privacy: a job that hides less, or makes no sense, is refused with its code."""

import math
from dataclasses import replace
from typing import Any

import pytest
from asked_site import RUN, SITE

from fedft.client import allowed_jobs
from fedft.client.job_limits import check_privacy
from fedft.client.site_settings import Policy
from fedft.config import LOCAL
from fedft.errors import PlanRefused
from fedft.privacy.tables import Privacy
from fedft.server.job import job_of, told

EXAMPLE = {"mode": "example-dp", "clip": 1.0, "noise_multiplier": 2.0, "delta": 1e-5}
SECURE = {"secagg": "on"}


def refused(said: dict[str, Any], policy: Policy) -> str:
    with pytest.raises(PlanRefused) as e:
        check_privacy(said, policy)
    assert e.value.code == "policy_privacy"
    return str(e.value)


@pytest.mark.parametrize("said", [{}, EXAMPLE, SECURE, {**EXAMPLE, **SECURE}])
def test_a_site_that_says_nothing_takes_all(said: dict[str, Any]) -> None:
    check_privacy(said, Policy())


@pytest.mark.parametrize(
    ("require", "good", "bad"),
    [
        (["example-dp"], [EXAMPLE], [{}, SECURE, {**EXAMPLE, "mode": "central-dp"}]),
        (["example-dp", "zo-dp"], [EXAMPLE, {**EXAMPLE, "mode": "zo-dp"}], [{}, {**EXAMPLE, "mode": "local-dp"}]),
        (["secagg"], [SECURE, {**EXAMPLE, **SECURE}], [{}, EXAMPLE, {"secagg": "clear"}]),
        (["secagg", "example-dp"], [{**EXAMPLE, **SECURE}], [SECURE, EXAMPLE]),
    ],
)
def test_what_is_required_is_had(require: list[Any], good: list[Any], bad: list[Any]) -> None:
    policy = Policy(require=require)
    for said in good:
        check_privacy(said, policy)
    for said in bad:
        assert "required here" in refused(said, policy)


def test_a_cohort_of_a_secure_sum_is_as_large_as_the_site_wants() -> None:
    check_privacy({**SECURE, "min_cohort": 7}, Policy(min_cohort=7))
    assert "[policy] min_cohort = 7" in refused({**SECURE, "min_cohort": 6}, Policy(min_cohort=7))


def test_noise_that_hides_nothing_is_refused_unless_the_site_says_so() -> None:
    seeded = {**EXAMPLE, "noise": "seeded"}
    assert "hides nothing" in refused(seeded, Policy())
    check_privacy(seeded, Policy(seeded_noise=True))


def test_a_site_with_a_budget_takes_no_run_without_a_bound() -> None:
    """A server could go round the budget by asking for a run that hides nothing."""
    for said in ({}, SECURE):
        assert "has no epsilon" in refused(said, Policy(max_epsilon=8.0))
    check_privacy(EXAMPLE, Policy(max_epsilon=8.0))


NUMBERS = [key for key in EXAMPLE if key != "mode"]


@pytest.mark.parametrize("key", NUMBERS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 0.0, -1.0, "x", None, True, [1.0]])
def test_a_number_that_makes_no_sense_is_refused(key: str, value: Any) -> None:
    refused({**EXAMPLE, key: value}, Policy())


@pytest.mark.parametrize(
    "said",
    [
        {**EXAMPLE, "mode": "none?"},
        {**EXAMPLE, "epsilon": 8.0},
        {**EXAMPLE, "rounds": 0},
        {**EXAMPLE, "rounds": 3},
        {**EXAMPLE, "delta": 1.5},
        {**EXAMPLE, "noise_multiplier": 1e9},  # beyond what integers of 64 bits hold: no noise at all
        {**EXAMPLE, "clip": 1e300},
        {**EXAMPLE, "noise": "none"},
        {"secagg": "maybe"},
        {**SECURE, "min_cohort": 2},
        {**SECURE, "value_bits": 99},
        {"unknown": 1},
    ],
)
def test_a_table_that_makes_no_sense_is_refused(said: dict[str, Any]) -> None:
    refused(said, Policy())


def test_a_job_is_held_against_it() -> None:
    private = replace(RUN, privacy=Privacy(**EXAMPLE))
    found = allowed_jobs.run_config(job_of(private, "d" * 64, b""), SITE)
    assert found.privacy == private.privacy
    with pytest.raises(PlanRefused) as e:
        allowed_jobs.check_job(job_of(RUN, "d" * 64, b""), replace(SITE.policy, require=["example-dp"]))
    assert e.value.code == "policy_privacy"


def test_a_job_says_for_how_many_rounds_its_epsilon_is() -> None:
    """A site finds its noise from it; to go on for longer makes no other run of it."""
    keys = {**EXAMPLE, "noise_multiplier": None, "epsilon": 8.0}
    run = replace(RUN, privacy=Privacy(**keys), server=replace(RUN.server, rounds=17))
    job = job_of(run, "d" * 64, b"")
    assert job.table("privacy")["rounds"] == 17
    assert allowed_jobs.run_config(job, SITE).privacy.rounds == 17
    longer = replace(run, server=replace(run.server, rounds=34))
    assert (job_of(longer, "d" * 64, b"").run, told(longer)["privacy"]["rounds"]) == (job.run, 34)
    assert "rounds" not in told(replace(run, privacy=Privacy(**EXAMPLE)))["privacy"]
    assert not job.table("privacy").keys() & LOCAL["privacy"]
