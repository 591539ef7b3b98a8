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


@pytest.mark.parametrize("said", [["mode=central-dp", "epsilon=8.0"], ["mode=example-dp", "noise_multiplier=2.0"]])
def test_a_run_spends_what_its_header_says(tiny_base: Path, tmp_path: Path, said: list[str]) -> None:
    pytest.importorskip("dp_accounting", reason="pip install 'fedft[dp]'")
    keys = [f"privacy.{key}" for key in (*said, "clip=0.5", "delta=0.002")]
    small = ["data.clients=2", "clients.rank=2", "local.steps=1", "server.rounds=2", "eval.max_rows=2"]
    sets = [f"model.id='{tiny_base}'", "strategy.name=ffa_lora", "server.loggers=[]", *small, *keys]
    done = runs.simulate(run_file.load(runs.QUICKSTART, sets), out=tmp_path / "run").summary
    header = done["header"]["privacy"]
    assert done["epsilon"] == pytest.approx(header["epsilon"], rel=1e-6)
    assert [round for round, _ in header["after"]] == [1, 2]
    assert done["final"]["epsilon"] == done["epsilon"] > done["initial"]["epsilon"] == 0


def test_a_budget_ends_a_run_after_the_round_that_its_header_says(tiny_base: Path, tmp_path: Path) -> None:
    pytest.importorskip("dp_accounting", reason="pip install 'fedft[dp]'")
    said = ("mode=central-dp", "noise_multiplier=2.0", "max_epsilon=2.3", "clip=0.5", "delta=0.002")
    small = ["data.clients=2", "clients.rank=2", "local.steps=1", "server.rounds=4", "eval.max_rows=2"]
    sets = [f"model.id='{tiny_base}'", "strategy.name=ffa_lora", "server.loggers=[]", *small]
    config = run_file.load(runs.QUICKSTART, [*sets, *(f"privacy.{key}" for key in said)])
    done = runs.simulate(config, out=tmp_path / "run").summary
    assert done["ended"] == "max_epsilon"
    assert done["rounds"] == done["header"]["privacy"]["ends"]
    assert 0 < done["rounds"] < 4
    assert done["epsilon"] <= 2.3


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
