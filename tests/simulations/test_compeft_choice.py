"""Which density and scale of ComPEFT: the least loss on held-out rows of what a finished run learned, coded."""

from pathlib import Path

import pytest

from fedft import run_file
from fedft.compression.compeft import across
from fedft.errors import ConfigError
from fedft.simulations import compeft_choice
from fedft.simulations import run as runs

SMALL = ["data.clients=2", "data.max_length=48", "local.steps=4", "local.batch_size=4", "clients.rank=4"]


def finished(base: Path, to: Path, *more: str) -> runs.Run:
    settings = [f"model.id='{base}'", "eval.max_rows=4", "server.loggers=[]", *SMALL, *more]
    return runs.simulate(run_file.load(runs.QUICKSTART, settings), out=to)


def test_the_pair_of_the_least_loss_is_chosen_and_the_change_as_it_is_has_the_runs(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = finished(tiny_base, tmp_path / "run", "strategy.name=fedit", "server.rounds=2", "local.learning_rate=1e-2")
    scaled = []
    monkeypatch.setattr(
        "fedft.compression.compeft.across", lambda x, q, c: (scaled.append((float(q), c)), across(x, q, c))[1]
    )
    best, rows = compeft_choice.choose(run.folder, (0.05, 0.5), (0.5, 1.0, 10.0))
    assert [row["codec"] for row in rows] == ["fp32", *(f"compeft:{q},{c}" for q in (0.05, 0.5) for c in (0.5, 1, 10))]
    assert set(scaled) == {(q, c) for q in (0.05, 0.5) for c in (0.5, 1.0, 10.0)}
    assert rows[0]["loss"] == pytest.approx(run.summary["final"]["loss"], abs=1e-5)
    assert len({row["loss"] for row in rows}) == len(rows), "no two codecs are the same change"
    assert best == min(rows[1:], key=lambda row: row["loss"])["codec"]
    assert rows[0]["bytes"] > 8 * rows[4]["bytes"] > 8 * rows[1]["bytes"]
    short = compeft_choice.of_each_density(rows)
    assert [row["codec"].partition(",")[0] for row in short] == ["fp32", "compeft:0.05", "compeft:0.5"]
    assert min(short[1:], key=lambda row: row["loss"])["codec"] == best


def test_a_run_whose_clients_send_no_changes_is_refused_by_name(tiny_base: Path, tmp_path: Path) -> None:
    run = finished(tiny_base, tmp_path / "run", "strategy.name=flora", "server.rounds=1")
    with pytest.raises(ConfigError, match="a run of flora, which does not send changes"):
        compeft_choice.choose(run.folder)


def test_what_has_learned_nothing_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    run = finished(tiny_base, tmp_path / "run", "strategy.name=fedit", "server.rounds=1", "local.learning_rate=0")
    with pytest.raises(ConfigError, match="has learned nothing yet"):
        compeft_choice.choose(run.folder)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a run folder"):
        compeft_choice.choose(tmp_path)
