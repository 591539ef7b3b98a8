"""Whole runs that are audited: what is planted, what is found, what is held back, and what is never said."""

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from fedft import run_file
from fedft.cli import main
from fedft.errors import ConfigError, ModelHeldBack
from fedft.privacy.audit import canaries, contrastive, verdict
from fedft.privacy.audit.contrasts import Wanted
from fedft.privacy.audit.findings import Rows
from fedft.privacy.audit.two_models import TwoModels
from fedft.privacy.tables import Audit
from fedft.reports import html_report
from fedft.server import run_folder
from fedft.server.checkpoint import Store
from fedft.simulations import audited_run, finished_run, workplace
from fedft.simulations import run as runs

SMALL = [
    "local.steps=2", "server.rounds=1", "clients.rank=4", "local.batch_size=4", "data.max_length=64", "data.clients=2",
    "data.client=client", "data.prompt='{prompt}'", "data.response='{response}'", "eval.max_rows=4",
    "audit.canaries=4", "audit.seed=1",
]  # fmt: skip
FEW = Wanted(samples=6, new_tokens=6)
Run = Callable[..., runs.Run]


@pytest.fixture(scope="module")
def small(on_rows: Callable[..., Run]) -> Run:
    """A run of a second on forty rows of two clients, with these overrides."""
    return on_rows(40, SMALL)


@pytest.fixture(scope="module")
def planted(small: Run) -> runs.Run:
    return small()


@pytest.mark.parametrize("strategy", ["fedit", "flora", "fedavg"])
def test_a_model_that_learned_nothing_gives_nothing_away(small: Run, strategy: str) -> None:
    """Adapters, changes of the base and all parameters: the calibrated AUC is 0.5, the contrast 0, to the bit."""
    run = small("local.learning_rate=0.0", "server.rounds=1", strategy=strategy)
    said = audited_run.audit_run(run.folder, FEW).said
    assert said["figures"]["auc"] == 0.5
    assert set(said["generated"]["score_by_start"]) == {"first token", "held-out prompts", "carriers"}
    assert set(said["generated"]["score_by_start"].values()) == {0.0}
    for group in said["canaries"]["groups"]:
        assert group.get("exposure") == group.get("base_exposure")


def test_the_plan_and_the_rows_are_those_of_the_run_file(planted: runs.Run) -> None:
    config = run_file.load(planted.folder / "config.toml")
    plan = canaries.read(planted.folder)
    assert plan is not None
    place = runs.workplace(config)
    assert canaries.planned(config.audit, list(place.clients)) == plan
    own = audited_run.rows_of(place, plan).trained
    for name, client in place.clients.items():
        behind = client.train_rows[len(own[name]) :]
        said = [place.base.tokenizer.decode(row.input_ids, skip_special_tokens=True) for row in behind]
        assert len(said) == len(plan.of(name))
        assert all(c.secret in text and c.carrier in text for c, text in zip(plan.of(name), said, strict=True))


def test_the_identifier_changes_with_what_is_planted_and_with_nothing_else_of_the_table(small: Run) -> None:
    def id_of(*more: str) -> str:
        found = Store(small("local.steps=1", *more).folder / "state").latest(recover=False)
        assert found is not None
        return str(found[1]["run"])

    plain = id_of("audit.canaries=0")
    assert id_of("audit.canaries=0", "audit.gate=['auc=1']", "audit.repeats=[2]", "audit.seed=5") == plain
    assert id_of() != plain


def test_a_resumed_run_keeps_its_plan(planted: runs.Run) -> None:
    before = (planted.folder / canaries.FILE).read_bytes()
    config = run_file.load(planted.folder / "config.toml")
    runs.simulate(config, out=planted.folder, resume=True)
    assert (planted.folder / canaries.FILE).read_bytes() == before


