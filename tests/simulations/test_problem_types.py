"""Runs of several labels and of numbers to fit: what is reported is what is left, and everything shows it."""

import json
import re
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, BertModel

import fedft
from fedft import run_file
from fedft.client import allowed_jobs, site_settings
from fedft.data.labels import MULTI, REGRESSION, SINGLE
from fedft.errors import DataError
from fedft.models import adapter_folder
from fedft.reports import html_report
from fedft.reports.columns import Column
from fedft.reports.comparison import readable, shown_columns
from fedft.reports.terminal import Progress
from fedft.server.job import job_of
from fedft.simulations import finished_run, workplace
from fedft.training.metrics import interface

ROOT = Path(__file__).resolve().parents[2]
CLOSE = 1e-4
WORDS = ["red", "blue", "round", "flat", "old", "new"]
SIZES = {"vocab_size": 512, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
SIZES |= {"intermediate_size": 16, "max_position_embeddings": 40}
KINDS = {
    "labels": {"problem_type": MULTI, "labels": ["red", "round", "new"]},
    "number": {"problem_type": REGRESSION},
    "numbers": {"problem_type": REGRESSION, "labels": ["reds", "news"]},
}
kinds = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def body(tiny_base, tmp_path_factory):
    """The folder of an encoder without a head."""
    folder = tmp_path_factory.mktemp("body")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        BertModel(BertConfig(**SIZES)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_base).save_pretrained(folder)
    return str(folder)


def label_of(kind, words):
    if kind == "labels":
        return [n for n in KINDS["labels"]["labels"] if n in words]
    return (float(words[0] == "red") + 2, [words.count("red"), words.count("new")])[kind == "numbers"]


def tables(body, folder, kind, name="fedit", **more):
    rows = []
    for i in range(40):
        words = [WORDS[(i * k + k) % 6] for k in (1, 2, 5)]
        rows.append({"client": "ab"[i % 2], "text": " ".join(words), "label": label_of(kind, words)})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = {
        "model": {"id": body, "task": "sequence-classification", **KINDS[kind]},
        "data": {"train": str(folder / "rows.jsonl"), "max_length": 16},
        "strategy": {"name": name},
        "local": {"steps": 6, "learning_rate": 1e-2 if name != "fedavg" else 5e-3},
        "server": {"rounds": 2, "loggers": []},
        "clients": {"rank": 2},
    }
    for table, keys in more.items():
        found[table] = found.get(table, {}) | keys
    return found


def run(body, folder, kind, name="fedit", **more):
    return fedft.simulate(run_file.from_dict(tables(body, folder, kind, name, **more)), out=folder / "run")


def loss_of(model, rows):
    """By the model itself, of one batch: transformers' own loss."""
    batch = batch_of(rows)
    with torch.no_grad():
        return float(model.eval()(**batch).loss)


def batch_of(rows):
    longest = max(len(r.input_ids) for r in rows)
    ids = torch.tensor([r.input_ids + [0] * (longest - len(r.input_ids)) for r in rows])
    mask = torch.tensor([[1] * len(r.input_ids) + [0] * (longest - len(r.input_ids)) for r in rows])
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([r.labels for r in rows]).float()}


@kinds
@pytest.mark.parametrize(
    "strategy", ["fedit", pytest.param("flora", marks=pytest.mark.slow), pytest.param("fedavg", marks=pytest.mark.slow)]
)
def test_the_loss_reported_is_that_of_the_model_that_is_left(body, tmp_path, kind, strategy):
    """Summary, `fedft eval`, peft by what the printed line says, and the merged export by plain transformers."""
    from peft import AutoPeftModelForSequenceClassification

    done = run(body, tmp_path, kind, strategy)
    reported = done.summary["final"]["loss"]
    assert reported < done.summary["initial"]["loss"] - 10 * CLOSE, "a run that learns nothing"
    evaluated, mean = finished_run.evaluate_run(done.folder)
    assert mean["loss"] == pytest.approx(reported, abs=CLOSE)
    more = {"accuracy", "micro_f1"} if kind == "labels" else {"mae"}
    assert mean.keys() == {"loss", "token_loss", "count"} | more
    place, _ = workplace.reopen(done.folder)
    finished_run.export_run(done.folder, tmp_path / "merged", merged=True)
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    assert merged.config.problem_type == KINDS[kind]["problem_type"]
    models = [merged]
    if (done.model / "adapter_config.json").exists():
        said = {"num_labels": len(done.summary["labels"]), "problem_type": done.summary["problem_type"]}
        models.append(AutoPeftModelForSequenceClassification.from_pretrained(done.model, **said))
    assert len(models) == 2 or strategy == "fedavg"
    for client, measured in evaluated.items():
        rows = list(place.clients[client].test_rows)
        for model in models:
            assert loss_of(model, rows) == pytest.approx(measured["loss"], abs=CLOSE)


