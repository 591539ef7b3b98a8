"""A classifier's classes keep their names and their rows, from checkpoint to what is saved; numbers are no places."""

import json
import logging
import shlex
import subprocess
import sys

import pytest
import torch
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

    def write(names, kind=BertForSequenceClassification, config=BertConfig):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            model = kind(config(**SIZES, num_labels=len(names)))
        model.config.id2label = dict(enumerate(names))
        model.config.label2id = {n: i for i, n in enumerate(names)}
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


@pytest.mark.slow
@pytest.mark.parametrize("classes", [2, 3, 0])
def test_the_printed_line_loads_the_model_of_every_task(saved, tiny_base, tmp_path, classes):
    """Two classes, three, and a causal language model (0); the numbers are those of the run's own model."""
    rows = [
        {
            "client": "ab"[i % 2],
            "text": f"w {i % 3}",
            "label": NAMES[i % (classes or 1)],
            "prompt": "a",
            "response": "b c",
        }
        for i in range(24)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = saved([f"LABEL_{i}" for i in range(classes)]) if classes else str(tiny_base)
    sets = [f"model.id='{folder}'", f"data.train='{tmp_path}/rows.jsonl'", "data.max_length=16", "data.client=client"]
    sets += ["server.rounds=1", "local.steps=2", "strategy.name=fedit", "clients.rank=2", "server.loggers=[]"]
    sets += ["data.prompt='{prompt}'", "data.response='{response}'", "data.partition=natural"]
    task = "sequence-classification" if classes else "causal-lm"
    if classes:
        sets += [f"model.task={task}", f"model.labels={NAMES[:classes]}"]
    command = [sys.executable, "-m", "fedft", "simulate", "--out", "run", *(x for s in sets for x in ("--set", s))]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (line,) = (text for text in done.stdout.splitlines() if text.startswith("load "))
    said = shlex.split(line)[1:]
    said[0] = sys.executable
    said[2] += "; import torch; print(model.eval()(torch.arange(5, 15)[None]).logits[0].tolist())"
    loaded = subprocess.run(said, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert loaded.returncode == 0, loaded.stderr
    ours = adapter_folder.load(str(tmp_path / "run/model"), task, labels=NAMES[:classes]).model
    found = torch.tensor(json.loads(loaded.stdout.splitlines()[-1]))
    torch.testing.assert_close(found, logits(ours), atol=1e-4, rtol=1e-4)