def test_no_secret_is_in_anything_but_the_plan(planted: runs.Run, caplog: pytest.LogCaptureFixture) -> None:
    """The folder's other files, the log, the page and what the command prints, unless --show is said."""
    plan = canaries.read(planted.folder)
    assert plan is not None
    with caplog.at_level(logging.DEBUG):
        done = CliRunner().invoke(main.app, ["audit", str(planted.folder), "--samples", "4", "--start", "The access"])
    assert done.exit_code == 0, done.output
    html_report.write([planted.folder], planted.folder / "report.html")
    said = [done.output.encode(), caplog.text.encode()]
    files = [p for p in planted.folder.rglob("*") if p.is_file() and p.name != canaries.FILE]
    assert {"audit.json", "report.html", "metrics.jsonl", "summary.json"} <= {p.name for p in files}
    for text in (*said, *(p.read_bytes() for p in files)):
        assert not [c.number for c in plan.canaries if c.secret.encode() in text]
        assert b"access code" not in text
    shown = CliRunner().invoke(main.app, ["audit", str(planted.folder), "--samples", "1", "--show", "--json"])
    said = json.loads(shown.output)
    assert any("The access code of clinic" in text["given"] for text in said.pop("texts"))
    assert said == json.loads((planted.folder / verdict.FILE).read_text())


def test_the_page_has_a_part_on_audits_and_none_where_there_was_none(planted: runs.Run, small: Run) -> None:
    audited_run.audit_run(planted.folder, FEW)
    html_report.write([planted.folder], page := planted.folder / "report.html")
    assert "<h2>Audits</h2>" in page.read_text()
    assert "membership AUC, calibrated" in page.read_text()
    other = small("audit.canaries=0")
    html_report.write([other.folder], page)
    assert "<h2>Audits</h2>" not in page.read_text()


def test_the_iterative_form_changes_a_copy_of_the_base_and_no_figure_but_those_of_what_is_generated(
    planted: runs.Run,
) -> None:
    plain = audited_run.audit_run(planted.folder, FEW).said
    found = audited_run.audit_run(planted.folder, FEW, iterative=True).said
    assert (plain.pop("generated")["iterative"], found["generated"]["iterative"]) == (False, True)
    assert found.pop("generated")["samples"] == len(canaries.read(planted.folder).canaries) + FEW.samples  # type: ignore[union-attr]
    for said in (plain, found):
        said["figures"].pop("verbatim")
    assert found == plain


def test_a_copy_of_the_base_learns_a_text_a_little_more_with_each_step(planted: runs.Run) -> None:
    place, _ = workplace.reopen(planted.folder, data=False)
    copy, sample = audited_run._copy(place), contrastive.Sample("texts", (5, 6), (70, 71, 72), 0.0)

    def likelihood() -> float:
        ids = torch.tensor([[*sample.given, *sample.written]])
        at = range(len(sample.given), ids.shape[1])
        return sum(float(copy.next_logits(ids[:, :n]).log_softmax(-1)[0, ids[0, n]]) for n in at)

    before = place.handle.read()
    found = [likelihood()]
    for _ in range(3):
        copy.learn(sample)
        found.append(likelihood())
    assert found == sorted(found)
    assert found[-1] > found[0] + 0.1
    copy.learn(contrastive.Sample("texts", (5,), (), 0.0))
    assert likelihood() == found[-1]
    after = place.handle.read()
    assert all(torch.equal(before[n], after[n]) for n in before)


def test_options_that_do_not_go_together_are_refused_in_one_line(planted: runs.Run) -> None:
    for options, why in (
        (["--iterative", "--samples", "0"], "nothing is generated"),
        (["--release", "--iterative", "--shadows", "4"], "leave --shadows, --iterative out"),
    ):
        done = CliRunner().invoke(main.app, ["audit", str(planted.folder), *options])
        assert isinstance(done.exception, ConfigError)
        assert why in str(done.exception)


def test_without_canaries_the_rest_is_measured_and_what_is_missing_is_said(small: Run) -> None:
    said = audited_run.audit_run(small("audit.canaries=0").folder, Wanted(samples=0)).said
    assert set(said["figures"]) == {"auc"}
    found = {line.partition(":")[0] for line in said["missing"]}
    assert found == {"exposure, epsilon_lower", "rates of few false positives", "generation"}


# -- the gate --------------------------------------------------------------------------------------------------------


