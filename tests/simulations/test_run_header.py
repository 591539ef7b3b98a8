"""The header's forecast: that of `fedft plan`, and what is said of it when the run is over."""

from pathlib import Path

import pytest

from fedft import run_file
from fedft.forecast.clients import clients_of
from fedft.simulations import run as runs
from fedft.simulations import run_header
from fedft.simulations.workplace import workplace


def test_the_header_says_what_the_largest_client_takes_and_who_sets_the_pace(tiny_base: Path) -> None:
    overrides = [f"model.id='{tiny_base}'", "data.clients=2", "strategy.name=fedit", "clients.rank=4"]
    place = workplace(run_file.load(runs.QUICKSTART, overrides))
    said = run_header.header(place)
    group = run_header.foreseen(place)
    assert {c.name for c in group.clients} == {*place.clients}
    assert said["memory"]["peak"] == max(c.memory.peak for c in group.clients)
    assert said["flops"] == max(c.flops for c in group.clients)
    assert {said["largest"], said["pace"]} <= {*place.clients}
    apart = run_header.header(place, together=2)["memory"]["peak"]
    assert apart > said["memory"]["peak"]
    again = clients_of(group.clients[0].of, {c.name: c.of.rows for c in group.clients})
    assert [c.memory for c in again] == [c.memory for c in group.clients]

    now = run_header.peak(place)
    assert now is not None
    assert run_header.error(place, said, None) == {}
    assert run_header.error(place, said, now + 2**40) == {}
    found = run_header.error(place, said, 1)["forecast_error"]["memory"]
    assert found == pytest.approx(now / said["memory"]["peak"] - 1, abs=0.2)
