"""The page: it stands alone, escapes what others wrote, says the same twice, and does without matplotlib."""

import base64
import math
import re
from html.parser import HTMLParser

import pytest
from made_up_runs import compared, lines, of

from fedft.reports import comparison, html_report, plots, race_figures
from fedft.reports.race_progress import RaceProgress

EVIL = "<script>alert('x')</script>&\"$x_1$ ünï"


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


def test_a_curve_has_the_states_that_every_seed_has() -> None:
    long, short = of(lines(0.0, rounds=6), lines(0.4, rounds=3))
    assert race_figures.series([long["curve"], short["curve"]], "version", "loss") == [
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
    page = html_report.page(comparison.compare({}, {"mezo": of(lines())}))
    assert len(images(page)) == 1 + 5
    assert "aggregation error<" not in page


def test_off_a_terminal_each_run_of_a_race_is_a_plain_line(capsys: pytest.CaptureFixture[str]) -> None:
    (result,) = of(lines())
    run = {"contender": "flora", "seed": 0, "setting": "", "number": 1}
    with RaceProgress() as progress:
        progress.observe("run", {**run, "of": 2})
        progress.observe("preparing", run)
        progress.observe("step", {**run, "share": 0.5, "note": "round 1/2", "version": 1})
        progress.observe("ran", {**run, "result": result})
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

    done = compared("fedit", "flora")
    rows = done["rows"]
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("COLUMNS", "80")
    table(comparison.readable(done), comparison.shown_columns(rows), comparison.spare_columns(rows))
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
    found = {"curves": {"fedavg": [curve]}, "rows": rows}
    assert len(race_figures.of_loss(found)) + len(race_figures.others(found)) == 5
