"""Races on a small real model: what the table says, what is found again under `out`, and what is refused."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from fedft import durable
from fedft import run_file as configs
from fedft.cli import main
from fedft.client.train import Client
from fedft.config import Local, RunConfig, Server
from fedft.errors import ConfigError
from fedft.reports import finished_runs
from fedft.reports.comparison import readable
from fedft.simulations import baselines, contenders, race_run, workplace
from fedft.simulations import race as races
from fedft.simulations import run as runs
from fedft.simulations.contenders import Contender, contender

METHODS = ("fedit", "local", "central")
RANKED = ("flora", "ffa_lora", "local")
WRITTEN = (races.TABLE, races.PAGE, races.CSV, races.LATEX)
Race = Callable[..., list[dict[str, Any]]]
Said = list[tuple[str, dict[str, Any]]]


pytestmark = pytest.mark.usefixtures("without_plots")


@pytest.fixture(scope="module")
def race(overrides: list[str]) -> Race:
    """A race on the quickstart's data, and its rows; what it tells is kept in `said`."""

    def run(out: Path, *names: str, seeds: int = 1, more: tuple[str, ...] = (), said: Said | None = None, **how: Any):  # type: ignore[no-untyped-def]
        def observe(kind: str, info: Any) -> None:
            if said is not None:
                said.append((kind, dict(info)))

        of = [*overrides, *more]
        return races.race(
            runs.QUICKSTART, [contender(n) for n in names], seeds, out, overrides=of, observe=observe, **how
        )["rows"]

    return run


