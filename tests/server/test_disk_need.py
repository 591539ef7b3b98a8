"""Disk that a run will take: what is foreseen is what is there at the end, and no run begins without any room."""

import logging
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from deployed import OPTIONS, Deployment

from fedft import run_file, strategies, testing
from fedft.config import RunConfig
from fedft.errors import ConfigError
from fedft.recipe import Recipe
from fedft.server import disk_need


def made(name: str, rounds: int, **server: Any) -> tuple[RunConfig, Recipe, testing.Toy]:
    recipe = strategies.make(name, OPTIONS.get(name, {}))
    toy = testing.toy(recipe)
    tables = {"strategy": {"name": name, **OPTIONS.get(name, {})}, "clients": {"rank": list(toy.ranks)}}
    return run_file.from_dict({**tables, "server": {"rounds": rounds, **server}}), recipe, toy


def need(name: str, rounds: int, clients: int = 3, **server: Any) -> disk_need.Need:
    config, recipe, toy = made(name, rounds, **server)
    return disk_need.foreseen(config, recipe, toy.layout, clients)


@pytest.mark.parametrize("name", ["fedit", "fedavg", "ferret", "mezo", "fedkseed"])
def test_what_a_run_leaves_is_what_was_foreseen_or_less(tmp_path: Path, name: str) -> None:
    run = Deployment(tmp_path, name, rounds=12)
    run.run()
    state = sum(p.stat().st_size for p in (tmp_path / "state").rglob("*") if p.is_file())
    found = disk_need.foreseen(run.config, run.federation.recipe, run.federation.layout, 3)
    overhead = 24 * 1024  # of a toy's headers and notes: as large as its numbers
    assert state <= found.whole + overhead
    assert found.least <= found.whole


def test_a_state_that_is_replaced_grows_with_the_logarithm_of_the_rounds_and_one_that_grows_in_proportion() -> None:
    few, many = need("fedavg", 100).whole, need("fedavg", 10_000).whole
    assert many - 10_000 * 300 < 2 * few
    growth = [need("ferret", rounds).whole for rounds in (1000, 2000, 4000)]
    assert growth[2] - growth[1] == pytest.approx(2 * (growth[1] - growth[0]), rel=0.05)
    assert need("mezo", 1000, clients=30).whole > 5 * need("mezo", 1000, clients=3).whole
    assert need("fedit", 1000, archive=True).whole > 5 * need("fedit", 1000).whole


def test_rounds_that_do_not_wait_keep_the_states_that_open_turns_began_from_and_fewer_updates() -> None:
    """29 of 30 turns go on behind a version, each from a state of its own, no older than `max_staleness`."""

    def found(stale: int) -> disk_need.Need:
        return need("fedit", 100, clients=30, buffer=1, max_staleness=stale)

    state = sum(x.nbytes for x in made("fedit", 100)[2].state().tensors.values()) + 30 * disk_need.NOTES_BYTES
    assert found(20).whole - found(3).whole == 17 * state
    assert found(50).whole - found(20).whole == 9 * state
    waits = need("fedit", 100, clients=30)
    assert found(0).least < waits.least
    assert found(0).whole < waits.whole < found(20).whole


def test_without_room_for_the_first_rounds_nothing_begins_and_with_little_the_log_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config, recipe, toy = made("fedavg", 500)
    wanted = need("fedavg", 500)

    def check(free: int) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
        disk_need.check(config, recipe, toy.layout, 3, tmp_path / "not" / "there")

    with pytest.raises(ConfigError, match=r"there: .* of disk are free, the first rounds need .*; make room") as e:
        check(wanted.least - 1)
    assert "\n" not in str(e.value)
    with caplog.at_level(logging.WARNING):
        check(wanted.whole)
        assert not caplog.text
        check(wanted.whole - 1)
    assert "up to round 500; it will pause where none is left: make room, name another folder" in caplog.text


def test_a_run_that_has_begun_is_not_refused_and_what_it_has_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config, recipe, toy = made("fedavg", 500)
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "gen-00000003.fedft").write_bytes(bytes(1000))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=need("fedavg", 500).whole - 1000))
    disk_need.check(config, recipe, toy.layout, 3, tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=0))
    assert not caplog.text
    disk_need.check(config, recipe, toy.layout, 3, tmp_path)
    assert "0 B of disk are free" in caplog.text
