"""The page: it stands alone, escapes what others wrote, says the same twice, and does without matplotlib."""

import base64
import math
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from made_up_runs import compared, lines, of

from fedft.reports import comparison, html_report, page_style, plots, race_figures
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


def luminance(colour: str) -> float:
    """Relative luminance of "#rgb" or "#rrggbb", as WCAG 2 has it."""
    digits = colour[1:] if len(colour) == 7 else "".join(2 * d for d in colour[1:])
    parts = [int(digits[n : n + 2], 16) / 255 for n in (0, 2, 4)]
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
    return sum(w * x for w, x in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(a: str, b: str) -> float:
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def test_all_text_is_dark_enough_and_no_letter_is_thin() -> None:
    looks = [dict(re.findall(r"--(\w+): (#\w+)", block)) for block in re.findall(r":root \{[^}]*\}", page_style.STYLE)]
    assert len(looks) == 3  # light, dark, print
    for look in looks:
        assert all(contrast(look[ink], look["paper"]) >= 4.5 for ink in ("ink", "quiet"))
    weights = [int(n) for n in re.findall(r"font(?:-weight)?: (\d{3})\b", page_style.STYLE)]
    assert min(weights) == 400
    for name in ("axes.labelcolor", "xtick.color", "ytick.color"):
        assert contrast(plots.SETTINGS[name], "#fff") >= 4.5


def test_a_reader_picks_what_the_loss_is_drawn_over_and_sees_all_without_that() -> None:
    page = html_report.page(comparison.compare({}, {"fedit": of(lines())}, watts=65.0))
    names = re.findall(r'<input type="radio" name="x" id="x-(\w+)"', page)
    assert names == ["round", "bytes", "time", "energy"]
    assert page.count(" checked>") == 1
    assert all(f"<figure class=x-{name}>" in page and f"#x-{name}:checked) .x-{name}" in page for name in names)
    hiding = page_style.STYLE.index(".pick figure { display: none")
    assert page_style.STYLE[:hiding].rstrip().endswith("@supports selector(:has(a)) { @media screen {")
    assert "65 W that are assumed, not measured" in page


def test_what_an_axis_leaves_out_is_said_under_it() -> None:
    wild = lines(traffic=1000, error=0.0)
    wild[2]["loss"] = 50.0
    done = comparison.compare({}, {"fedit": of(lines(error=0.1)), "wild": of(wild), "local": of(lines(traffic=0))})
    notes = {name: figure.note for name, figure in race_figures.of_loss(done).items()}
    assert notes["round"] == "The axis ends at 3.491; points of curves above it: 1."
    assert "local sent nothing" in notes["bytes"]
    assert "logarithmic" in notes["bytes"]
    (error,) = [f for f in race_figures.others(done) if "error" in f.caption]
    assert error.note == "Errors below 1e-9 are drawn there."
    assert "The axis ends at 3.491" in html_report.page(done)


def test_names_of_clients_and_settings_are_text() -> None:
    def measured(loss: float) -> list[dict[str, Any]]:
        found = of(lines(loss))
        return [{**r, "clients": {EVIL: loss + s}} for s, r in enumerate(found)]

    trial = {"chosen": EVIL, "trials": 2, "losses": {EVIL: 1.0}, "stopped": {EVIL: EVIL}}
    tuning = {"grid": {EVIL: [EVIL]}, "seed": 1, "rows": EVIL, "contenders": {EVIL: trial}}
    done = comparison.compare({}, {EVIL: measured(0.1), "local": measured(0.2)}, tuning=tuning)
    page = html_report.page(done)
    assert len(done["clients"]) == 1
    assert "Client by client" in page
    assert "Tuned settings" in page
    assert "on everybody&#x27;s rows" in page
    assert "script" not in Tags(page).tags
    assert all("<script" not in svg for svg in images(page))
