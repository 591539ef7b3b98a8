"""Tasks of lm-evaluation-harness on a run's model; they need the harness, but for what is refused without it."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from fedft import run_file
from fedft.cli import main
from fedft.errors import ConfigError
from fedft.simulations import harness_tasks, workplace
from fedft.simulations import run as runs

SETS = [
    "data.clients=2", "clients.rank=2", "local.steps=1", "local.batch_size=2", "server.loggers=[]", "eval.max_rows=1",
    "eval.exactness=false", "server.rounds=1", "strategy.name=fedit", "local.learning_rate=0.1",
]  # fmt: skip
TASK = """
task: two_choices
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: multiple_choice
target_delimiter: ""
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{right}}}}"
doc_to_choice: "{{{{choices}}}}"
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""
ROWS: list[dict[str, Any]] = [
    {"question": "def add(a, b):", "choices": [" return a", " zzzzqqqq"], "right": 0},
    {"question": "Return the sum", "choices": [" xxxxkkkk", " of all"], "right": 1},
    {"question": "Return the", "choices": [" name", " of"], "right": 0},
]
needs_harness = pytest.mark.skipif(find_spec("lm_eval") is None, reason="pip install 'fedft[lm_eval]'")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("harness")
    runs.simulate(run_file.load(runs.QUICKSTART, SETS), out=folder / "run")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (folder / "tasks").mkdir()
    (folder / "tasks" / "two.yaml").write_text(TASK.format(file=folder / "rows.jsonl"))
    hub = TASK.format(file="x.jsonl").replace("dataset_path: json", "dataset_path: nobody/has-this-one")
    (folder / "tasks" / "hub.yaml").write_text(hub.replace("two_choices", "of_the_hub"))
    return folder / "run"


def log_likelihood(model: Any, tokenizer: Any, before: str, behind: str) -> float:
    """Of the tokens of `behind`, one after the other."""
    whole, given = (tokenizer(text, return_tensors="pt")["input_ids"][0] for text in (before + behind, before))
    with torch.no_grad():
        said = model(input_ids=whole[None], attention_mask=torch.ones_like(whole)[None]).logits[0].log_softmax(-1)
    return sum(float(said[n - 1, whole[n]]) for n in range(len(given), len(whole)))


@needs_harness
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_accuracy_of_a_local_task_is_that_of_the_model_of_the_run(run: Path) -> None:
    done = CliRunner().invoke(
        main.app, ["eval", str(run), "--tasks", "two_choices", "--include", str(run.parent / "tasks"), "--json"]
    )
    assert done.exit_code == 0, done.output
    found = json.loads((run / harness_tasks.FILE).read_text())
    place, state = workplace.reopen(run, data=False)
    place.handle.training(False)
    right = 0
    for row in ROWS:
        scores = [log_likelihood(place.handle.model, place.base.tokenizer, row["question"], c) for c in row["choices"]]
        right += scores.index(max(scores)) == row["right"]
    assert found["results"]["two_choices"]["acc,none"] == pytest.approx(right / len(ROWS))
    assert (found["round"], found["state_digest"]) == (1, state.digest)
    assert [row["measure"] for row in harness_tasks.table(found)] == ["acc"]


@needs_harness
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "line"),
    [("of_the_hub", "cannot be loaded.*HF_HUB_OFFLINE is set"), ("two_choice", "no task 'two_choice'")],
)
def test_what_cannot_be_had_is_one_line(run: Path, name: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConfigError, match=line) as refused:
        harness_tasks.evaluate(run, [name], include=run.parent / "tasks")
    assert "\n" not in str(refused.value)


def test_without_the_harness_its_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(harness_tasks, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"fedft\[lm_eval\]"):
        harness_tasks.evaluate(tmp_path, ["arc_easy"])


@pytest.mark.parametrize(
    "said", [["--tasks", "arc_easy", "--rouge"], ["--include", "."], ["--limit", "3"], ["--tasks", "a", "--compeft"]]
)
def test_what_makes_no_sense_together_is_refused(said: list[str], tmp_path: Path) -> None:
    done = CliRunner().invoke(main.app, ["eval", str(tmp_path), *said])
    assert done.exit_code != 0
    assert "--tasks" in str(done.exception)