def test_a_model_above_a_bound_is_held_back_until_it_is_released_by_hand(small: Run, tmp_path: Path) -> None:
    with pytest.raises(ModelHeldBack, match=r"auc is .*, at most 0 is allowed") as e:
        small("audit.gate=['exposure=8', 'auc=0']")
    assert e.value.exit_code == 3
    folder = Path(str(e.value).partition(": ")[0])
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["model"] is None
    assert summary["held_back"].startswith("auc is ")
    assert not (folder / "model").exists()
    assert json.loads((folder / verdict.FILE).read_text())["gate"]["held_back"] == summary["held_back"]
    with pytest.raises(ConfigError, match="its model is held back"):
        finished_run.export_run(folder, tmp_path / "model")
    assert not (tmp_path / "model").exists()
    with pytest.raises(ModelHeldBack):  # nor by going on with it
        runs.simulate(run_file.load(folder / "config.toml"), out=folder, resume=True)
    done = CliRunner().invoke(main.app, ["audit", str(folder), "--release"])
    assert done.exit_code == 0, done.output
    assert (folder / "model" / "adapter_config.json").exists()
    released = json.loads((folder / "summary.json").read_text())
    assert (released["model"], released["released_though"]) == ("model", summary["held_back"])
    assert finished_run.export_run(folder, tmp_path / "model") == "adapter"
    with pytest.raises(ConfigError, match="is not held back"):
        audited_run.release(folder)
    html_report.write([folder], folder / "report.html")
    assert f"Held back: {summary['held_back']}, and released by hand." in (folder / "report.html").read_text()


def test_a_server_measures_the_exposure_of_a_plan_in_its_folder_and_has_no_rows(
    planted: runs.Run, tmp_path: Path
) -> None:
    """A site's operator gives the plan to the server's, who puts it where the run will be."""
    plan = canaries.read(planted.folder)
    assert plan is not None
    place, state = workplace.reopen(planted.folder, data=False)
    two = TwoModels(place.handle, place.base, lambda: place.stand(state))
    config = replace(place.config, audit=Audit(gate=["exposure=0.01"]))
    canaries.keep(tmp_path, plan)
    assert run_folder.prepare(config, tmp_path, resume=False) == config
    verdict.check(config, plan, held_out=False)
    why = verdict.judged(tmp_path, two, config, plan, Rows())
    assert why.startswith("exposure is ")
    said = verdict.read(tmp_path)
    assert set(said["figures"]) == {"exposure", "epsilon_lower"}
    assert said["canaries"] == audited_run.audit_run(planted.folder, Wanted(samples=0)).said["canaries"]
    for gate, found in ((["auc=0.6"], plan), (["exposure=4"], None)):
        with pytest.raises(ConfigError, match="cannot be measured"):
            verdict.check(replace(config, audit=Audit(gate=gate)), found, held_out=False)


def test_a_model_within_its_bounds_is_written_and_is_that_of_a_run_without_a_gate(
    planted: runs.Run, small: Run
) -> None:
    run = small("audit.gate=['exposure=8', 'auc=1', 'epsilon_lower=9']")
    assert "held_back" not in run.summary
    assert set(json.loads((run.folder / verdict.FILE).read_text())["figures"]) == {"exposure", "auc", "epsilon_lower"}
    weights = "model/adapter_model.safetensors"
    assert (run.folder / weights).read_bytes() == (planted.folder / weights).read_bytes()


@pytest.mark.parametrize(
    ("sets", "why"),
    [
        (["audit.canaries=0", "audit.gate=['exposure=4']"], "exposure cannot be measured: no canary is planted"),
        (["audit.canaries=3", "audit.gate=['epsilon_lower=4']"], "epsilon_lower cannot be measured: it needs 4"),
        (["data.holdout=0.0", "audit.gate=['auc=0.6']"], "auc cannot be measured: nobody here has held-out rows"),
        (["audit.gate=['auk=0.6']"], "wanted FIGURE=NUMBER"),
        (["data.max_length=8"], "do not fit into"),
    ],
)
def test_what_cannot_be_audited_is_refused_before_there_is_a_run(small: Run, sets: list[str], why: str) -> None:
    with pytest.raises(ConfigError) as e:
        small(*sets)
    assert why in str(e.value)
    assert "\n" not in str(e.value)


# -- whether it would find something -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_is_planted_often_and_trained_on_plainly_is_found(small: Run) -> None:
    """Without a defence: at least 6 of 8 bits, and many guesses right; what was left out stays unknown."""
    run = small(
        "server.rounds=4", "local.steps=60", "local.learning_rate=5e-3", "local.schedule=cosine", "clients.rank=16",
        "local.batch_size=16", "audit.repeats=[16]", "audit.canaries=16",
    )  # fmt: skip
    said = audited_run.audit_run(run.folder, FEW).said
    (group,) = said["canaries"]["groups"]
    assert group["exposure"] >= 6
    assert group["left_out_exposure"] < 4
    assert said["epsilon_lower"]["epsilon"] > 0.5
