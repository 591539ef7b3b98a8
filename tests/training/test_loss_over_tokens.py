"""Loss over clients and over tokens: both are told, under names that say which."""

import json
from pathlib import Path

import pytest

from fedft import run_file
from fedft.reports.terminal import Progress
from fedft.simulations import finished_run
from fedft.simulations import run as runs
from fedft.training.metrics.loss import over_clients


def test_a_client_counts_once_in_the_one_and_by_its_tokens_in_the_other() -> None:
    found = over_clients([{"loss": 1.0, "accuracy": 0.5, "count": 300.0}, {"loss": 2.0, "count": 100.0}])
    assert found == {"loss": 1.5, "accuracy": 0.5, "token_loss": 1.25}


@pytest.mark.parametrize("count", [{}, {"count": 0.0}, {"count": -5.0}, {"count": float("inf")}])
def test_without_every_client_s_number_of_tokens_there_is_none_over_tokens(count: dict[str, float]) -> None:
    """Nor one that a client says in its place."""
    assert over_clients([{"loss": 1.0, "count": 7.0}, {"loss": 2.0, "token_loss": 9.0, **count}]) == {"loss": 1.5}


def test_a_run_says_both_everywhere_and_the_table_which_it_shows(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = [f"model.id='{tiny_base}'", "data.clients=2", "local.steps=1", "server.rounds=1", "server.loggers=[]"]
    config = run_file.load(runs.QUICKSTART, [*sets, "strategy.name=fedit", "eval.max_rows=4"])
    with Progress(quiet=False, rounds=1) as progress:
        done = runs.simulate(config, out=tmp_path / "run", observe=progress.observe)
        progress.finish(done.summary, done.folder)
    by_client, mean = finished_run.evaluate_run(done.folder)
    counts = {c: m["count"] for c, m in by_client.items()}
    assert len({*counts.values()}) == 2
    wanted = sum(counts[c] * by_client[c]["loss"] for c in counts) / sum(counts.values())
    last = json.loads((done.folder / "metrics.jsonl").read_text().splitlines()[-1])
    for said in (last, done.summary["final"], mean):
        assert said["token_loss"] == pytest.approx(wanted)
        assert said["loss"] == pytest.approx(sum(m["loss"] for m in by_client.values()) / 2)
        assert said["loss"] != pytest.approx(said["token_loss"])
    out = capsys.readouterr().out
    assert "loss     of held-out rows, mean over clients" in out
    assert "loss over tokens" in out.partition("fedit: held-out loss")[2]
    assert "loss over tokens" not in out.partition("fedit: held-out loss")[0]
    assert max(map(len, out.partition("run  ")[0].splitlines())) <= 80