@kinds
def test_a_run_goes_on_from_another_and_refuses_one_of_other_outputs(body, tmp_path, kind):
    first = run(body, tmp_path, kind)
    (tmp_path / "on").mkdir()
    second = run(str(first.model), tmp_path / "on", kind, server={"rounds": 1})
    assert second.summary["initial"]["loss"] == pytest.approx(first.summary["final"]["loss"], abs=CLOSE)
    said = {k: v for k, v in KINDS[kind].items() if k != "labels"}
    for labels in (["red", "flat"], ["red", "flat", "new", "old"]):
        with pytest.raises(DataError, match=r"has \d other (labels|outputs), '.*'; wanted these") as e:
            adapter_folder.load(str(first.model), "sequence-classification", labels=labels, **said)
        assert "\n" not in str(e.value)


@kinds
def test_clients_in_one_pass_and_one_after_the_other_make_the_same_model(body, tmp_path, kind):
    found = []
    for together in (1, 2):
        (tmp_path / str(together)).mkdir()
        done = run(
            body, tmp_path / str(together), kind, server={"together": together}, model={**KINDS[kind], "id": body}
        )
        found.append(done.summary["final"])
    assert found[0] == pytest.approx(found[1], rel=1e-3)


@pytest.mark.parametrize("strategy", ["scaffold", "fedprox", "fedkseed", "ferret", "mezo"])
def test_control_variates_pulls_and_steps_without_gradients_take_numbers_to_fit(body, tmp_path, strategy):
    options = {"K": 64} if strategy in ("fedkseed", "ferret") else {}
    rate = 1e-3 if strategy in ("fedkseed", "mezo", "ferret") else 2e-2
    done = run(body, tmp_path, "numbers", strategy, strategy=options, local={"learning_rate": rate})
    assert done.summary["final"]["loss"] != done.summary["initial"]["loss"]


def test_the_terminal_and_the_page_show_a_regression_without_accuracy(body, tmp_path):
    with Progress(quiet=False, rounds=2) as shown:
        text = shown.out.file = StringIO()
        config = run_file.from_dict(tables(body, tmp_path, "number", server={"loggers": ["tensorboard"]}))
        done = fedft.simulate(config, out=tmp_path / "run", observe=shown.observe)
        shown.finish(done.summary, done.folder)
    heads, first = re.findall(r"^ +(?:round|0/2) +(.*)$", text.getvalue(), re.MULTILINE)
    assert heads.split()[:5] == ["loss", "accuracy", "abs.", "error", "train"]
    assert first.split()[1] == "-"
    assert re.search(
        r"held-out loss [\d.]+ -> [\d.]+, mean over clients\n +abs. error [\d.]+ -> [\d.]+", text.getvalue()
    )
    assert "num_labels=1, problem_type='regression')" in text.getvalue()
    page = html_report.write([done.folder], tmp_path / "page.html")
    assert "mae" in shown_columns(page["rows"])
    assert "accuracy" not in shown_columns(page["rows"])
    assert readable(page)[0]["mae"] == f"{done.summary['final']['mae']:.3f}"
    for written in (text.getvalue(), (tmp_path / "page.html").read_text(), (done.folder / "metrics.jsonl").read_text()):
        assert not re.search(r"\bnan\b", written, re.IGNORECASE)


