"""The forecast of memory against processes that do the work: minutes, so it is slow."""

from dataclasses import asdict, replace

import pytest

from fedft import strategies
from fedft.benchmarks import forecast
from fedft.benchmarks.forecast import SETTINGS, Setting
from fedft.contract import Work
from fedft.forecast.anatomy import anatomy_of
from fedft.forecast.remedies import cheapest
from fedft.forecast.work import Forecaster
from fedft.models.layout import layout_of

SMALLEST = [s for s in SETTINGS if s.tokens == 128]  # the bench has all of them, and minutes


@pytest.mark.slow
@pytest.mark.parametrize("setting", SMALLEST, ids=lambda s: "-".join(str(x) for x in asdict(s).values()))
def test_the_peak_of_a_process_is_foreseen(setting: Setting) -> None:
    assert {s.model for s in SMALLEST} == {s.model for s in SETTINGS}
    (row,) = forecast.compare([setting])
    assert row["forecast_mb"] == pytest.approx(row["measured_mb"], rel=0.1)


@pytest.mark.slow
def test_what_is_refused_exceeds_the_limit_and_what_the_remedy_says_does_not() -> None:
    setting = SETTINGS[0]
    config, base = setting.config(), forecast.base_of(setting)
    layout = layout_of(base, config.model.targets)
    of = Forecaster(anatomy_of(base), layout, config, strategies.of(config), forecast.known(setting))
    found = of.memory(Work())
    limit = 0.6 * (found.peak - found.process)
    remedy = cheapest(of, Work(), limit + found.process)
    assert (remedy.text, remedy.fits) == ("checkpointing", True)
    forced, changed = forecast.compare([setting, replace(setting, checkpointing=True)])
    assert 1e6 * forced["measured_mb"] > limit
    assert 1e6 * changed["measured_mb"] < limit


def test_the_bench_does_what_a_client_does() -> None:
    said = forecast.turn(Setting("llama", "qv", 24, hidden=32, layers=1))
    assert said.where in {"step", "optimizer", "evaluation"}
    assert said.peak > said.process + said.base


@pytest.mark.slow
def test_what_plan_refuses_is_above_the_limit_when_it_is_done_by_force() -> None:
    row = forecast.forced(Setting("llama", "all", 128, layers=2))
    assert row["above_limit"]
    assert "max_memory_mib" in row["said"]
    assert row["measured_mb"] <= 1.1 * row["forecast_mb"]
