"""The page: it stands alone, escapes what others wrote, says the same twice, and does without matplotlib."""

import base64
import json
import math
import re
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from fedft import run_file
from fedft.cli import main
from fedft.errors import ConfigError
from fedft.reports import html_report, plots, tally
from fedft.reports.terminal import RaceProgress

EVIL = "<script>alert('x')</script>&\"$x_1$ ünï"


def lines(offset: float = 0.0, *, rounds: int = 4, traffic: int = 1000, error: float | None = None) -> list[Any]:
    """The lines of a run whose loss falls from 3 towards 1."""
    found: list[Any] = []
    for v in range(rounds + 1):
        line = {"version": v, "seconds": {"evaluate": 7.0}, "loss": 1 + 2 * math.exp(-v) + offset, "accuracy": v / 10}
        if v:
            line |= {"round": v - 1, "seconds": {"train": 1.5, "aggregate": 0.5, "evaluate": 7.0}}
        if v and traffic:
            line |= {"bytes": {"a": {}, "b": {}}, "training_bytes": {"up": traffic, "down": 3 * traffic}}
        if v and error is not None:
            line["aggregation_error"] = error
        found.append(line)
    return found


def of(*all_lines: list[Any]) -> list[dict[str, Any]]:
    return [r for x in all_lines if (r := tally.result(x, 10))]


def compared(*labels: str) -> dict[str, Any]:
    methods = {
        label: of(*(lines(0.1 * i + 0.01 * s, traffic=1000 * 2**i, error=0.1**i) for s in range(2)))
        for i, label in enumerate(labels)
    }
    baselines = {name: of(*(lines(0.02 * s, traffic=0) for s in range(2))) for name in ("local", "central")}
    return tally.comparison({"model": "m", "budget": "none"}, methods | baselines)


class Tags(HTMLParser):
    """The tags of a page, with all that could load or run something."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [v or "" for k, v in attrs if k in ("src", "href", "srcset", "data") or k.startswith("on")]


def images(page: str) -> list[str]:
    return [base64.b64decode(found).decode() for found in re.findall(r"data:image/svg\+xml;base64,([\w+/=]+)", page)]


def test_a_result_says_what_was_reached_and_what_it_took() -> None:
    (r,) = of(lines(error=0.25))
    assert (r["before"], r["after"], r["accuracy"]) == (3.0, pytest.approx(1 + 2 * math.exp(-4)), 0.4)
    assert (r["up"], r["down"], r["bytes"]) == (500, 1500, 16000)
    assert (r["rounds"], r["steps"], r["seconds"], r["error"]) == (4, 40, 8.0, 0.25)
    assert [p["bytes"] for p in r["curve"]] == [0, 4000, 8000, 12000, 16000]
    assert [p["aggregation_error"] for p in r["curve"]] == [None, 0.25, 0.25, 0.25, 0.25]


def test_a_row_is_the_mean_over_seeds_and_its_spread() -> None:
    row = tally.row("m", of(lines(0.0), lines(0.2)))
    assert row["after"] == pytest.approx(1.1 + 2 * math.exp(-4))
    assert row["after_sd"] == pytest.approx(0.2 / math.sqrt(2))
    assert row["gain_sd"] == pytest.approx(0.0)
    assert (row["seeds"], row["error"]) == (2, None)


def test_nothing_measured_is_no_result() -> None:
    bare = [{k: v for k, v in line.items() if k != "loss"} for line in lines()]
    assert tally.result(bare, 10) is None
    assert tally.result([], 10) is None


def test_a_curve_has_the_states_that_every_seed_has() -> None:
    long, short = of(lines(0.0, rounds=6), lines(0.4, rounds=3))
    assert plots.series([long["curve"], short["curve"]], "version", "loss") == [
        (v, pytest.approx(1.2 + 2 * math.exp(-v)), pytest.approx(0.4 / math.sqrt(2))) for v in range(4)
    ]


def test_the_page_stands_alone() -> None:
    page = html_report.page(compared("fedit", "flora"))
    found = Tags(page)
    assert all(source.startswith("data:image/svg+xml;base64,") for source in found.loads)
    assert not {"script", "link", "iframe", "object"} & set(found.tags)
    assert found.tags.count("figure") == 6
    assert "url(" not in page
    assert all("<script" not in svg for svg in images(page))


def test_the_same_results_make_the_same_page() -> None:
    assert html_report.page(compared("fedit", "flora")) == html_report.page(compared("fedit", "flora"))


def test_what_others_wrote_is_text() -> None:
    of_evil = compared(EVIL, "_hidden")
    of_evil["about"] = {EVIL: EVIL, "contenders": {EVIL: [EVIL]}}
    page = html_report.page(of_evil)
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "script" not in Tags(page).tags


def test_every_one_of_fifteen_methods_looks_its_own_way() -> None:
    labels = [f"m{i}" for i in range(13)]
    page = html_report.page(compared(*labels))
    assert len(set(plots.styles([*labels, "local", "central"]).values())) == 15
    assert all(f">{label}</li>" in page.replace("\n", "") for label in (*labels, "local", "central"))
    assert len(set(images(page))) == 15 + 6


def test_without_matplotlib_the_table_is_there_and_says_how_to_get_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "available", lambda: False)
    page = html_report.page(compared("fedit"))
    assert "pip install &quot;fedft[report]&quot;" in page
    assert "<td" in page
    assert not images(page)


def test_an_unknown_error_of_aggregation_is_no_plot_and_no_column() -> None:
    page = html_report.page(tally.comparison({}, {"mezo": of(lines())}))
    assert len(images(page)) == 1 + 5
    assert "aggregation error<" not in page


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
        html_report.gather([tmp_path])
    assert "\n" not in str(e.value)


def test_off_a_terminal_each_run_of_a_race_is_a_plain_line(capsys: pytest.CaptureFixture[str]) -> None:
    (result,) = of(lines())
    with RaceProgress() as progress:
        progress.observe("run", {"contender": "flora", "seed": 0, "number": 1, "of": 2})
        progress.observe("preparing", {})
        progress.observe("step", {"share": 0.5, "note": "round 1/2", "version": 1})
        progress.observe("ran", {"contender": "flora", "seed": 0, "result": result})
    out, err = capsys.readouterr()
    assert not out
    assert err.splitlines() == [
        "[1/2] flora, seed 0",
        "[1/2] flora, seed 0: loss 3.0000 -> 1.0366, 4 rounds, 16.0 kB, 8.0 s",
    ]


def test_on_a_narrow_terminal_the_table_leaves_columns_out_and_says_which(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from fedft.reports.terminal import table

    rows = compared("fedit", "flora")["rows"]
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("COLUMNS", "80")
    table(tally.readable(rows), tally.shown_columns(rows), tally.spare_columns(rows))
    narrow = capsys.readouterr().out
    assert "left out, for the width of the terminal: before" in narrow
    assert "1.037 ± 0.007" in narrow or "1.042 ± 0.007" in narrow
    assert "…" not in narrow


def test_one_method_alone_is_drawn_without_a_warning() -> None:
    """On a logarithmic axis one point has no width of its own."""
    curve = [
        {
            "version": v,
            "loss": 2.0 - v,
            "accuracy": 0.1,
            "aggregation_error": None,
            "bytes": n,
            "steps": v,
            "seconds": v,
        }
        for v, n in ((0, 0), (1, 10**9))
    ]
    rows = [{"method": "fedavg", "after": 1.0, "bytes": 10**9}]
    assert len(plots.figures({"curves": {"fedavg": [curve]}, "rows": rows})) == 5
