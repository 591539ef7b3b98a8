"""A classifier's classes keep their names and their rows, from checkpoint to what is saved; numbers are no places."""

import json
import logging
import shlex

import pytest
import torch
import warm_processes
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

import fedft
from fedft import run_file
from fedft.data.labels import MULTI, REGRESSION, SINGLE
from fedft.errors import DataError
from fedft.models import adapter_folder, load
from fedft.simulations import finished_run

NAMES = ["no", "maybe", "yes"]
SIZES = {"vocab_size": 512, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
SIZES |= {"intermediate_size": 16, "max_position_embeddings": 40}
IDS = torch.arange(5, 15)[None]


@pytest.fixture
def saved(tiny_base, tmp_path):
    """Writes a classifier with a head of its own, whose classes have these names; returns the folder."""

    def write(names, kind=BertForSequenceClassification, config=BertConfig, problem=None):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            model = kind(config(**SIZES, num_labels=len(names)))
        model.config.id2label = dict(enumerate(names))
        model.config.label2id = {n: i for i, n in enumerate(names)}
        model.config.problem_type = problem
        model.save_pretrained(tmp_path / "m")
        AutoTokenizer.from_pretrained(tiny_base).save_pretrained(tmp_path / "m")
        return str(tmp_path / "m")

    return write


def logits(model):
    with torch.no_grad():
        return model.eval()(IDS).logits[0]


@pytest.mark.parametrize(
    ("kind", "config"),
    [(BertForSequenceClassification, BertConfig), (RobertaForSequenceClassification, RobertaConfig)],
)
def test_a_head_in_another_order_is_put_into_that_of_the_labels(saved, kind, config):
    folder = saved(NAMES, kind, config)
    theirs = logits(AutoModelForSequenceClassification.from_pretrained(folder))
    base = load.load(folder, "sequence-classification", labels=["yes", "no", "maybe"])
    torch.testing.assert_close(logits(base.model), theirs[[2, 0, 1]])
    assert base.model.config.id2label == {0: "yes", 1: "no", 2: "maybe"}
    assert base.model.config.label2id == {"yes": 0, "no": 1, "maybe": 2}
    same = load.load(folder, "sequence-classification", labels=NAMES)
    torch.testing.assert_close(logits(same.model), theirs)


def test_capitals_do_not_matter_where_all_names_agree(saved):
    folder = saved(["POSITIVE", "NEGATIVE"])
    base = load.load(folder, "sequence-classification", labels=["negative", "positive"])
    torch.testing.assert_close(
        logits(base.model), logits(AutoModelForSequenceClassification.from_pretrained(folder))[[1, 0]]
    )


@pytest.mark.parametrize("labels", [["no", "yes"], ["no", "yes", "never"], [*NAMES, "never"], ["LABEL_0", "no", "yes"]])
def test_a_head_of_other_classes_is_refused_in_one_line(saved, labels):
    with pytest.raises(DataError, match="has 3 other classes, 'no', 'maybe', 'yes'; wanted these") as e:
        load.load(saved(NAMES), "sequence-classification", labels=labels)
    assert "\n" not in str(e.value)


def test_classes_without_names_are_taken_in_order_which_is_said(saved, caplog):
    folder = saved([f"LABEL_{i}" for i in range(3)])
    with caplog.at_level(logging.WARNING):
        base = load.load(folder, "sequence-classification", labels=NAMES)
    assert "does not name its classes" in caplog.text
    torch.testing.assert_close(logits(base.model), logits(AutoModelForSequenceClassification.from_pretrained(folder)))


def test_without_labels_a_classifier_has_those_of_its_folder(saved):
    assert load.load(saved(NAMES), "sequence-classification").model.config.id2label == dict(enumerate(NAMES))


@pytest.mark.parametrize("problem", [MULTI, REGRESSION])
def test_labels_and_outputs_in_another_order_are_put_into_that_of_the_run(saved, problem):
    folder = saved(NAMES, problem=problem)
    theirs = logits(AutoModelForSequenceClassification.from_pretrained(folder))
    base = load.load(folder, "sequence-classification", labels=["yes", "no", "maybe"], problem_type=problem)
    torch.testing.assert_close(logits(base.model), theirs[[2, 0, 1]])
    assert base.model.config.problem_type == problem


@pytest.mark.parametrize(("theirs", "ours"), [(None, MULTI), (SINGLE, MULTI), (MULTI, SINGLE)])
def test_a_head_for_one_of_its_labels_goes_on_with_several_where_names_agree_which_is_said(saved, theirs, ours, caplog):
    folder = saved(NAMES, problem=theirs)
    with caplog.at_level(logging.WARNING):
        base = load.load(folder, "sequence-classification", labels=NAMES, problem_type=ours)
    assert f"was trained for {theirs or SINGLE}; it goes on as {ours}" in caplog.text
    assert base.model.config.problem_type == ours
    unnamed = saved([f"LABEL_{i}" for i in range(3)], problem=theirs)
    with pytest.raises(DataError, match=f"was trained for {theirs or SINGLE}, not {ours}") as e:
        load.load(unnamed, "sequence-classification", labels=NAMES, problem_type=ours)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("names", "theirs", "labels", "ours", "why"),
    [
        (NAMES, SINGLE, NAMES, REGRESSION, "was trained for single_label_classification, not regression"),
        (NAMES, REGRESSION, NAMES, MULTI, "was trained for regression, not multi_label_classification"),
        (NAMES, REGRESSION, ["value"], REGRESSION, "has 3 other outputs, 'no', 'maybe', 'yes'"),
        (["LABEL_0"], None, NAMES, REGRESSION, "has 1 other outputs, 'LABEL_0'"),
        (NAMES, MULTI, ["no", "yes", "never"], MULTI, "has 3 other labels"),
    ],
)
def test_a_head_for_something_else_is_refused_in_one_line(saved, names, theirs, labels, ours, why):
    with pytest.raises(DataError, match=why) as e:
        load.load(saved(names, problem=theirs), "sequence-classification", labels=labels, problem_type=ours)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("theirs", [None, REGRESSION])