@pytest.fixture(scope="module")
def finished(race: Race, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """Three methods, two seeds; the tests that share it leave it as it is."""
    out = tmp_path_factory.mktemp("race")
    return out, race(out, *METHODS, seeds=2)


def bytes_under(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Time of change and content of every file but the table and the page."""
    files = (p for p in folder.rglob("*") if p.is_file() and p.name not in WRITTEN)
    return {str(p.relative_to(folder)): (p.stat().st_mtime_ns, p.read_bytes()) for p in files}


def timeless(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows without what a clock has measured."""
    return [{k: v for k, v in row.items() if k not in ("seconds", "work")} for row in rows]


def never(*args: Any, **kwargs: Any) -> Any:
    raise AssertionError("work was done")


def test_the_table_has_a_row_and_a_spread_for_every_method(finished: tuple[Path, list[dict[str, Any]]]) -> None:
    out, rows = finished
    assert [r["method"] for r in rows] == list(METHODS)
    assert rows == json.loads((out / "race.json").read_text())["rows"]
    for row in rows:
        assert row["seeds"] == 2
        assert row["gain"] == pytest.approx(row["before"] - row["after"])
        assert {"after_sd", "gain_sd", "accuracy_sd"} <= row.keys()
        assert row["seconds"] > 0
    assert [bool(r["up"]) for r in rows] == [True, False, False]
    shown = readable(json.loads((out / "race.json").read_text()))
    assert "±" in shown[0]["after"]
    assert shown[1]["up"] == "-"


def test_a_report_of_its_runs_says_what_the_race_says(finished: tuple[Path, list[dict[str, Any]]]) -> None:
    out, rows = finished
    assert finished_runs.gather([out / "fedit" / f"seed-{seed}" for seed in range(2)])["rows"] == rows[:1]
    assert finished_runs.gather([out])["rows"] == rows


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
    results = [(out / name).read_bytes() for name in WRITTEN]
    said: Said = []
    monkeypatch.setattr(race_run, "train", never)
    assert race(out, *METHODS, seeds=2, said=said) == rows
    assert not said
    assert bytes_under(out) == before
    assert [(out / name).read_bytes() for name in WRITTEN] == results


@pytest.mark.parametrize("key", ["local.steps=3", "server.rounds=2", "data.clients=3", "server.patience=9"])
def test_runs_of_another_config_are_never_reported_as_this_one(
    finished: tuple[Path, list[dict[str, Any]]], race: Race, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    out, _ = finished
    monkeypatch.setattr(race_run, "train", never)
    before = bytes_under(out)
    for method in METHODS:
        with pytest.raises(ConfigError, match="another --out") as e:
            race(out, method, more=(key,))
        assert f"differs in {key.partition('=')[0]};" in str(e.value)
        assert "\n" not in str(e.value)
    assert bytes_under(out) == before


def test_a_torn_result_is_made_again(race: Race, tmp_path: Path) -> None:
    said: Said = []
    first = race(tmp_path, "fedit", "local")
    for method in ("fedit", "local"):
        path = tmp_path / method / "seed-0" / "result.json"
        path.write_text(path.read_text()[:20])
    again = race(tmp_path, "fedit", "local", said=said)
    ran = [(info["contender"], info["seed"], info["number"], info["of"]) for kind, info in said if kind == "run"]
    assert ran == [("fedit", 0, 1, 2), ("local", 0, 2, 2)]
    assert first[0] == again[0]  # the federated run stands in its folder, with the seconds it took
    assert timeless(first)[1] == timeless(again)[1]
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
        assert path.name != contenders.RESULT
        real(path, *parts, **more)

    with monkeypatch.context() as m:
        m.setattr(durable, "write", stopped)
        with pytest.raises(AssertionError):
            race(tmp_path / "a", "central", more=("local.steps=7", "server.rounds=2"))
    left = tmp_path / "a/central/seed-0/trained"
    assert len(list((left / "state").glob("gen-*"))) == 3
    found, clean = race(tmp_path / "a", "central"), race(tmp_path / "b", "central")
    assert timeless(found) == timeless(clean)
    lines = [json.loads(line) for line in (left / "metrics.jsonl").read_text().splitlines()]
    assert [line["version"] for line in lines] == [0, 1]
    assert found[0]["seconds"] == lines[1]["seconds"]["train"]


def test_patience_of_the_central_baseline_goes_by_rows_of_everybody(
    overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not by the one row that is enough to have the engine call for a measurement; prompts are nobody's to read."""
    seen: list[Client] = []
    monkeypatch.setattr(baselines, "_train_and_measure", lambda place, owners, *more: seen.extend(owners.values()))
    monkeypatch.setattr(baselines.run_result, "result", lambda lines, steps: {})
    for more in (["server.patience=1"], []):
        said = [*overrides, "strategy.name=fedit", "eval.prompts=['a']", *more]
        baselines.result("central", configs.load(runs.QUICKSTART, said), tmp_path, lambda share, line: None)
    places = workplace.workplace(configs.load(runs.QUICKSTART, said)).clients
    patient, plain = seen
    assert [row.input_ids for row in patient.test_rows[:2]] == [c.test_rows[0].input_ids for c in places.values()]
    assert len(patient.test_rows) == sum(len(c.test_rows) for c in places.values())
    assert len(plain.test_rows) == 1
    assert not patient.config.eval.prompts


def test_the_clients_of_the_workplace_stay_as_they_are(overrides: list[str], tmp_path: Path) -> None:
    config = configs.load(runs.QUICKSTART, [*overrides, "strategy.name=fedit"])
    place = workplace.workplace(config)
    before = {name: (c.config, c.memory, c.memory.held) for name, c in place.clients.items()}
    other = replace(place, config=replace(config, local=replace(config.local, steps=1)))
    baselines._train_and_measure(other, place.clients, list(place.clients), tmp_path)
    for name, c in place.clients.items():
        assert c.config is before[name][0]
        assert c.memory is before[name][1]
        assert c.memory.held is before[name][2]


def test_a_strategy_by_module_and_factory_runs_under_a_plain_name(race: Race, tmp_path: Path, allow: Any) -> None:
    allow("fedft.strategies.fedit:fedit")
    (row,) = race(tmp_path, "fedft.strategies.fedit:fedit")
    assert row["method"] == "fedft.strategies.fedit.fedit"
    assert (tmp_path / row["method"] / "seed-0" / "result.json").exists()


def test_contenders_by_name() -> None:
    assert contender("flora") == Contender("flora", ("strategy.name=flora",))
    assert contender("r 4: clients.rank=4 local.steps=2").overrides == ("clients.rank=4", "local.steps=2")
    assert contender("local").overrides == ("strategy.name=fedit",)
    assert contender("a.b:c") == Contender("a.b.c", ("strategy.name=a.b:c",))


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
        (("race.html: local.steps=2",), "plain name"),
        (("race.tex: local.steps=2",), "plain name"),
        (("tuning: local.steps=2",), "plain name"),
        (("flora: strategy.name=flora codec.down=int8",), "wanted 'fp32'"),
        (("fedit: server.budget=2e7",), "budget is"),
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


def curves(out: Path) -> dict[str, list[list[dict[str, Any]]]]:
    return json.loads((out / races.TABLE).read_text())["curves"]


def test_learning_curves_are_as_dense_as_the_run_file_says(race: Race, tmp_path: Path) -> None:
    rows = race(tmp_path, *METHODS, more=("server.rounds=4", "eval.every=2", "clients.per_round=1"))
    found = curves(tmp_path)
    assert [[p["version"] for p in found[m][0] if p["loss"] is not None] for m in METHODS] == [[0, 2, 4]] * 3
    for row, (points,) in zip(rows, found.values(), strict=True):
        assert (points[0]["loss"], points[-1]["loss"]) == (row["before"], row["after"])
        assert [points[-1][k] for k in ("bytes", "steps", "seconds")] == [row[k] for k in ("bytes", "steps", "seconds")]
        assert all(a[k] <= b[k] for a, b in pairwise(points) for k in ("bytes", "steps", "seconds"))
    assert [row["rounds"] for row in rows] == [4, 4, 4]
    assert [row["steps"] for row in rows] == [8, 4, 8]  # a client expects to be asked in every second round
    assert rows[0]["bytes"] == pytest.approx(4 * (rows[0]["up"] + rows[0]["down"]))
    assert [row["bytes"] for row in rows[1:]] == [0, 0]


def test_looking_more_often_changes_nothing(race: Race, tmp_path: Path) -> None:
    often, seldom = (
        race(tmp_path / str(e), "fedit", "central", more=("server.rounds=2", f"eval.every={e}")) for e in (1, 2)
    )
    for a, b in zip(often, seldom, strict=True):
        assert (a["before"], a["after"], a["up"], a["steps"]) == (b["before"], b["after"], b["up"], b["steps"])
        assert a["bytes"] == pytest.approx(b["bytes"], rel=0.01)


@pytest.mark.parametrize(
    ("budget", "rounds"),
    [("steps=5", {"fedit": 2, "local": 2, "central": 2}), ("bytes=1", {"fedit": 1, "local": 3, "central": 3})],
)
def test_a_budget_holds_for_all_contenders(race: Race, tmp_path: Path, budget: str, rounds: dict[str, int]) -> None:
    rows = race(tmp_path, *METHODS, more=("server.rounds=3",), budget=budget)
    assert {row["method"]: row["rounds"] for row in rows} == rounds
    saved = json.loads((tmp_path / races.TABLE).read_text())
    assert saved["about"]["budget"] == budget
    assert budget in (tmp_path / races.PAGE).read_text()
    with pytest.raises(ConfigError, match=r"differs in server\.budget; name another --out"):
        race(tmp_path, *METHODS, more=("server.rounds=3",), budget="steps=7")


def test_baselines_share_seconds_and_are_not_bound_by_bytes() -> None:
    def left(text: str, sharers: int) -> tuple[int, str | None]:
        config = RunConfig(server=Server(rounds=9, budget=text), local=Local(steps=40))
        server = baselines._bounded(config, sharers).server
        return server.rounds, server.budget

    assert left("bytes=1", 4) == (9, None)
    assert left("steps=130", 4) == (3, None)
    assert left("steps=1", 4) == (1, None)
    assert left("seconds=10", 4) == (9, "seconds=2.5")


def test_a_strategy_that_needs_one_rank_takes_the_mean_and_says_so(race: Race, tmp_path: Path) -> None:
    said: Said = []
    race(tmp_path, "flora", "ffa_lora", "local", more=("clients.rank=[2, 6]",), said=said)
    notes = [info["text"] for kind, info in said if kind == "note"]
    assert notes == [f"{m} takes one rank: 4, the mean of 2, 6" for m in ("ffa_lora", "local")]
    ranks = [json.loads((tmp_path / m / "seed-0/result.json").read_text())["config"]["clients"]["rank"] for m in RANKED]
    assert ranks == [[2, 6], 4, 4]


def test_what_is_compared_is_there_while_it_runs(race: Race, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A race that is stopped in its second contender has shown the first, and goes on to the same end."""
    whole = race(tmp_path / "whole", "fedit", "ffa_lora")
    real = race_run.train

    def stopped(task: race_run.Task, *args: Any) -> Any:
        if task.label == "ffa_lora":
            raise KeyboardInterrupt
        return real(task, *args)

    with monkeypatch.context() as m:
        m.setattr(race_run, "train", stopped)
        with pytest.raises(KeyboardInterrupt):
            race(tmp_path / "cut", "fedit", "ffa_lora")
    saved = json.loads((tmp_path / "cut" / races.TABLE).read_text())
    assert ([r["method"] for r in saved["rows"]], saved["complete"]) == (["fedit"], False)
    assert "1 of 2 methods are done" in (tmp_path / "cut" / races.PAGE).read_text()
    rows = race(tmp_path / "cut", "fedit", "ffa_lora")
    assert timeless(rows) == timeless(whole)
    assert json.loads((tmp_path / "cut" / races.TABLE).read_text())["complete"]


def test_ctrl_c_says_that_the_same_command_continues(
    overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*args: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(race_run, "train", stopped)
    args = ["race", str(runs.QUICKSTART), "--strategies", "fedit", "--seeds", "1", "--budget", "bytes=2e7"]
    sets = [part for o in overrides for part in ("--set", o)]
    monkeypatch.setattr(sys, "argv", ["fedft", *args, "--out", str(tmp_path / "out"), *sets])
    with pytest.raises(SystemExit) as e:
        main.main()
    assert e.value.code == 130
    assert capsys.readouterr().err.splitlines()[-1] == (
        "fedft: interrupted; nothing is lost: the same command continues the race"
    )


def test_json_is_one_object_and_nothing_else(
    finished: tuple[Path, list[dict[str, Any]]],
    overrides: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, rows = finished
    args = ["race", str(runs.QUICKSTART), "--strategies", ",".join(METHODS), "--seeds", "2", "--json"]
    sets = [part for o in overrides for part in ("--set", o)]
    monkeypatch.setattr(sys, "argv", ["fedft", *args, "--out", str(out), *sets])
    with pytest.raises(SystemExit) as e:
        main.main()
    assert not e.value.code
    found = json.loads(capsys.readouterr().out)
    assert (found["version"], found["complete"], found["rows"]) == (1, True, rows)
    assert found == json.loads((out / races.TABLE).read_text())


def test_a_contender_that_diverges_keeps_no_other_from_running(race: Race, tmp_path: Path) -> None:
    said: Said = []
    wild = "wild: strategy.name=fedit local.optimizer=sgd local.learning_rate=1e30 local.max_grad_norm=1e30"
    rows = race(tmp_path, wild, "fedit", said=said)
    assert [r["method"] for r in rows] == ["fedit"]
    saved = json.loads((tmp_path / races.TABLE).read_text())
    assert (saved["complete"], list(saved["stopped"])) == (False, ["wild"])
    assert saved["stopped"]["wild"].startswith("seed 0: ")
    assert [info["contender"] for kind, info in said if kind == "stopped"] == ["wild"]
    page = (tmp_path / races.PAGE).read_text()
    assert "1 of 2 methods are done" in page
    assert "<dt>wild</dt>" in page


def test_baselines_have_no_noise_of_sums_and_hide_records_as_the_federation_does() -> None:
    noise = {"clip": 0.5, "noise_multiplier": 1.0, "delta": 1e-3}

    def mode(**privacy: Any) -> tuple[str, str]:
        found = baselines.by_itself(configs.from_dict({"privacy": privacy})).privacy
        return found.mode, found.secagg

    for of_clients in ("central-dp", "local-dp"):
        assert mode(mode=of_clients, **noise) == ("none", "off")
    assert mode(secagg="on") == ("none", "off")
    for of_records in ("example-dp", "zo-dp"):
        assert mode(mode=of_records, secagg="on", range=1.0, **noise) == (of_records, "off")
