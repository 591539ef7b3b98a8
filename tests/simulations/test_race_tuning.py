"""Tuned races, and runs side by side: what is tried and chosen, on which rows, and that nothing else changes."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedft import run_file
from fedft.cli import main
from fedft.config import RunConfig
from fedft.errors import ClientFailed, ConfigError
from fedft.simulations import grid, race_run, side_by_side, tuning, virtual_clients
from fedft.simulations import race as races
from fedft.simulations import run as runs
from fedft.simulations.contenders import Contender, contender
from fedft.simulations.race_run import Stopped, Task

RATES = ("local.learning_rate=1e-3,1e-2",)
Race = Callable[..., dict[str, Any]]


pytestmark = pytest.mark.usefixtures("without_plots")


@pytest.fixture(scope="module")
def race(overrides: list[str]) -> Race:
    def run(out: Path, *names: str, seeds: int = 1, more: tuple[str, ...] = (), **how: Any) -> dict[str, Any]:
        of = [*overrides, *more]
        return races.race(runs.QUICKSTART, [contender(n) for n in names], seeds, out, overrides=of, **how)

    return run


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> list[Task]:
    """Runs that are not run: the loss of each is 1 plus its distance from a learning rate of 3e-3; those begun."""
    begun: list[Task] = []

    def train(task: Task, observe: Any) -> dict[str, Any]:
        begun.append(task)
        rate = task.config.local.learning_rate
        if rate > 1:
            raise ClientFailed("numbers are not finite")
        task.folder.mkdir(parents=True, exist_ok=True)
        numbers = {"before": 2.0, "after": 1 + abs(rate - 3e-3), "rounds": 1, "steps": 2, "seconds": 1.0, "work": 1.0}
        return {**numbers, "up": 0.0, "down": 0.0, "bytes": 0, "error": None, "clients": {}, "curve": []}

    monkeypatch.setattr(race_run, "train", train)
    return begun


def rates(tasks: list[Task], label: str, setting: bool) -> list[tuple[int, float]]:
    return [(t.seed, t.config.local.learning_rate) for t in tasks if t.label == label and bool(t.setting) is setting]


def test_every_contender_is_tuned_and_runs_with_what_was_best_for_it(
    race: Race, tmp_path: Path, made_up: list[Task]
) -> None:
    own = "own: strategy.name=fedit local.learning_rate=7e-3"
    done = race(tmp_path, "fedit", "local", "central", own, seeds=2, grid=["local.learning_rate=1e-2,4e-3,1e-3"])
    for label in ("fedit", "local", "central"):
        assert rates(made_up, label, setting=True) == [(2, 1e-2), (2, 4e-3), (2, 1e-3)]
        assert rates(made_up, label, setting=False) == [(0, 4e-3), (1, 4e-3)]
    assert rates(made_up, "own", setting=True) == []
    assert rates(made_up, "own", setting=False) == [(0, 7e-3), (1, 7e-3)]
    said = done["tuning"]["contenders"]
    assert [(said[c]["chosen"], said[c]["trials"]) for c in ("fedit", "own")] == [
        ("local.learning_rate=4e-3", 3),
        ("", 0),
    ]
    assert done["tuning"]["seed"] == 2
    assert said["fedit"]["at_an_end"] == []
    page = (tmp_path / races.PAGE).read_text()
    assert "local.learning_rate=4e-3" in page
    assert "seed 2, by the loss on" in page


def test_the_command_says_what_was_chosen_and_how_sure_differences_are(
    overrides: list[str],
    tmp_path: Path,
    made_up: list[Task],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    said = ["--strategies", "fedit,local", "--seeds", "2", "--grid", *RATES, "--against", "local", "--watts", "40"]
    sets = [part for o in overrides for part in ("--set", o)]
    monkeypatch.setattr(sys, "argv", ["fedft", "race", str(runs.QUICKSTART), *said, "--out", str(tmp_path), *sets])
    with pytest.raises(SystemExit) as e:
        main.main()
    assert not e.value.code
    out = capsys.readouterr().out
    assert "local.learning_rate=1e-3" in out
    assert "tuned with seed 2, by the loss on" in out
    assert "beyond which may be better: fedit (local.learning_rate)" in out
    assert "loss after less that of local, in pairs" in out
    assert json.loads((tmp_path / "race.json").read_text())["watts"] == 40


def test_a_tuned_race_that_was_stopped_goes_on_where_it_stood(
    race: Race, tmp_path: Path, made_up: list[Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, at = race_run.train, [3, 5]

    def stopped(task: Task, observe: Any) -> Any:
        if at and len(made_up) == at[0]:
            at.pop(0)
            raise KeyboardInterrupt
        return real(task, observe)

    names, how = ("fedit", "local"), {"seeds": 2, "grid": RATES}
    with monkeypatch.context() as m:
        m.setattr(race_run, "train", stopped)
        for _ in (3, 5):
            with pytest.raises(KeyboardInterrupt):
                race(tmp_path / "cut", *names, **how)
    cut = race(tmp_path / "cut", *names, **how)
    assert len(made_up) == 8
    assert len({task.folder for task in made_up}) == 8
    assert cut == race(tmp_path / "whole", *names, **how)
    before = len(made_up)
    race(tmp_path / "cut", *names, **how)
    assert len(made_up) == before


def test_a_setting_that_diverges_is_not_chosen_nor_tried_again(race: Race, tmp_path: Path, made_up: list[Task]) -> None:
    how = {"grid": ["local.learning_rate=1e9,1e-3"]}
    said = race(tmp_path, "fedit", **how)["tuning"]["contenders"]["fedit"]
    assert (said["chosen"], said["trials"]) == ("local.learning_rate=1e-3", 2)
    assert list(said["stopped"]) == ["local.learning_rate=1e9"]
    count = len(made_up)
    race(tmp_path, "fedit", **how)
    assert len(made_up) == count


def test_a_contender_of_which_no_setting_comes_to_an_end_has_a_reason_in_place_of_a_row(
    race: Race, tmp_path: Path, made_up: list[Task]
) -> None:
    wild = "wild: strategy.name=fedit clients.rank=2"
    done = race(tmp_path, wild, grid=["local.learning_rate=1e9,1e8"])
    assert done["rows"] == []
    assert "no setting came to an end: numbers are not finite" in done["stopped"]["wild"]
    assert rates(made_up, "wild", setting=False) == []


def test_a_grid_with_more_values_uses_what_was_tried_and_another_choice_wants_another_folder(
    race: Race, tmp_path: Path, made_up: list[Task]
) -> None:
    race(tmp_path, "fedit", grid=["local.learning_rate=1e-3,1e-2"])
    count = len(made_up)
    with pytest.raises(ConfigError, match=r"differs in local\.learning_rate; name another --out"):
        race(tmp_path, "fedit", grid=["local.learning_rate=1e-3,3e-3,1e-2"])
    assert [t.config.local.learning_rate for t in made_up[count:]] == [3e-3]


def config(*overrides: str) -> RunConfig:
    return run_file.load(None, overrides)


def rows_of(path: Path, clients: int = 3, each: int = 40) -> Path:
    path.write_text(
        "".join(json.dumps({"client": f"c{n % clients}", "text": f"t{n}"}) + "\n" for n in range(clients * each))
    )
    return path


def held(path: Path) -> set[str]:
    return {json.loads(line)["text"] for line in path.read_text().splitlines()}


@pytest.mark.parametrize("partition", ["natural", "iid"])
def test_rows_that_tune_are_none_that_a_compared_seed_reports_on(tmp_path: Path, partition: str) -> None:
    file = rows_of(tmp_path / "rows.jsonl")
    keys = (f"data.train='{file}'", f"data.partition={partition}", "data.clients=3", "data.client=client")
    compared = [config(*keys, f"server.seed={seed}") for seed in range(3)]
    overrides, said = tuning.written(compared, 3, tmp_path / "out")
    reported = {r["text"] for c in compared for _, h in virtual_clients.rows_by_client(c).values() for r in h}
    (folder,) = (tmp_path / "out" / "tuning").glob("rows-*")
    tuned, trained = held(folder / "held_out.jsonl"), held(folder / "train.jsonl")
    assert len(reported) > 40
    assert len(tuned) == 3 * 8
    assert not tuned & reported
    assert not tuned & trained
    assert len(tuned | trained) == 120
    assert "24 rows of 3 clients, from the rows that no compared seed holds out" in said
    parts = virtual_clients.rows_by_client(config(*keys, *overrides, "server.seed=3"))
    assert [(len(a), len(b)) for a, b in parts.values()] == [(32, 8)] * 3
    assert tuning.written(compared, 3, tmp_path / "out") == (overrides, said)


def test_a_test_file_has_no_part_in_tuning(tmp_path: Path) -> None:
    file, test = rows_of(tmp_path / "rows.jsonl"), tmp_path / "test.jsonl"
    test.write_text("".join(json.dumps({"client": f"c{n}", "text": f"test {n}"}) + "\n" for n in range(3)))
    keys = (f"data.train='{file}'", f"data.test='{test}'", "data.client=client", "data.holdout=0.0")
    _, said = tuning.written([config(*keys)], 1, tmp_path / "out")
    (folder,) = (tmp_path / "out" / "tuning").glob("rows-*")
    assert not any("test" in text for text in held(folder / "held_out.jsonl") | held(folder / "train.jsonl"))
    assert "the test file is not touched" in said


def test_seeds_that_hold_out_every_row_leave_none_to_tune_on(tmp_path: Path) -> None:
    file = rows_of(tmp_path / "rows.jsonl", each=2)
    keys = (f"data.train='{file}'", "data.client=client", "data.holdout=0.5")
    with pytest.raises(ConfigError, match="none is left to tune on"):
        tuning.written([config(*keys, f"server.seed={seed}") for seed in range(9)], 9, tmp_path / "out")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("local.learning_rate", "wanted table.key=value,value"),
        ("learning_rate=1,2", "wanted table.key=value,value"),
        ("local.learning_rate=", "wanted table.key=value,value"),
        ("local.learning_rate=1e-3,1e-3", "there twice"),
        ("server.seed=1,2", "one for all"),
        ("data.holdout=.1,.2", "one for all"),
        ("local.learning_rte=1,2", "learning_rte"),
        ("local.learning_rate=-1,2", "learning_rate"),
    ],
)
def test_a_grid_that_is_none_is_refused_in_one_line(race: Race, tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why) as e:
        race(tmp_path / "out", "fedit", grid=[text])
    assert "\n" not in str(e.value)
    assert not (tmp_path / "out").exists()


def test_settings_are_all_combinations_of_what_a_contender_does_not_say() -> None:
    of = grid.parsed(["local.learning_rate=1e-3,3e-3", "local.steps=5,10"])
    assert len(grid.settings(of, contender("fedit"))) == 4
    own = Contender("own", ("strategy.name=fedit", "local.steps=7"))
    assert grid.settings(of, own) == [("local.learning_rate=1e-3",), ("local.learning_rate=3e-3",)]


@pytest.mark.parametrize(("budget", "notes"), [(None, 1), ("steps=4", 0)])
def test_more_steps_in_as_many_rounds_are_said_to_be_more_training(
    race: Race, tmp_path: Path, made_up: list[Task], budget: str | None, notes: int
) -> None:
    said: list[str] = []

    def observe(kind: str, info: Any) -> None:
        if kind == "note":
            said.append(info["text"])

    race(tmp_path, "fedit", observe=observe, grid=["local.steps=1,2"], budget=budget)
    assert len(said) == notes


def test_a_budget_of_seconds_has_the_machine_to_itself(race: Race, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--jobs 2: fedit has a budget of seconds"):
        race(tmp_path / "out", "fedit", budget="seconds=5", jobs=2)
    assert not (tmp_path / "out").exists()


def numbers(out: Path) -> dict[str, Any]:
    """All of race.json that no clock has measured."""

    def timeless(of: Any) -> Any:
        if isinstance(of, dict):
            return {k: timeless(v) for k, v in of.items() if k not in ("seconds", "work", "jobs")}
        return [timeless(v) for v in of] if isinstance(of, list) else of

    return dict(timeless(json.loads((out / races.TABLE).read_text())))


@pytest.mark.slow
def test_runs_side_by_side_are_the_same_bit_for_bit(race: Race, tmp_path: Path) -> None:
    names = ("fedit", "local")
    one = race(tmp_path / "one", *names, jobs=1)
    two = race(tmp_path / "two", *names, jobs=2)
    assert numbers(tmp_path / "one") == numbers(tmp_path / "two")
    assert [r["jobs"] for of in two["results"].values() for r in of] == [2] * 2
    assert "up to 2 runs side by side" in two["about"]["seconds"]
    assert "seconds" not in one["about"]
    states = [sorted((tmp_path / n).rglob("gen-*/state.safetensors")) for n in ("one", "two")]
    assert [p.read_bytes() for p in states[0]] == [p.read_bytes() for p in states[1]]


@pytest.mark.slow
def test_a_process_that_is_killed_stops_its_run_alone(
    race: Race, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others have rows, and the same command goes on with the one."""
    killed: list[str] = []
    real = side_by_side._Crew._give

    def give(crew: Any, task: Task) -> None:
        real(crew, task)
        if task.label == "fedit" and not killed:
            killed.append(task.label)
            next(p for p, of in crew._at_work.values() if of is task).kill()

    monkeypatch.setattr(side_by_side._Crew, "_give", give)
    done = race(tmp_path, "fedit", "local", jobs=2)
    assert [r["method"] for r in done["rows"]] == ["local"]
    assert done["stopped"]["fedit"] == "seed 0: its process ended with exit code -9"
    assert [r["method"] for r in race(tmp_path, "fedit", "local")["rows"]] == ["fedit", "local"]


def test_of_a_trial_that_may_yet_end_nothing_is_chosen() -> None:
    settings = [("a.b=1",), ("a.b=2",)]
    found = tuning.outcome(settings, {"a.b=1": {"after": 1.0}, "a.b=2": Stopped("no room on the disk")})
    assert found.why_stopped == "a.b=2: no room on the disk"
    assert tuning.outcome(settings, {"a.b=1": {"after": 1.0}, "a.b=2": Stopped("nan", for_good=True)}).why_stopped == ""
