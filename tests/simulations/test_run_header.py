"""The header's forecast: that of `fedft plan`, and what is said of it when the run is over."""

from pathlib import Path

import pytest

from fedft import run_file
from fedft.forecast.clients import clients_of
from fedft.forecast.messages import message_bytes
from fedft.server.message_sizes import first_round
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


def test_bytes_up_are_those_of_each_client_s_own_plan(tiny_base: Path) -> None:
    """`halves` draws other modules for every client, at equal ranks: rows of unlike lengths."""
    overrides = [
        f"model.id='{tiny_base}'",
        "data.clients=4",
        "strategy.name=fedit",
        "clients.rank=4",
        "server.rounds=1",
    ]
    config = run_file.load(runs.QUICKSTART, [*overrides, "clients.plan={name='halves',share=0.2}"])
    place = workplace(config)
    said = run_header.header(place)
    plans = first_round(config, place.recipe, place.layout, 4)[1]
    each = [message_bytes(place.recipe.spec(place.layout, p), config.codec.up) for p in plans]
    assert len({p.shape.key for p in plans}) == 1
    assert len({*each}) > 1
    assert said["bytes_up"] == sum(each)
    assert said["planned"]
