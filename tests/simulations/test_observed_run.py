"""Metrics, observers and loggers from outside in whole runs on a small real model."""

import logging
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rouge_score.rouge_scorer import RougeScorer
from transformers import PreTrainedModel

from fedft import allowed_code, registry, run_file
from fedft.errors import ConfigError
from fedft.reports import columns, finished_runs, html_report, plots
from fedft.simulations import finished_run, workplace
from fedft.simulations import run as runs
from fedft.training import evaluate

PLUGIN = '''
from fedft.reports.columns import Column

class Longest:
    """Tokens of the longest response."""
    columns = (Column("longest", "longest answer", "tokens", "", ".0f"),)
    def measure(self, model, rows):
        return {"longest": max(len(r.input_ids) - r.prompt_length for r in rows), "undeclared": 1.0}

class Broken(Longest):
    columns = (Column("broken", "broken"),)
    def measure(self, model, rows):
        raise RuntimeError("no such word list")

longest, broken, nothing = Longest(), Broken(), 7

def told(folder, config):
    def observe(kind, info):
        with (folder / "told.txt").open("a") as f:
            f.write(f"{kind} {info.get('version', '')}\\n")
    return observe

def cannot(folder, config):
    raise OSError("no route to host")
'''
Run = Callable[..., runs.Run]


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allow: Callable[..., None]) -> Iterator[None]:
    """A module `mine` that another package might bring, and that the operator allows."""
    allow(*(f"mine:{name}" for name in ("longest", "broken", "told", "nobody", "nothing", "cannot")))
    (tmp_path / "mine.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(columns, "_declared", dict(columns._declared))
    yield
    sys.modules.pop("mine", None)


@pytest.fixture(scope="module")
def run(tiny_base: Path) -> Run:
    """One or two rounds of two steps for two clients."""

    def simulate(out: Path, *more: str, **how: Any) -> runs.Run:
        small = ["local.steps=2", "local.batch_size=2", "data.clients=2", "eval.max_rows=4", "eval.generate_tokens=4"]
        sets = [f"model.id='{tiny_base}'", "clients.rank=4", "server.rounds=1", *small, *more]
        return runs.simulate(run_file.load(runs.QUICKSTART, sets), out=out, **how)

    return simulate


@pytest.fixture(scope="module")
def plain(run: Run, tmp_path_factory: pytest.TempPathFactory) -> runs.Run:
    """A run of one round that nobody watches."""
    return run(tmp_path_factory.mktemp("plain") / "run", "server.loggers=[]")


@pytest.mark.usefixtures("plugin")
def test_a_metric_from_outside_is_measured_shown_and_changes_nothing(
    run: Run, plain: runs.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = run(tmp_path / "run", "eval.metrics=['exact_match', 'mine:longest', 'mine:broken']")
    assert done.summary["state_digest"] == plain.summary["state_digest"]
    for line in done.lines:
        assert line["longest"] == sum(m["longest"] for m in line["evaluation"].values()) / 2
        assert 0 <= line["exact_match"] <= 1
        assert not {"broken", "undeclared"} & line.keys()
    assert done.summary["columns"]["longest"]["heading"] == "longest answer"
    monkeypatch.setattr(columns, "_declared", {"loss": columns.of("loss")})  # where it is not installed
    monkeypatch.setattr(plots, "available", lambda: False)
    page = html_report.page(finished_runs.gather([done.folder]))
    assert "<th>longest answer, tokens</th>" in page
    found, mean = finished_run.evaluate_run(done.folder)
    assert mean["longest"] == done.summary["final"]["longest"]
    assert {"loss", "token_loss", "perplexity", "accuracy", "count", "exact_match", "longest"} == set(mean)
    assert set(found) == {"asyncio", "email"}


@pytest.mark.usefixtures("plugin")
def test_a_metric_that_fails_is_told_and_left_out(run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        done = run(tmp_path / "run", "eval.metrics=['mine:broken']")
    assert "loss" in done.summary["final"]
    assert any("mine:broken failed and is left out: RuntimeError: no such word list" in m for m in caplog.messages)


def test_the_key_rouge_measures_the_first_and_the_last_state(run: Run, tmp_path: Path) -> None:
    """And `[eval] metrics` measures it of every one, with the same numbers."""
    done = run(tmp_path / "a", "eval.rouge=true", "server.rounds=2")
    assert ["rouge_l" in line for line in done.lines] == [True, False, True]
    every = run(tmp_path / "b", "eval.metrics=['rouge_l']", "server.rounds=2")
    assert [line["rouge_l"] for line in every.lines[::2]] == [line["rouge_l"] for line in done.lines[::2]]


def test_rouge_l_is_rouge_score_s_of_the_model_s_own_greedy_generations(plain: runs.Run) -> None:
    """Of responses that begin as the model's own text does, so that the score is neither 0 nor 1."""
    place, _ = workplace.reopen(plain.folder)
    model, random = place.handle.model, torch.Generator().manual_seed(3)
    assert isinstance(model, PreTrainedModel)
    head = torch.nn.Linear(64, len(place.base.tokenizer), bias=False)  # the small base's own says white space only
    head.weight.data = torch.randn(head.weight.shape, generator=random)
    model.set_output_embeddings(head)
    scorer, t, rows, scores = RougeScorer(["rougeL"]), place.base.tokenizer, [], []
    for client in place.clients.values():
        for i, row in enumerate(client.test_rows[:4]):
            given = t.pad({"input_ids": [row.input_ids[: row.prompt_length]]}, return_tensors="pt")
            out = model.generate(**given, max_new_tokens=12, do_sample=False, pad_token_id=t.pad_token_id)
            ids = [*out[0, : row.prompt_length + 2 * i].tolist(), *row.input_ids[row.prompt_length :]]
            rows.append(replace(row, input_ids=ids))
            said, wanted = (t.decode(x[row.prompt_length :], skip_special_tokens=True) for x in (out[0], ids))
            scores.append(scorer.score(wanted, said)["rougeL"].fmeasure)
    assert 0 < sum(scores) < len(scores)
    seen = evaluate.Measured(place.handle, t, new_tokens=12)
    assert registry.metrics.load("rouge_l").measure(seen, rows) == {"rouge_l": pytest.approx(sum(scores) / len(scores))}


@pytest.mark.usefixtures("plugin")
def test_several_observers_and_loggers_hear_the_run_and_a_failing_one_does_not_end_it(
    run: Run, plain: runs.Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[str] = []

    def broken(kind: str, info: Any) -> None:
        raise RuntimeError("out of paper")

    def hears(kind: str, info: Any) -> None:
        heard.append(kind)

    with caplog.at_level(logging.WARNING):
        done = run(tmp_path / "run", "server.loggers=['mine:told']", observe=[broken, hears])
    assert done.summary["state_digest"] == plain.summary["state_digest"]
    assert sum("out of paper" in m for m in caplog.messages) == 1
    assert heard[0] == "preparing"
    assert heard[-2:] == ["line", "ended"]
    told = (done.folder / "told.txt").read_text().splitlines()
    assert [t for t in told if t.startswith(("line", "ended"))] == ["line 0", "line 1", "ended "]
    assert not (done.folder / "events").exists()


def test_an_interrupted_run_that_is_resumed_has_each_point_once(run: Run, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def stop(kind: str, info: Any) -> None:
        if kind == "line" and info["version"] == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", "server.rounds=2", observe=stop)
    done = run(tmp_path / "run", "server.rounds=2", resume=True)
    events = EventAccumulator(str(tmp_path / "run" / "events"))
    events.Reload()
    for name in ("loss", "accuracy", "bytes_up", "bytes_down"):
        points = [(e.step, e.value) for e in events.Scalars(name)]
        assert points == [(line["version"], pytest.approx(line[name])) for line in done.lines]
    assert [e.step for e in events.Scalars("train_loss")] == [1, 2]


@pytest.mark.usefixtures("plugin")
@pytest.mark.parametrize(
    ("override", "why"),
    [
        ("eval.metrics=['exactmatch']", r"no metric 'exactmatch'; .*did you mean 'exact_match'"),
        ("eval.metrics=['mine:nobody']", "cannot load mine:nobody"),
        ("eval.metrics=['mine:nothing']", "wanted a tuple of Column"),
        ("eval.metrics=['no_such_package:metric']", "No module named 'no_such_package'"),
        ("server.loggers=['tensorbord']", "no logger 'tensorbord'; .*did you mean 'tensorboard'"),
        ("server.loggers=['no_such_package:logger']", "No module named 'no_such_package'"),
        ("server.loggers=['mine:nothing']", "wanted .folder, config. -> observer"),
    ],
)
def test_a_name_that_cannot_be_had_is_refused_in_one_line_before_there_is_a_folder(
    run: Run, tmp_path: Path, override: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    allowed_code.allow([override])
    with pytest.raises(ConfigError, match=why) as e:
        run(tmp_path / "run", override)
    assert "\n" not in str(e.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("plugin")
def test_a_logger_that_cannot_begin_is_refused_before_training(run: Run, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\[server\] loggers: 'mine:cannot' cannot begin: OSError: no route to host"):
        run(tmp_path / "run", "server.loggers=['mine:cannot']")
    assert not (tmp_path / "run" / "metrics.jsonl").read_text()


def test_a_metric_of_generated_text_is_refused_for_classes(run: Run, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'exact_match' is for task causal-lm"):
        run(
            tmp_path / "run",
            "eval.metrics=['exact_match']",
            "model.task=sequence-classification",
            "model.labels=['a','b']",
        )


def test_a_run_is_resumed_with_other_loggers(run: Run, tmp_path: Path) -> None:
    run(tmp_path / "run", "server.loggers=[]")
    run(tmp_path / "run", "server.rounds=2", resume=True)
    assert list((tmp_path / "run" / "events").glob("*tfevents*"))
