"""A run that keeps its best state, stops when none better comes, and writes behind fixed prompts."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import fedft
from fedft import run_file
from fedft.cli import main
from fedft.errors import ConfigError
from fedft.reports import html_report
from fedft.server.checkpoint import Store
from fedft.server.kept_generations import kept
from fedft.simulations import run as runs

PROMPTS = ["def add(a, b):", "Return the <sum> of"]
SETS = [
    "data.clients=2", "clients.rank=2", "local.steps=1", "local.batch_size=2", "server.loggers=[]", "eval.max_rows=1",
    "eval.exactness=false", "eval.generate_tokens=3", "server.rounds=5", "strategy.name=fedit",
]  # fmt: skip
RISING = [*SETS, "local.learning_rate=0.02", "local.learning_rate_decay=8.0", "server.rounds=9"]
"""A rate that grows until the loss does."""
KEEPS = [*RISING, "server.patience=4", f"eval.prompts={json.dumps(PROMPTS)}"]


def of(folder: Path) -> dict[str, bytes]:
    """What must be the same however often the run was killed: the best model, the texts, what is said of both."""
    best = json.dumps(json.loads((folder / "summary.json").read_text())["best"]).encode()
    files = {p.name: p.read_bytes() for p in sorted((folder / "model-best").iterdir())}
    return {**files, "texts": (folder / "generations.jsonl").read_bytes(), "best": best}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    runs.simulate(run_file.load(runs.QUICKSTART, KEEPS), out=folder)
    return folder


def test_the_run_ends_behind_its_best_state_and_leaves_its_model(whole: Path) -> None:
    summary = json.loads((whole / "summary.json").read_text())
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines]
    best = losses.index(min(losses))
    assert summary["ended"] == "patience"
    assert summary["rounds"] == lines[-1]["version"] == best + 4 < 9
    assert best > 0
    assert not kept(best, summary["rounds"]), "a state that would be there in any case"
    assert summary["best"] == {"metric": "loss", "round": best, "value": min(losses), "model": "model-best"}
    stored = Store(whole / "state").state(best)
    assert stored is not None
    assert stored.digest == lines[best]["state_digest"]


def test_the_text_of_every_prompt_and_evaluation_is_there(whole: Path) -> None:
    found = [json.loads(line) for line in (whole / "generations.jsonl").read_text().splitlines()]
    versions = range(json.loads((whole / "summary.json").read_text())["rounds"] + 1)
    assert [(one["round"], one["prompt"]) for one in found] == [(v, p) for v in versions for p in PROMPTS]
    assert len({one["text"] for one in found}) > 1, "a model that diverges writes something else"


def test_the_best_model_says_what_all_rounds_have_cost_of_privacy(tmp_path: Path) -> None:
    """It was chosen by the lines of all of them, though noise has made none better than the first."""
    noise = ["privacy.mode=central-dp", "privacy.clip=1.0", "privacy.noise_multiplier=500.0", "privacy.delta=1e-3"]
    sets = [*SETS, *noise, "strategy.name=ffa_lora", "server.rounds=2", "eval.best=loss"]
    run = runs.simulate(run_file.load(runs.QUICKSTART, sets), out=tmp_path / "run")
    assert run.summary["best"]["round"] == 0
    assert run.summary["epsilon"] > run.lines[0].get("epsilon", 0.0)
    assert run.best is not None
    assert json.loads((run.best / "base.json").read_text())["epsilon"] == run.summary["epsilon"]


class Killed(BaseException):
    pass


@pytest.mark.parametrize("at", [("line", 1), ("line", 5), ("measured", 2), ("asking", 4)])
def test_a_run_that_was_killed_leaves_the_same_bytes(whole: Path, tmp_path: Path, at: tuple[str, int]) -> None:
    config, folder = run_file.load(runs.QUICKSTART, KEEPS), tmp_path / "run"

    def kill(kind: str, info: Mapping[str, Any]) -> None:
        if (kind, info.get("version", info.get("round"))) == at:
            raise Killed

    with pytest.raises(Killed):
        runs.simulate(config, out=folder, observe=kill)
    if at[0] == "measured":  # torn in the middle of a line
        with (folder / "generations.jsonl").open("a") as file:
            file.write('{"prompt": "de')
    runs.simulate(config, out=folder, resume=True)
    assert of(folder) == of(whole)


@pytest.mark.parametrize("strategy", ["fedit", "flora", "fedkseed"])
def test_neither_prompts_nor_the_best_state_change_the_run(tmp_path: Path, strategy: str) -> None:
    sets = [*SETS, "server.rounds=2", f"strategy.name={strategy}"]
    kept = [*sets, "eval.best=accuracy", f"eval.prompts={json.dumps(PROMPTS[:1])}"]
    plain, more = (
        runs.simulate(run_file.load(runs.QUICKSTART, said), out=tmp_path / name)
        for name, said in (("plain", sets), ("more", kept))
    )
    assert [one["state_digest"] for one in plain.lines] == [one["state_digest"] for one in more.lines]
    assert "best" not in plain.summary
    assert not (plain.folder / "generations.jsonl").exists()
    assert (more.folder / "model-best").is_dir()
    if more.summary["best"]["round"] == more.summary["rounds"]:
        names = [p.name for p in (more.folder / "model").iterdir() if p.suffix == ".safetensors"]
        assert names
        assert all(
            (more.folder / "model" / n).read_bytes() == (more.folder / "model-best" / n).read_bytes() for n in names
        )


def test_eval_and_the_page_show_the_texts(whole: Path, tmp_path: Path) -> None:
    last = [json.loads(line) for line in (whole / "generations.jsonl").read_text().splitlines()][-2:]
    done = CliRunner().invoke(main.app, ["eval", str(whole), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["generations"] == {one["prompt"]: one["text"] for one in last}
    html_report.write([whole], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "What the model writes" in page
    assert "&lt;sum&gt;" in page
    assert "<sum>" not in page


def test_a_best_state_that_was_not_kept_is_said(whole: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "run"
    rising = [*RISING, f"server.rounds={json.loads((whole / 'summary.json').read_text())['rounds']}"]
    runs.simulate(run_file.load(runs.QUICKSTART, rising), out=folder)
    said = run_file.load(runs.QUICKSTART, [*rising, "eval.best=loss"])
    done = runs.simulate(said, out=folder, resume=True)
    assert done.summary["best"]["model"] is None
    assert not (folder / "model-best").exists()
    assert any("not kept at the time" in said for said in caplog.messages)


def test_a_model_that_no_gate_has_judged_is_not_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sets = [*SETS, "server.rounds=1", "eval.best=loss", "audit.gate=['auc=1.0']", "eval.max_rows=2"]
    done = runs.simulate(run_file.load(runs.QUICKSTART, sets), out=tmp_path / "run")
    assert done.model.is_dir()
    assert done.best is None
    assert not (tmp_path / "run" / "model-best").exists()
    assert any("gate judges the last model only" in said for said in caplog.messages)


def test_a_finished_run_is_loaded_from_its_folder(whole: Path, tmp_path: Path) -> None:
    run = fedft.load(whole)
    assert run.best == whole / "model-best"
    assert run.lines[-1]["version"] == run.summary["rounds"]
    with pytest.raises(ConfigError, match="no finished run"):
        fedft.load(tmp_path)


def test_prompts_of_a_model_that_writes_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\[eval\] prompts.*generates no text"):
        run_file.load(
            runs.QUICKSTART, ["model.task=sequence-classification", "model.labels=['a', 'b']", "eval.prompts=['x']"]
        )
    with pytest.raises(ConfigError, match=r"\[eval\] prompts.*not empty"):
        run_file.load(runs.QUICKSTART, ["eval.prompts=['']"])
