"""The forecast of a server's memory against processes that do its work: slow; the smallest setting is run at once."""

from dataclasses import asdict, replace

import pytest

from fedft.benchmarks import server_memory
from fedft.benchmarks.server_memory import SETTINGS, Setting


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS, ids=lambda s: "-".join(str(x) for x in asdict(s).values() if x))
def test_the_peak_of_a_server_is_foreseen(setting: Setting) -> None:
    (row,) = server_memory.compare([replace(setting, layers=1)])
    assert row["forecast_mb"] == pytest.approx(row["measured_mb"], rel=0.15)
