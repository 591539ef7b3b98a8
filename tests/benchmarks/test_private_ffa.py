"""The FFA-LoRA paper's comparison at its smallest: every run is done once, lines survive a kill, and the table."""

import json
from pathlib import Path

import pytest

from fedft.benchmarks import private_ffa
from fedft.benchmarks.private_ffa import EPSILONS, METHODS, SEEDS, Place, Run


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """The runs that are done, each with made-up figures that are the better the smaller its rate and its clip."""
    done: list[Run] = []

    def ended(run: Run, place: Place) -> dict[str, object]:
        done.append(run)
        return {**private_ffa.asdict(run), "loss": run.rate + run.clip, "accuracy": -run.rate - run.clip}

    monkeypatch.setattr(private_ffa, "_ended", ended)
    return done


def test_a_kill_loses_no_run_that_has_ended_and_repeats_none(counted: list[Run], tmp_path: Path) -> None:
    out, place = tmp_path / "out.jsonl", Place(tmp_path, None)
    whole = private_ffa.measure(place, out)
    per_task = len(METHODS) * (4 + len(EPSILONS) * len(SEEDS))
    assert len(counted) == len(set(counted)) == len(whole) == 2 * per_task
    text = out.read_text()
    out.write_text(text[: len(text) // 2])  # in the middle of a line
    counted.clear()
    left = len(private_ffa.found(out))
    assert private_ffa.measure(place, out) == whole
    assert (len(counted), out.read_text()) == (len(whole) - left, text)


def test_rate_and_clip_are_chosen_on_seed_0_with_equal_trials_and_then_stand(
    counted: list[Run], tmp_path: Path
) -> None:
    private_ffa.measure(Place(tmp_path, None), tmp_path / "out.jsonl")
    for method in METHODS:
        own = [run for run in counted if (run.method, run.task) == (method, "e2e")]
        trials = [run for run in own if run.choosing]
        assert [(run.seed, run.epsilon) for run in trials] == [(0, 3.0)] * 4
        best = min(trials, key=lambda run: run.rate + run.clip)
        after = {(run.rate, run.clip) for run in own if not run.choosing}
        assert after == {(best.rate, best.clip)}
        assert {run.seed for run in own if not run.choosing} == set(SEEDS)


@pytest.mark.parametrize(("method", "task"), [("fedit", "trec"), ("ffa_lora", "e2e"), ("fedkseed", "trec")])
def test_each_method_runs_on_each_task_and_says_what_it_spent(method: str, task: str, tmp_path: Path) -> None:
    line = private_ffa._ended(Run(task, method, 6.0, 1e-3, 1.0, 1), Place(tmp_path, None))
    assert 0 < line["spent"] <= 6
    assert line["loss"] > 0
    assert 0 <= line["accuracy"] <= 1


def test_trials_are_measured_on_rows_that_none_of_them_trains_on(tmp_path: Path) -> None:
    train, held = private_ffa._rows("trec", Place(tmp_path, None), choosing=True)
    every, test = private_ffa._rows("trec", Place(tmp_path, None), choosing=False)
    texts = {path: path.read_text().splitlines() for path in (train, held, every, test)}
    assert sorted(texts[train] + texts[held]) == sorted(texts[every])
    assert texts[held]
    assert not set(texts[train]) & set(texts[held])


def test_the_command_writes_lines_and_prints_the_table(
    counted: list[Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    private_ffa.main([str(out := tmp_path / "out.jsonl"), "--tiny"])
    assert len(private_ffa.found(out)) == len(counted)
    assert capsys.readouterr().out.count("±") == len(METHODS) * len(EPSILONS) * 2
    with pytest.raises(SystemExit):
        private_ffa.main([str(out)])


def test_the_table_has_mean_and_spread_over_seeds() -> None:
    def line(seed: int, accuracy: float | None) -> dict[str, object]:
        run = Run("trec", "fedit", 3.0, 1e-2, 1.0, seed)
        return {**private_ffa.asdict(run), "accuracy": accuracy, "loss": 1.0}

    made = private_ffa.table([line(1, 0.5), line(2, 0.7), line(3, None)])
    cells = [list(column.cells) for column in made.columns]
    assert cells[5][0] == "0.600 ± 0.100"
    assert json.dumps([column[1] for column in cells[3:]]) == json.dumps(["–"] * 4, ensure_ascii=True)
