"""`[policy] max_work`: the tokens of a round, of a job and of every plan, refused with one line above it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from asked_site import RUN, SITE, job, site_file

from fedft import run_file
from fedft.client import allowed_jobs, work_limit
from fedft.client import site_file as files
from fedft.client.site_settings import Policy
from fedft.errors import ConfigError, PlanRefused
from fedft.server.job import job_of
from fedft.update import Plan

WORK = RUN.local.steps * RUN.local.batch_size * 96
PLAN = Plan("0" * 16, 0, 0, rank=8, steps=RUN.local.steps, learning_rate=1e-3)


def site(most: int | None) -> Any:
    return replace(SITE, policy=replace(SITE.policy, max_work=most))


def refused(plan: Plan, most: int) -> str:
    with pytest.raises(PlanRefused) as e:
        work_limit.check_of(Policy(max_work=most), RUN)(plan)
    assert e.value.code == "policy_work"
    return str(e.value)


def test_a_job_is_taken_up_to_the_limit_and_refused_above() -> None:
    for most in (None, WORK, 10**12):
        assert allowed_jobs.run_config(job(), site(most)).local.steps == RUN.local.steps
    with pytest.raises(
        PlanRefused, match=rf"steps \d+ x batch \d+ x max_length 96: .* = {WORK}, .*0 to {WORK - 1}"
    ) as e:
        allowed_jobs.run_config(job(), site(WORK - 1))
    assert e.value.code == "policy_work"


def test_a_pair_of_answers_is_two_texts() -> None:
    pairs = replace(RUN, local=replace(RUN.local, objective="dpo"))
    work_limit.check_run(pairs, Policy(max_work=2 * WORK))
    with pytest.raises(PlanRefused, match="max_length 96 x answers 2: "):
        work_limit.check_run(pairs, Policy(max_work=2 * WORK - 1))


@pytest.mark.parametrize(("more", "times"), [({"steps": 7 * PLAN.steps}, 7), ({"batch": 3 * RUN.local.batch_size}, 3)])
def test_so_is_what_a_planner_makes_of_it(more: dict[str, int], times: int) -> None:
    check = work_limit.check_of(Policy(max_work=times * WORK), RUN)
    check(PLAN)
    check(replace(PLAN, **more))
    assert str(times * WORK) in refused(replace(PLAN, **more), times * WORK - 1)


def test_an_evaluation_is_the_site_s_own_and_no_limit_means_none() -> None:
    work_limit.check_of(Policy(max_work=1), RUN)(replace(PLAN, evaluate=True))
    work_limit.check_of(Policy(), RUN)(replace(PLAN, steps=10**6))


def test_every_direction_of_a_zeroth_order_step_is_a_pass() -> None:
    config = run_file.from_dict({"strategy": {"name": "mezo", "samples": 4}, "data": {"max_length": 96}})
    work = 4 * config.local.steps * config.local.batch_size * 96
    said = job_of(config, "0" * 64, b"")
    policy = Policy(strategies=["mezo"], max_work=work)
    allowed_jobs.check_job(said, policy)
    with pytest.raises(PlanRefused, match="x samples 4") as e:
        allowed_jobs.check_job(said, replace(policy, max_work=work - 1))
    assert e.value.code == "policy_work"


def test_a_site_file_says_at_least_one(tmp_path: Path) -> None:
    assert files.load(site_file(tmp_path, "[policy]\nmax_work = 5\n")).policy.max_work == 5
    with pytest.raises(ConfigError, match="max_work"):
        files.load(site_file(tmp_path, "[policy]\nmax_work = 0\n"))
