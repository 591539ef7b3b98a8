"""A site's limit of memory: a plan above it is refused by name, before the model is touched."""

from pathlib import Path

import pytest

from fedft import run_file, strategies
from fedft.client import memory_limit
from fedft.client.site_settings import Policy
from fedft.contract import Work
from fedft.data.examples import Example
from fedft.errors import PlanRefused
from fedft.forecast.anatomy import anatomy_of
from fedft.forecast.rows import Rows
from fedft.forecast.work import Forecaster
from fedft.models import dtypes, resident
from fedft.update import Plan, Shape


def test_a_plan_above_the_limit_is_refused_and_one_below_is_not(tiny_base: Path) -> None:
    config = dtypes.resolved(
        run_file.from_dict(
            {"model": {"id": str(tiny_base)}, "data": {"max_length": 200}, "strategy": {"name": "flexlora"}}
        )
    )
    recipe = strategies.of(config)
    here = resident.load(config, recipe)
    rows = [Example([5] * 200, [5] * 200, 0)] * 8
    of = Forecaster(anatomy_of(here.base), here.layout, config, recipe, Rows.of([(200, 199)] * 8, [], 8))
    small, large = (of.memory(Work(Shape(8), batch=n)).peak / 2**20 for n in (1, 64))
    assert large > small + 20
    most = round((small + large) / 2)
    check = memory_limit.check_of(Policy(max_memory_mib=most), config, recipe, here, (rows, []))
    check(Plan("", 0, 0, rank=8, steps=2, batch=1))
    with pytest.raises(
        PlanRefused, match=rf"{large:.0f} MiB of memory are foreseen, \[policy\] max_memory_mib = {most}"
    ) as e:
        check(Plan("", 0, 0, rank=8, steps=2, batch=64))
    assert e.value.code == "policy_memory"
    check(Plan("", 0, 0, rank=8, batch=64, evaluate=True))  # whatever the state's shape, nothing is trained
    memory_limit.check_of(Policy(), config, recipe, here, (rows, []))(Plan("", 0, 0, rank=8, steps=2, batch=64))