def test_the_one_output_of_a_head_without_a_name_is_taken_silently(saved, caplog, theirs):
    folder = saved(["LABEL_0"], problem=theirs)
    with caplog.at_level(logging.WARNING):
        base = load.load(folder, "sequence-classification", labels=["value"], problem_type=REGRESSION)
    assert not caplog.text
    torch.testing.assert_close(logits(base.model), logits(AutoModelForSequenceClassification.from_pretrained(folder)))


def simulated(folder, out, rows, labels, **more):
    lines = [{"client": "ab"[i % 2], "text": f"word {i % 3}", "label": NAMES[i % 3]} for i in range(24)]
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
    tables = {
        "model": {"id": folder, "task": "sequence-classification", "labels": labels},
        "data": {"train": str(rows), "max_length": 16},
        "strategy": {"name": "fedit"},
        "local": {"steps": 4},
        "server": {"rounds": 1, "loggers": []},
        "clients": {"rank": 2},
    }
    return fedft.simulate(run_file.from_dict(tables | more), out=out)


def test_what_is_saved_has_the_names_as_an_adapter_and_merged(saved, tmp_path):
    order = ["yes", "no", "maybe"]
    run = simulated(saved(NAMES), tmp_path / "run", tmp_path / "rows.jsonl", order)
    wanted = {str(i): n for i, n in enumerate(order)}
    assert json.loads((run.model / "config.json").read_text())["id2label"] == wanted
    finished_run.export_run(run.folder, tmp_path / "merged", merged=True)
    said = json.loads((tmp_path / "merged/config.json").read_text())
    assert (said["id2label"], said["label2id"]) == (wanted, {n: i for i, n in enumerate(order)})
    again = load.load(str(tmp_path / "merged"), "sequence-classification", labels=NAMES)
    one = adapter_folder.load(str(run.model), "sequence-classification", labels=order)
    torch.testing.assert_close(logits(again.model), logits(one.model)[[1, 2, 0]], atol=1e-5, rtol=1e-5)


def test_a_run_goes_on_from_a_classifier_with_its_labels_in_another_order(saved, tmp_path):
    run = simulated(saved(NAMES), tmp_path / "run", tmp_path / "rows.jsonl", ["yes", "no", "maybe"])
    on = adapter_folder.load(str(run.model), "sequence-classification", labels=["yes", "no", "maybe"])
    other = adapter_folder.load(str(run.model), "sequence-classification", labels=NAMES)
    torch.testing.assert_close(logits(other.model), logits(on.model)[[1, 2, 0]])
    with pytest.raises(DataError, match="other classes"):
        adapter_folder.load(str(run.model), "sequence-classification", labels=["a", "b", "c"])


SAYS = {
    SINGLE: lambda i, n: NAMES[i % n],
    MULTI: lambda i, n: NAMES[: i % (n + 1)],
    REGRESSION: lambda i, n: [i % 5 - 1.5] * n,
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("classes", "problem"), [(2, SINGLE), (3, SINGLE), (0, SINGLE), (3, MULTI), (1, REGRESSION), (2, REGRESSION)]
)
def test_the_printed_line_loads_the_model_of_every_task(saved, tiny_base, tmp_path, classes, problem):
    """0: a causal language model. The numbers are those of the run's own model, and so is what it fits."""
    rows = [
        {
            "client": "ab"[i % 2],
            "text": f"w {i % 3}",
            "label": SAYS[problem](i, classes or 1),
            "prompt": "a",
            "response": "b c",
        }
        for i in range(24)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = saved(NAMES[:classes], problem=problem) if classes else str(tiny_base)
    sets = [f"model.id='{folder}'", f"data.train='{tmp_path}/rows.jsonl'", "data.max_length=16", "data.client=client"]
    sets += ["server.rounds=1", "local.steps=2", "strategy.name=fedit", "clients.rank=2", "server.loggers=[]"]
    sets += ["data.prompt='{prompt}'", "data.response='{response}'", "data.partition=natural"]
    task = "sequence-classification" if classes else "causal-lm"
    if classes:
        sets += [f"model.task={task}", f"model.labels={NAMES[:classes]}", f"model.problem_type={problem}"]
    words = ["-m", "fedft", "simulate", "--out", "run", *(x for s in sets for x in ("--set", s))]
    done = warm_processes.run(words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (line,) = (text for text in done.stdout.splitlines() if text.startswith("load "))
    _, python, how, said = shlex.split(line)
    assert (python, how) == ("python", "-c")
    said += "; import torch; print(getattr(model.config, 'problem_type', None))"
    said += "; print(model.eval()(torch.arange(5, 15)[None]).logits[0].tolist())"
    (tmp_path / "said.py").write_text(said)
    loaded = warm_processes.run([str(tmp_path / "said.py")], cwd=tmp_path)
    assert loaded.returncode == 0, loaded.stderr
    ours = adapter_folder.load(str(tmp_path / "run/model"), task, labels=NAMES[:classes], problem_type=problem).model
    assert problem == SINGLE or loaded.stdout.splitlines()[-2] == problem
    found = torch.tensor(json.loads(loaded.stdout.splitlines()[-1]))
    torch.testing.assert_close(found, logits(ours), atol=1e-4, rtol=1e-4)
