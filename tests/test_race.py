"""Races on a small real model: what the table says, what is found again under `out`, and what is refused."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedft import config as configs
from fedft import durable, stdlib_base
from fedft.errors import ConfigError
from fedft.simulations import race as races
from fedft.simulations import run as runs

METHODS = ("fedit", "local", "central")
Race = Callable[..., list[dict[str, Any]]]


@pytest.fixture(scope="module")
def overrides(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """One round of two steps for two clients on a Llama with two layers of 64."""
    base = stdlib_base.ensure(tmp_path_factory.mktemp("cache"), settings=stdlib_base.TINY)
    small = ["local.steps=2", "local.batch_size=2", "server.rounds=1", "data.clients=2", "eval.max_rows=4"]
    return [f"model.id='{base}'", "clients.rank=4", *small]


@pytest.fixture(scope="module")
def race(overrides: list[str]) -> Race:
    """A race on the quickstart's data; `say` is kept in `said`."""

    def run(out: Path, *names: str, seeds: int = 1, more: tuple[str, ...] = (), said: list[str] | None = None) -> Any:
        contenders = [races.contender(n) for n in names]
        say = (said if said is not None else []).append
        return races.race(runs.QUICKSTART, contenders, seeds, out, overrides=[*overrides, *more], say=say)

    return run


