"""The header of a run as a person sees it."""

from typing import Any

import pytest

from fedft.reports import run_header
from fedft.reports.terminal import Progress

FACTS: dict[str, Any] = {
    "model": "stdlib-base", "device": "cpu", "dtype": "float32", "parameters": 935_040, "trainable": 315_392,
    "strategy": "flora", "adapter": "lora", "ranks": [8, 16, 32], "steps": 16, "rounds": 5, "clients": 4, "asked": 4,
    "measured": 4, "train_rows": 802, "held_out_rows": 200, "cut": 82, "left_out": 0, "max_length": 96, "every": 1,
    "budget": None, "bytes_up": 2_400_000, "bytes_down": 9_500_000, "disk": 62_000_000,
}  # fmt: skip
MANY = {"clients": 1000, "asked": 10, "measured": 1000, "model": "/a/long/way/to/some/model/" * 3, "left_out": 12_345}
LINE: dict[str, Any] = {
    "version": 1, "round": 0, "seconds": {"train": 30.0, "evaluate": 10.0}, "bytes_up": 0, "bytes_down": 0,
}  # fmt: skip


def test_the_header_of_the_quickstart() -> None:
    assert run_header.lines(FACTS) == [
        "model    stdlib-base: 935,040 parameters, float32 on cpu",
        "trains   315,392 numbers (33.7 %), lora of ranks 8 to 32, by flora",
        "clients  4, with 802 rows and 200 held out",
        "rows     of at most 96 tokens; 82 cut",
        "a round  16 steps each; about 2.4 MB up, 9.5 MB down; run folder 62.0 MB",
        "loss     of held-out rows, mean over clients: each counts once",
    ]


@pytest.mark.parametrize("more", [{}, MANY, {**MANY, "cut": 0, "left_out": 0, "ranks": []}])
def test_it_is_six_lines_of_eighty_columns(more: dict[str, Any]) -> None:
    said = run_header.lines({**FACTS, **more})
    assert len(said) == 6
    assert max(map(len, said)) <= 80


def test_bytes_of_a_planned_run_are_said_to_be_of_its_first_round() -> None:
    assert "round 1  16 steps each; about 2.4 MB up, 9.5 MB down; run folder 62.0 MB" in run_header.lines(
        {**FACTS, "planned": True}
    )


def test_memory_is_a_line_where_it_is_foreseen() -> None:
    memory = {"peak": 5e8, "where": "step", "base": 4e6, "activations": 3e7, "logits": 0}
    said = run_header.lines({**FACTS, "memory": memory})
    assert "memory   500.0 MB at most: base 4.0 MB, activations 30.0 MB" in said


def test_how_long_it_will_take_is_said_once_where_it_is_worth_it(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(quiet=False, rounds=5) as progress:
        progress.observe("header", FACTS)
        for version in range(3):
            progress.observe("line", {**{k: v for k, v in LINE.items() if version or k != "round"}, "version": version})
    said = capsys.readouterr().out
    assert said.count("more, for") == 1
    assert "about 3 min more, for 4 rounds of 40 s" in said
    assert not run_header.forecast(FACTS, {**LINE, "seconds": {"train": 2.0}})
    assert not run_header.forecast({**FACTS, "budget": "bytes=2e7"}, LINE)
