"""Metrics are an open mapping: declared ones look as declared, others are shown all the same, and none can do harm."""

from typing import Any

import pytest

from fedft.reports import columns, comparison, run_result
from fedft.reports.columns import Column
from fedft.reports.terminal import Progress
from fedft.training.metrics.loss import ACCURACY, LOSS

LINE = {"version": 0, "loss": 2.0, "accuracy": 0.5, "bytes_up": 7, "bytes_down": 8, "seconds": {}, "refused": []}


def test_what_nobody_declared_is_averaged_over_those_who_report_it() -> None:
    found = [{"loss": 1.0, "bleu": 3.0}, {"loss": 2.0}, {"loss": 6.0, "bleu": 5.0}]
    assert columns.averaged(found) == {"loss": 3.0, "bleu": 4.0}


def test_no_metric_is_called_like_a_fact_of_a_line() -> None:
    """Whatever a line holds already: a client must not write over it."""
    odd = dict.fromkeys((*LINE, "round", "train_loss", "count", "loss_sd"), 1.0)
    assert columns.averaged([odd]) == {"loss": 1.0, "accuracy": 1.0}


def test_a_client_that_invents_metrics_pushes_out_none_that_others_report() -> None:
    flood = {f"a{i:03}": 1.0 for i in range(1000)}
    found = columns.averaged([{"loss": 1.0, "zeal": 1.0}, {"loss": 1.0, "zeal": 3.0, **flood}])
    assert (found["loss"], found["zeal"]) == (1.0, 2.0)
    assert len(found) == 1 + columns.MAX_UNDECLARED


def test_declared_metrics_come_first_and_numbers_only() -> None:
    line = {**LINE, "a_first": 1, "text": "x", "flag": True, "lost": float("nan")}
    assert columns.measured(line) == ["loss", "accuracy", "a_first"]


def test_a_column_looks_as_declared_as_a_file_says_or_plain() -> None:
    assert (LOSS.text(3.30281), LOSS.short(3.30281), LOSS.text(None)) == ("3.3028", "3.303", "-")
    said = columns.fields(["f1"], {"f1": {"heading": "F1", "unit": "%", "better": "higher", "form": ".1%"}})
    assert columns.of("f1", said) == Column("f1", "F1", "%", "higher", ".1%")
    assert columns.of("f1", said).text(0.256) == "25.6%"
    assert columns.of("f1").text(0.25) == "0.25"


@pytest.mark.parametrize(
    "said", [{"f1": 7}, {"f1": {"heading": ""}}, {"f1": {"heading": "x", "form": ">9999999"}}, {"f1": {"odd": 1}}, {}]
)
def test_a_file_that_says_nonsense_of_a_column_is_passed_over(said: dict[str, Any]) -> None:
    assert columns.of("f1", said) == Column("f1", "f1", form=".4g")


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "seconds"},
        {"name": "Loss"},
        {"name": "x" * 65},
        {"name": "f1_sd"},
        {"heading": "\x1b[2J"},
        {"better": "up"},
        {"form": "d"},
        {"form": ">99"},
    ],
)
def test_a_column_that_could_not_be_written_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="metric"):
        Column(**{"name": "f1", "heading": "F1", **fields})


def test_two_metrics_cannot_share_a_name() -> None:
    columns.declare(Column("loss", "loss", better="lower"))  # the same again is the same
    with pytest.raises(ValueError, match="'loss' is declared twice"):
        columns.declare(Column("loss", "my loss"))
    assert columns.of("loss") == LOSS


def test_the_terminal_shows_a_metric_from_when_it_occurs(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(quiet=False, rounds=2) as progress:
        progress.observe("line", LINE)
        progress.observe("line", {**LINE, "version": 1, "bleu_of_it": 12.3456789})
        progress.observe("line", {**LINE, "version": 2})
        progress.observe("ended", {})
    rows = capsys.readouterr().out.splitlines()
    assert [row.split()[:3] for row in rows] == [
        ["round", "loss", "accuracy"],
        ["0/2", "2.0000", "0.5000"],
        ["round", "loss", "accuracy"],
        ["1/2", "2.0000", "0.5000"],
        ["2/2", "2.0000", "0.5000"],
    ]
    assert "bleu_of_it" not in rows[0]
    assert [row.split()[3] for row in rows[2:]] == ["bleu_of_it", "12.35", "-"]
    assert len({len(row) for row in rows[2:]}) == 1


def test_the_table_of_a_race_has_every_metric_with_its_spread() -> None:
    def result(f1: float) -> dict[str, Any]:
        first, last = {**LINE, "f1": 0.0}, {**LINE, "version": 1, "round": 0, "loss": 1.0, "f1": f1}
        found = run_result.result([first, last], 10)
        assert found
        return found

    done = comparison.compare({}, {"m": [result(0.25), result(0.75)]}, said={"f1": {"heading": "F1", "form": ".2%"}})
    assert done["columns"]["f1"]["heading"] == "F1"
    (cells,) = comparison.readable(done)
    assert cells["f1"] == "50.0% ± 35.4%"
    assert comparison.shown_columns(done["rows"])[4:6] == [ACCURACY.name, "f1"]
    assert [p["f1"] for p in done["curves"]["m"][0]] == [0.0, 0.25]


def test_what_was_spent_of_privacy_is_shown_behind_the_metrics_and_no_client_can_say_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = {**LINE, "epsilon": 1.234567, "delta": 1e-3, "rounds_left": 7, "zeta": 0.5}
    assert columns.measured(line)[-2:] == ["zeta", "epsilon"]
    assert not {"delta", "rounds_left"} & {*columns.measured(line)}
    assert columns.averaged([{"loss": 1.0, "epsilon": 0.0, "delta": 0.0, "rounds_left": 99.0}]) == {"loss": 1.0}
    with pytest.raises(ValueError, match="'epsilon' is declared twice"):
        columns.declare(Column("epsilon", "mine"))
    with Progress(quiet=False, rounds=2) as progress:
        progress.observe("line", {**LINE, "epsilon": 1.234567})
        progress.observe("line", {**LINE, "version": 1, "epsilon": None, "epsilon_why": "seeded noise"})
    rows = [row.split() for row in capsys.readouterr().out.splitlines()]
    assert rows[0][3] == "epsilon"
    assert [row[3] for row in rows[1:]] == ["1.23", "-"]
