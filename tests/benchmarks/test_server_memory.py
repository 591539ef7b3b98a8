"""The forecast of a server's memory against a process that does its work: slow; the bench has all settings."""

from dataclasses import replace

import pytest

from fedft.benchmarks import server_memory
from fedft.benchmarks.server_memory import SETTINGS


@pytest.mark.slow
def test_the_peak_of_a_server_is_foreseen() -> None:
    setting = next(s for s in SETTINGS if not s.exactness)
    (row,) = server_memory.compare([replace(setting, layers=1)])
    assert row["forecast_mb"] == pytest.approx(row["measured_mb"], rel=0.15)