def test_the_run_file_of_data_md_runs(body, tmp_path):
    (block,) = re.findall(r"^```toml\n([^`]*problem_type[^`]*)```", (ROOT / "DATA.md").read_text(), re.MULTILINE)
    (tmp_path / "run.toml").write_text(block)
    cells = [f"{'ab'[n % 2]},post {n % 3},{int(n % 3 == 0)},{int(n % 2 == 0)},{int(n % 5 > 2)}" for n in range(40)]
    (tmp_path / "posts.csv").write_text("\n".join(["client,post,toxic,rude,sad", *cells]) + "\n")
    small = [f"model.id='{body}'", "server.rounds=1", "local.steps=2", "server.loggers=[]", "data.max_length=16"]
    done = fedft.simulate(run_file.load(tmp_path / "run.toml", small), out=tmp_path / "run")
    assert done.summary["labels"] == ["toxic", "rude", "sad"]
    assert "micro_f1" in done.summary["final"]


@pytest.mark.parametrize("partition", ["natural", "dirichlet"])
def test_clients_are_not_cut_by_a_list_of_labels_which_is_said(body, tmp_path, partition):
    with pytest.raises(DataError, match="'label' says whose a row is; it is a list") as e:
        run(body, tmp_path, "labels", data={"partition": partition, "client": "label", "clients": 2})
    assert "\n" not in str(e.value)


def test_a_metric_of_what_is_predicted_refuses_a_regression_in_one_line(body, tmp_path, monkeypatch):
    class Right:
        columns = (Column("share_right", "right"),)

        def measure(self, model, rows):
            return {"share_right": float(sum((a == b).sum() for a, b in map(model.predictions, model.batches(rows))))}

    monkeypatch.setattr(interface, "load", lambda names, task=None: {"mine": Right()})
    assert "share_right" in run(body, tmp_path, "labels").summary["final"]
    (tmp_path / "other").mkdir()
    with pytest.raises(DataError, match="a regression has no classes to predict, and no accuracy or F1") as e:
        run(body, tmp_path / "other", "number")
    assert "\n" not in str(e.value)


def test_a_record_that_says_another_form_of_label_ends_the_run_before_it_begins(body, tmp_path):
    wrong = tables(body, tmp_path, "labels")
    tables(body, tmp_path, "number")  # writes numbers where labels are wanted
    with pytest.raises(DataError, match=r"row 1: 'label' is [23]\.0, wanted a list of labels") as e:
        fedft.simulate(run_file.from_dict(wrong), out=tmp_path / "run")
    assert "\n" not in str(e.value)
    assert not (tmp_path / "run/metrics.jsonl").exists() or not (tmp_path / "run/metrics.jsonl").read_text()


def site(**data):
    return site_settings.SiteConfig(
        site_settings.Site("north", "/state"),
        site_settings.SiteServer("127.0.0.1:9092", "/ca.pem", "/server.pub"),
        site_settings.SiteModel("/model", "cpu"),
        site_settings.SiteData("/train.jsonl", **data),
        policy=site_settings.Policy(strategies=["fedit"]),
    )


@kinds
def test_a_job_says_the_problem_type_and_one_without_it_means_one_class(body, tmp_path, kind):
    config = run_file.from_dict(tables(body, tmp_path, kind))
    job = job_of(config, "0123456789abcdef" * 4, b"")
    found = allowed_jobs.run_config(job, site())
    assert (found.model.problem_type, found.model.labels) == (config.model.problem_type, config.model.labels)
    fields = allowed_jobs.run_config(job, site(label=["x", "y"])).data.label
    assert fields == ["x", "y"]
    one = run_file.from_dict(
        {"model": {"task": "sequence-classification", "labels": ["a", "b"]}, "data": {"max_length": 24}}
    )
    old = job_of(replace(one, strategy=config.strategy), "0123456789abcdef" * 4, b"")
    without = {**old.tables, "model": {k: v for k, v in old.table("model").items() if k != "problem_type"}}
    assert allowed_jobs.run_config(replace(old, tables=without), site()).model.problem_type == SINGLE
