"""Folders of finished runs and races, read back as one comparison."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tomli_w
from made_up_runs import compared, lines

from fedft import run_file
from fedft.cli import main
from fedft.errors import ConfigError
from fedft.reports import finished_runs, html_report
from fedft.simulations.python_run import Run


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Path]:
    """What `report` reads of a finished run, under the name and with the settings given."""

    def done(name: str, *overrides: str) -> Path:
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        (folder / "config.toml").write_text(tomli_w.dumps(run_file.load(None, overrides).to_dict()))
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines()))
        (folder / "summary.json").write_text("{}")
        return folder

    return done


def test_runs_that_differ_in_the_seed_alone_are_one_method(run: Callable[..., Path], tmp_path: Path) -> None:
    folders = [run("a", "strategy.name=fedit"), run("b", "strategy.name=fedit", "server.seed=1"), run("c")]
    folders.append(run("d", "strategy.name=fedit", "local.steps=2"))
    found = html_report.write(folders, tmp_path / "page.html")
    assert [(r["method"], r["seeds"]) for r in found["rows"]] == [("fedit", 2), ("flora", 1), ("fedit (d)", 1)]
    assert "fedit (d)" in (tmp_path / "page.html").read_text()


def test_the_command_writes_the_page_into_the_folder_and_reads_races_too(
    run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    race = tmp_path / "race"
    race.mkdir()
    (race / "race.json").write_text(json.dumps(compared("fedit", "scaffold")))
    for args, file in (
        ([str(race)], race / "report.html"),
        ([str(race), str(run("a", "strategy.name=fedit")), "--to", "x.html"], tmp_path / "x.html"),
    ):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["fedft", "report", *args])
        with pytest.raises(SystemExit) as e:
            main.main()
        assert not e.value.code
        assert "scaffold" in file.read_text()
        assert file.name in capsys.readouterr().out
    assert "fedit (a)" in (tmp_path / "x.html").read_text()


@pytest.mark.parametrize(
    ("there", "why"),
    [
        ({}, "neither a run"),
        ({"config.toml": ""}, "is not finished"),
        ({"config.toml": "", "summary.json": "{}"}, "metrics.jsonl: cannot be read"),
        ({"config.toml": "", "summary.json": "{}", "metrics.jsonl": ""}, r"see \[data\] holdout"),
        ({"race.json": "[]"}, "no race of this version"),
        ({"race.json": '{"version": 2}'}, "no race of this version"),
        ({"race.json": "{"}, "no race of this version"),
        ({"race.json": '{"version": 1, "about": {}, "results": {}, "curves": {"a": []}}'}, "no race of this version"),
    ],
)
def test_a_folder_that_says_nothing_is_refused_in_one_line(tmp_path: Path, there: dict[str, str], why: str) -> None:
    for name, text in there.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=why) as e:
        finished_runs.gather([tmp_path])
    assert "\n" not in str(e.value)


def test_runs_of_several_seeds_are_paired_in_python_too(run: Callable[..., Path]) -> None:
    names = [(name, seed) for name in ("fedit", "flora") for seed in (0, 1, 2)]
    made = [run(f"{name}-{seed}", f"strategy.name={name}", f"server.seed={seed}") for name, seed in names]
    first, *others = (Run(folder, {}, []) for folder in made)
    frame = first.compare(*others, against="fedit").set_index("method")
    assert frame.loc["flora", "difference_mean"] == 0
    assert frame.loc["flora", "difference_n"] == 3
    assert frame.loc["flora", "difference_low"] == frame.loc["flora", "difference_high"] == 0
    assert frame["difference_n"].isna()["fedit"]
