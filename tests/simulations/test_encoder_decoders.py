"""Encoder-decoders through whole runs: what is reported is what is left, by whatever way it is loaded."""

import re
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from fedft import registry, run_file
from fedft.errors import ConfigError
from fedft.reports.terminal import Progress
from fedft.simulations import finished_run, workplace
from fedft.simulations import run as runs
from tests.support import encoder_decoders as tiny

CLOSE = 1e-4
TASK = "seq2seq-lm"
OPTIONS: dict[str, dict[str, Any]] = {
    "fedkseed": {"strategy": {"K": 64}, "local": {"learning_rate": 1e-3, "steps": 6}},
    "mezo": {"local": {"learning_rate": 1e-3, "steps": 6}},
    "zo_fedavg": {"local": {"learning_rate": 1e-2, "steps": 6}},
    "ferret": {"strategy": {"K": 256}},
    "flora": {"clients": {"rank": [2, 4]}},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folder of a saved model by its kind, and the file of "rows"."""
    at = tmp_path_factory.mktemp("models")
    return {"rows": tiny.rows(at / "rows.jsonl"), **{kind: tiny.save(at / kind, kind) for kind in tiny.KINDS}}


def run_of(folders: dict[str, Path], kind: str, strategy: str, out: Path, **more: Any) -> runs.Run:
    """A run of two rounds."""
    own = OPTIONS.get(strategy, {})
    said = {t: {**own.get(t, {}), **more.get(t, {})} for t in {**own, **more}}
    return runs.simulate(run_file.from_dict(tiny.tables(folders[kind], folders["rows"], strategy, **said)), out=out)


def loss_of(model: Any, rows: list[Any]) -> float:
    """Mean over the learned tokens of the rows, one row at a time, as plain transformers computes it."""
    total = places = 0.0
    for row in rows:
        with torch.no_grad():
            found = model.eval()(input_ids=torch.tensor([row.input_ids]), labels=torch.tensor([row.labels]))
        total += float(found.loss) * len(row.labels)
        places += len(row.labels)
    return total / places


def printed(run: runs.Run, capsys: pytest.CaptureFixture[str]) -> str:
    """The python line that the end of the run prints."""
    with Progress(quiet=False, rounds=2) as progress:
        progress.finish(run.summary, run.folder)
    (line,) = re.findall(r'^load   python -c "(.*)"$', capsys.readouterr().out, re.MULTILINE)
    return str(line)


def agree(run: runs.Run, capsys: pytest.CaptureFixture[str]) -> None:
    """Four ways: `summary.json`, `fedft eval`, the printed line, plain transformers on the merged export."""
    reported = run.summary["final"]["loss"]
    assert reported != pytest.approx(run.summary["initial"]["loss"], abs=10 * CLOSE), "a run that learns nothing"
    evaluated, mean = finished_run.evaluate_run(run.folder)
    assert mean["loss"] == pytest.approx(reported, abs=CLOSE)
    losses = {c: m["loss"] for c, m in evaluated.items()}
    place, _ = workplace.reopen(run.folder)
    rows = {c: list(place.clients[c].test_rows) for c in losses}
    assert len(losses) == 2
    finished_run.export_run(run.folder, to := run.folder / "merged", merged=True)
    merged = transformers.AutoModelForSeq2SeqLM.from_pretrained(to)
    assert {c: loss_of(merged, rows[c]) for c in losses} == pytest.approx(losses, abs=CLOSE)
    assert transformers.AutoTokenizer.from_pretrained(to).eos_token_id == tiny.END
    if place.recipe.space.of_base:
        return
    line = printed(run, capsys)
    assert "AutoPeftModelForSeq2SeqLM.from_pretrained(" in line
    names: dict[str, Any] = {}
    exec(line, names)
    assert {c: loss_of(names["model"], rows[c]) for c in losses} == pytest.approx(losses, abs=CLOSE)


QUICK = (("t5", "fedit"), ("bart", "flora"), ("t5", "fedkseed"), ("bart", "fedavg"), ("marian", "mezo"))
OTHERS = [n for n in registry.BUILT_IN if n != "fedspine"]  # which knows no groups of theirs
DEALT = zip(cycle(tiny.KINDS), OTHERS, strict=False)  # every strategy with one of them, every kind with a third
ALL = [*QUICK, *(pytest.param(k, n, marks=pytest.mark.slow) for k, n in DEALT if (k, n) not in QUICK)]


@pytest.mark.parametrize(("kind", "strategy"), ALL)
def test_the_loss_reported_is_that_of_the_model_that_is_left(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, strategy: str
) -> None:
    run = run_of(folders, kind, strategy, tmp_path / "run")
    assert run.summary["task"] == TASK
    if workplace.reopen(run.folder)[0].recipe.personal:  # every client has a model of its own: test_what_is_left.py
        assert run.summary["final"]["loss"] < run.summary["initial"]["loss"] - 10 * CLOSE
    else:
        agree(run, capsys)


def test_what_prunes_refuses_a_model_whose_heads_and_channels_it_does_not_know(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="pruning knows llama"):
        run_of(folders, "t5", "fedspine", tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_generated_text_is_measured_as_plain_transformers_writes_it(folders: dict[str, Path], tmp_path: Path) -> None:
    """At both ends of the run; what the merged export writes of the same rows matches as often, and it does match."""
    more = {
        "data": {"response": "{client}", "partition": "iid", "clients": 1},
        "local": {"steps": 40, "learning_rate": 3e-2},
        "eval": {"metrics": ["exact_match"], "rouge": True, "generate_tokens": 6, "every": 9},
    }
    run = run_of(folders, "t5", "fedit", tmp_path / "run", **more)
    assert run.summary["initial"]["exact_match"] == 0
    place, _ = workplace.reopen(run.folder)
    ((client, held),) = [(c, place.clients[c].test_rows) for c in place.clients]
    finished_run.export_run(run.folder, to := tmp_path / "merged", merged=True)
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(to)
    tokenizer = transformers.AutoTokenizer.from_pretrained(to)
    hits = []
    for row in held:
        out = model.generate(torch.tensor([row.input_ids]), max_new_tokens=6, do_sample=False)[0]
        hits.append(tokenizer.decode(out, skip_special_tokens=True) == tokenizer.decode(row.labels[:-1]))
    assert sum(hits) > 0
    share = sum(hits) / len(hits)
    assert run.summary["final"]["exact_match"] == pytest.approx(share)
    assert run.summary["final"]["rouge_l"] == pytest.approx(share), "the responses are one word each"
    evaluated, _ = finished_run.evaluate_run(run.folder, rouge=True)
    assert evaluated[client]["rouge_l"] == pytest.approx(share)


def test_a_run_goes_on_from_a_run_and_what_is_left_is_one_adapter_of_the_first_base(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = run_of(folders, "t5", "fedit", tmp_path / "one")
    second = run_of({**folders, "t5": first.model}, "t5", "fedit", tmp_path / "two")
    assert second.summary["initial"]["loss"] == pytest.approx(first.summary["final"]["loss"], abs=CLOSE)
    agree(second, capsys)
    about = (second.model / "adapter_config.json").read_text()
    assert '"task_type": "SEQ_2_SEQ_LM"' in about
    assert str(folders["t5"]) in about


@pytest.mark.parametrize("kind", ["t5", "bart"])
@pytest.mark.filterwarnings("ignore:.*ensure_weight_tying")
def test_embeddings_of_both_sides_and_the_output_are_trained_as_one(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    """Exported so that peft loads them, of which it would tie the first two only; and one again in the next run."""
    all_four = ["decoder.embed_tokens", "encoder.embed_tokens", "lm_head", "shared"]
    first = run_of(folders, kind, "fedit", tmp_path / "one", model={"modules_to_save": all_four})
    agree(first, capsys)
    second = run_of({**folders, kind: first.model}, kind, "fedit", tmp_path / "two")
    assert second.summary["initial"]["loss"] == pytest.approx(first.summary["final"]["loss"], abs=CLOSE)
    assert second.summary["header"]["parameters"] == first.summary["header"]["parameters"], "one parameter, not four"
    agree(second, capsys)


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_clients_that_share_passes_learn_what_each_learns_alone(
    folders: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    alone, shared = (run_of(folders, kind, "fedit", tmp_path / str(n), server={"together": n}) for n in (1, 2))
    assert not [r for r in caplog.records if "one at a time" in r.message]
    assert alone.summary["state_digest"] != shared.summary["state_digest"], "it was one pass for each client"
    assert shared.summary["final"]["loss"] == pytest.approx(alone.summary["final"]["loss"], abs=CLOSE)
    assert alone.summary["final"]["loss"] < alone.summary["initial"]["loss"] - 10 * CLOSE
