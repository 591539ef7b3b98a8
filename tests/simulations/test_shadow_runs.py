"""`fedft audit --shadows`: whole runs again on halves of the records, and what they find."""

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from typer.testing import CliRunner

from fedft.cli import main
from fedft.errors import ConfigError
from fedft.privacy.audit import canaries, verdict
from fedft.privacy.audit.contrasts import Wanted
from fedft.privacy.audit.two_models import TwoModels
from fedft.reports import html_report
from fedft.simulations import audited_run, shadow_runs, workplace
from fedft.simulations import run as runs

SMALL = [
    "local.steps=1", "server.rounds=1", "clients.rank=4", "local.batch_size=4", "data.max_length=64", "data.clients=2",
    "data.client=client", "data.prompt='{prompt}'", "data.response='{response}'", "data.holdout=0.5", "eval.max_rows=2",
    "audit.canaries=8", "audit.seed=1", "audit.repeats=[16]",
]  # fmt: skip
NONE = Wanted(samples=0)
Run = Callable[..., runs.Run]


@pytest.fixture(scope="module")
def small(on_rows: Callable[..., Run]) -> Run:
    """A run of a second on twenty rows of two clients and eight canaries, with these overrides."""
    return on_rows(20, SMALL)


def attacked(run: runs.Run, count: int = 4) -> dict[str, Any]:
    """What shadow runs find, without the rest of an audit."""
    place, state = workplace.reopen(run.folder)
    plan = canaries.read(run.folder)
    two = TwoModels(place.handle, place.base, partial(place.stand, state))
    return shadow_runs.measured(place, two, plan, audited_run.rows_of(place, plan), count, lambda line: None)


def test_a_secret_planted_16_times_is_found_and_one_that_was_left_out_is_not(small: Run) -> None:
    run = small("local.steps=12", "local.learning_rate=2e-2", "local.batch_size=8")
    said = attacked(run)
    (group,) = said["canaries"]
    assert (group["repeats"], group["planted"] + group["left_out"]) == (16, 8)
    assert group["planted"] >= 2
    assert group["left_out"] >= 2
    assert (group["found"], group["found_left_out"]) == (1.0, 0.0)
    assert (said["rows"]["members"], said["rows"]["others"]) == (10, 10)


def test_a_shadow_has_as_many_rounds_as_the_audited_run(small: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that its patience has ended, too: shadows hold nothing out, and would go on to the last round."""
    run = small("server.rounds=4", "server.patience=1", "server.min_delta=1e9")
    assert run.summary["ended"] == "patience"
    ended: list[int] = []
    stand = workplace.Workplace.stand

    def stood(place: workplace.Workplace, state: Any, client: str | None = None) -> None:
        ended.append(state.version)
        stand(place, state, client)

    monkeypatch.setattr(workplace.Workplace, "stand", stood)
    audited_run.audit_run(run.folder, NONE, shadows=4)
    assert set(ended) == {run.summary["rounds"]} == {1}


def test_a_model_that_learned_nothing_gives_nothing_away_and_stands_as_before(small: Run) -> None:
    run = small("local.learning_rate=0.0")
    before = audited_run.audit_run(run.folder, NONE).said
    lines: list[str] = []
    said = audited_run.audit_run(run.folder, NONE, shadows=4, told=lines.append).said
    attack = said.pop("shadows")
    assert attack["rows"]["auc"] == 0.5
    assert [(g["found"], g["found_left_out"]) for g in attack["canaries"]] == [(0.0, 0.0)]
    assert said == before
    assert lines == [f"shadow run {n} of 4" for n in (1, 2, 3, 4)]


@pytest.mark.parametrize("strategy", ["fedavg", "flora"])
def test_the_audited_model_is_measured_though_shadows_had_the_handle(small: Run, strategy: str) -> None:
    """All parameters and changes of the base, too: the figures beside are those of an audit without shadows."""
    run = small("local.learning_rate=1e-2", "audit.canaries=2", strategy=strategy)
    before = audited_run.audit_run(run.folder, NONE).said
    said = audited_run.audit_run(run.folder, NONE, shadows=4).said
    assert said.pop("shadows")["shadows"] == 4
    assert said == before


def test_an_audit_leaves_its_own_file_behind_and_nothing_else_is_touched(small: Run) -> None:
    """Shadows have noise and keys of their own: nobody's account is charged, no key is used again."""
    sets = ("privacy.mode=example-dp", "privacy.clip=1.0", "privacy.epsilon=8.0", "privacy.delta=1e-3")
    run = small(*sets, "audit.canaries=2", strategy="ffa_lora")
    assert list((run.folder / "clients").rglob("privacy-ledger.fedft"))
    before = {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}
    said = audited_run.audit_run(run.folder, Wanted(samples=1, new_tokens=2), iterative=True, shadows=4).said
    assert 0 <= said["shadows"]["rows"]["auc"] <= 1
    after = {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}
    assert after.pop(run.folder / verdict.FILE)
    assert after == before


def test_the_command_and_the_page_show_what_was_found(small: Run) -> None:
    run = small("audit.canaries=2")
    done = CliRunner().invoke(main.app, ["audit", str(run.folder), "--samples", "0", "--shadows", "4", "--json"])
    assert done.exit_code == 0, done.output
    assert verdict.read(run.folder)["shadows"] == json.loads(done.stdout)["shadows"]
    html_report.write([run.folder], page := run.folder / "report.html")
    assert "membership AUC, 4 shadow runs" in page.read_text()
    assert "secrets found, 4 shadow runs" in page.read_text()


def test_what_cannot_be_told_is_refused_in_one_line(small: Run) -> None:
    run = small("audit.canaries=0", "data.holdout=0.0")
    for count, why in ((3, "wanted 4 or more"), (4, "every record was trained on")):
        with pytest.raises(ConfigError, match=why):
            attacked(run, count)
    (run.folder / "state" / "salt").write_bytes(b"deployed")
    with pytest.raises(ConfigError, match="its rows are at the sites"):
        audited_run.audit_run(run.folder, NONE, shadows=4)