@pytest.fixture(scope="module")
def finished(race: Race, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """Three methods, two seeds; the tests that share it leave it as it is."""
    out = tmp_path_factory.mktemp("race")
    return out, race(out, *METHODS, seeds=2)


def bytes_under(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Time of change and content of every file but the table."""
    files = (p for p in folder.rglob("*") if p.is_file() and p.name != races.TABLE)
    return {str(p.relative_to(folder)): (p.stat().st_mtime_ns, p.read_bytes()) for p in files}


def never(*args: Any, **kwargs: Any) -> Any:
    raise AssertionError("work was done")


def test_the_table_has_a_row_and_a_spread_for_every_method(finished: tuple[Path, list[dict[str, Any]]]) -> None:
    out, rows = finished
    assert [r["method"] for r in rows] == list(METHODS)
    assert rows == json.loads((out / "race.json").read_text())
    for row in rows:
        assert row["seeds"] == 2
        assert row["gain"] == pytest.approx(row["before"] - row["after"])
        assert {"after_sd", "gain_sd", "accuracy_sd"} <= row.keys()
        assert row["seconds"] > 0
    assert [bool(r["up"]) for r in rows] == [True, False, False]
    shown = races.readable(rows)
    assert "±" in shown[0]["after"]
    assert shown[1]["up"] == "-"


def test_all_methods_start_from_the_same_loss_on_the_same_rows(finished: tuple[Path, list[dict[str, Any]]]) -> None:
    out, _ = finished
    for seed in range(2):
        found = [json.loads((out / m / f"seed-{seed}/result.json").read_text()) for m in METHODS]
        assert [f["before"] for f in found] == pytest.approx([found[0]["before"]] * 3, rel=1e-6)
        assert len({f["after"] for f in found}) == 3
        assert [f["config"]["server"]["seed"] for f in found] == [seed] * 3


def test_a_finished_race_is_not_run_again(
    finished: tuple[Path, list[dict[str, Any]]], race: Race, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, rows = finished
    before = bytes_under(out)
    said: list[str] = []
    monkeypatch.setattr(races, "_one", never)
    assert race(out, *METHODS, seeds=2, said=said) == rows
    assert not said
    assert bytes_under(out) == before


@pytest.mark.parametrize("key", ["local.steps=3", "server.rounds=2", "data.clients=3"])
def test_runs_of_another_config_are_never_reported_as_this_one(
    finished: tuple[Path, list[dict[str, Any]]], race: Race, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    out, _ = finished
    monkeypatch.setattr(races, "_one", never)
    before = bytes_under(out)
    for method in METHODS:
        with pytest.raises(ConfigError, match="another --out") as e:
            race(out, method, more=(key,))
        assert f"differs in {key.partition('=')[0]};" in str(e.value)
        assert "\n" not in str(e.value)
    assert bytes_under(out) == before


def test_a_torn_result_is_made_again(race: Race, tmp_path: Path) -> None:
    said: list[str] = []
    first = race(tmp_path, "fedit", "local")
    for method in ("fedit", "local"):
        path = tmp_path / method / "seed-0" / "result.json"
        path.write_text(path.read_text()[:20])
    again = race(tmp_path, "fedit", "local", said=said)
    assert said == ["fedit, seed 0", "local, seed 0"]
    assert first[0] == again[0]  # the federated run stands in its folder, with the seconds it took
    timeless = [{**rows[1], "seconds": 0.0} for rows in (first, again)]
    assert timeless[0] == timeless[1]
    assert not list(tmp_path.rglob("result.json.tmp"))


def test_an_unfinished_run_of_another_config_is_refused(race: Race, tmp_path: Path) -> None:
    race(tmp_path, "fedit")
    (tmp_path / "fedit/seed-0/result.json").unlink()
    with pytest.raises(ConfigError, match=r"differs in local\.steps; name another --out"):
        race(tmp_path, "fedit", more=("local.steps=3",))


def test_a_baseline_that_was_stopped_starts_afresh(race: Race, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it left is of any config: its state and its seconds must not be found in the result."""
    real = durable.write

    def stopped(path: Path, *parts: bytes, **more: int) -> None:
        assert path.name != races.RESULT
        real(path, *parts, **more)

    with monkeypatch.context() as m:
        m.setattr(durable, "write", stopped)
        with pytest.raises(AssertionError):
            race(tmp_path / "a", "central", more=("local.steps=7", "server.rounds=2"))
    left = tmp_path / "a/central/seed-0/trained"
    assert len(list((left / "state").glob("gen-*"))) == 3
    found, clean = race(tmp_path / "a", "central"), race(tmp_path / "b", "central")
    assert [{**r, "seconds": 0} for r in found] == [{**r, "seconds": 0} for r in clean]
    lines = [json.loads(line) for line in (left / "metrics.jsonl").read_text().splitlines()]
    assert [line["version"] for line in lines] == [0, 1]
    assert found[0]["seconds"] == lines[1]["seconds"]["train"]


def test_the_clients_of_the_workplace_stay_as_they_are(overrides: list[str], tmp_path: Path) -> None:
    config = configs.load(runs.QUICKSTART, [*overrides, "strategy.name=fedit"])
    place = runs.workplace(config)
    before = {name: (c.config, c.memory, c.memory.held) for name, c in place.clients.items()}
    other = replace(place, config=replace(config, local=replace(config.local, steps=1)))
    races._train_and_measure(other, place.clients, list(place.clients), tmp_path)
    for name, c in place.clients.items():
        assert c.config is before[name][0]
        assert c.memory is before[name][1]
        assert c.memory.held is before[name][2]


def test_a_strategy_by_module_and_factory_runs_under_a_plain_name(race: Race, tmp_path: Path) -> None:
    (row,) = race(tmp_path, "fedft.strategies.fedit:fedit")
    assert row["method"] == "fedft.strategies.fedit.fedit"
    assert (tmp_path / row["method"] / "seed-0" / "result.json").exists()


def test_contenders_by_name() -> None:
    assert races.contender("flora") == races.Contender("flora", ("strategy.name=flora",))
    assert races.contender("r 4: clients.rank=4 local.steps=2").overrides == ("clients.rank=4", "local.steps=2")
    assert races.contender("local").overrides == ("strategy.name=fedit",)
    assert races.contender("a.b:c") == races.Contender("a.b.c", ("strategy.name=a.b:c",))


@pytest.mark.parametrize(
    ("names", "why"),
    [
        ((), "needs a contender"),
        (("fedit", "fedit"), "is there twice"),
        (("fedit", "FedIT: local.steps=2"), "is there twice"),
        (("../up: local.steps=2",), "plain name"),
        (("a\\b: local.steps=2",), "plain name"),
        (("..: local.steps=2",), "plain name"),
        (("race.json: local.steps=2",), "plain name"),
        ((" : local.steps=2",), "plain name"),
        (("ümlaut: local.steps=2",), "plain name"),
        (("fedid",), "no strategy 'fedid'"),
        (("fedit: strategy.name=fedit data.holdout=0",), r"see \[data\] holdout"),
        (("local: data.holdout=0.0",), r"see \[data\] holdout"),
    ],
)
def test_what_cannot_race_is_refused_in_one_line(race: Race, tmp_path: Path, names: tuple[str, ...], why: str) -> None:
    with pytest.raises(ConfigError, match=why) as e:
        race(tmp_path / "out", *names)
    assert "\n" not in str(e.value)
    assert not (tmp_path / "out").exists()
