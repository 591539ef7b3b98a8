"""The run files of papers: each loads and makes its recipe, and says the settings that make it the paper's."""

import json
from pathlib import Path

import pytest

from fedft import registry, run_file, strategies
from fedft.config import RunConfig
from fedft.simulations import run as runs

PAPERS = {p.stem: p for p in sorted((runs.QUICKSTART.parent / "papers").glob("*.toml"))}
SMALL = (
    "local.steps=2", "local.batch_size=2", "server.rounds=1", "clients.per_round=2", "data.max_length=96",
    "eval.clients=2", "eval.max_rows=2", "eval.generate_tokens=2",
)  # fmt: skip
FIELDS = ("instruction", "definition", "input", "output", "prompt", "response")


@pytest.fixture
def loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> RunConfig:
    """The run file of a paper, with folders that are empty."""
    monkeypatch.setenv("FEDFT_MODEL", str(tmp_path))
    monkeypatch.setenv("FEDFT_DATA", str(tmp_path))
    return run_file.load(PAPERS[request.param])


every_paper = pytest.mark.parametrize("loaded", PAPERS, indirect=True)


@every_paper
def test_a_paper_s_run_file_makes_its_recipe(loaded: RunConfig) -> None:
    assert strategies.of(loaded).name == loaded.strategy.name


@every_paper
def test_methods_published_with_plain_sgd_are_not_clipped(loaded: RunConfig) -> None:
    local = loaded.local
    assert (local.optimizer == "sgd") == (local.max_grad_norm is None or local.max_grad_norm >= 1e9)


def test_every_method_with_a_paper_has_a_run_file() -> None:
    """But for those that have no settings of their own; `compeft` is of a codec."""
    of = {name.replace("-", "_") for name in PAPERS} - {"compeft"}
    assert of == set(registry.BUILT_IN) - {"fedavg", "zo_fedavg"}


@pytest.mark.parametrize("loaded", ["scaffold"], indirect=True)
def test_scaffold_as_published_is_not_warned_of(loaded: RunConfig, caplog: pytest.LogCaptureFixture) -> None:
    strategies.of(loaded)
    assert not caplog.records


@pytest.mark.slow
@pytest.mark.parametrize("paper", ["fedit", "ferret"])
def test_a_round_of_a_paper_on_a_tiny_base(
    paper: str, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{f: f"{f} {n}" for f in FIELDS} | dict.fromkeys(("client", "task"), f"c{n % 4}") for n in range(40)]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    monkeypatch.setenv("FEDFT_MODEL", str(tiny_base))
    monkeypatch.setenv("FEDFT_DATA", str(data))
    run = runs.simulate(run_file.load(PAPERS[paper], SMALL), out=tmp_path / "run")
    assert run.summary["refused"] == 0
    assert run.summary["final"]["loss"] != run.summary["initial"]["loss"]
