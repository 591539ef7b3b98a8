"""Options that cannot have any effect are said, each in one line; those that have one are not."""

import logging
from pathlib import Path

import pytest

from fedft import run_file, strategies
from fedft.simulations import idle_options
from fedft.simulations import run as runs

PLAIN = {"strategy": {"name": "fedit"}}


def said(tables: dict[str, dict[str, object]], clients: int = 4, measured: int = 4) -> list[str]:
    config = run_file.from_dict(PLAIN | tables)
    return idle_options.lines(config, strategies.of(config), clients, measured)


@pytest.mark.parametrize(
    ("tables", "line"),
    [
        ({"clients": {"per_round": 5}}, "[clients] per_round = 5: there are 4 clients"),
        ({"server": {"buffer": 5}}, "[server] buffer = 5: there are 4 clients, every round waits for all"),
        ({"eval": {"clients": 5}}, "[eval] clients = 5: 4 clients have held-out rows"),
        ({"strategy": {"name": "flora"}, "clients": {"rank": [2] * 7}}, "[clients] rank: the last 3 of 7 are nobody's"),
        ({"local": {"momentum": 0.9}}, "[local] momentum = 0.9 has no effect on optimizer 'adamw'"),
        ({"strategy": {"name": "fedavg"}, "model": {"lora_dropout": 0.1}}, "[model] lora_dropout = 0.1: fedavg trains"),
        ({"server": {"workers": 6}}, "[server] workers: there are 4 clients, 2 of 6 have none"),
        ({"server": {"workers": ["cpu"] * 2, "together": 4}}, "[server] together = 4: clients share passes with those"),
    ],
)
def test_an_option_without_effect_is_one_line(tables: dict[str, dict[str, object]], line: str) -> None:
    (found,) = said(tables)
    assert found.startswith(line)


@pytest.mark.parametrize(
    "tables",
    [
        {},
        {"clients": {"per_round": 4}, "eval": {"clients": 4}},
        {"local": {"momentum": 0.9, "optimizer": "sgd"}, "model": {"lora_dropout": 0.1}},
        {"strategy": {"name": "flora"}, "clients": {"rank": [2, 4, 8]}},
        {"server": {"together": 4}},
        {"server": {"workers": 4}},
        {"server": {"workers": 1, "together": 4}},
    ],
)
def test_an_option_that_has_an_effect_is_not_told(tables: dict[str, dict[str, object]]) -> None:
    assert said(tables) == []


def test_a_run_says_them_before_it_trains(tiny_base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Also the one that is found where clients train."""
    idle = ["data.clients=1", "server.together=2", "model.lora_dropout=0.1", "local.momentum=0.9"]
    small = ["local.steps=1", "local.batch_size=2", "eval.max_rows=2", "server.rounds=1", "clients.rank=4"]
    with caplog.at_level(logging.WARNING):
        runs.simulate(run_file.load(runs.QUICKSTART, [f"model.id='{tiny_base}'", *small, *idle]), out=tmp_path / "run")
    wanted = ("there is one client", "[local] momentum", "[server] together = 2: clients train one at a time: [model]")
    for line in wanted:
        assert sum(m.startswith(line) for m in caplog.messages) == 1


def test_measuring_many_clients_after_every_round_is_said_with_what_is_cheaper() -> None:
    (found,) = said({}, clients=60, measured=50)
    assert found.startswith("[eval]: all 50 clients are measured after every round; clients = 20 or every = 5")
    assert not said({}, clients=60, measured=49)
    assert not said({"eval": {"every": 2}}, clients=60, measured=60)
    assert not said({"eval": {"clients": 20}}, clients=60, measured=60)
    assert said({"clients": {"per_round": 5}}, clients=30, measured=30)
    assert not said({"clients": {"per_round": 15}}, clients=30, measured=30)
