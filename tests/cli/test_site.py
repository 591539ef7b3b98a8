"""`fedft site`: the runs that ask, and the operator's yes and no to them."""

import json
import sys
from pathlib import Path

import pytest
from asked_site import job, site_file

from fedft.cli import main
from fedft.client.known_runs import KnownRuns
from fedft.client.privacy_ledger import FILE, Charge, Ledger, Terms
from fedft.privacy import accountant


def fedft(monkeypatch: pytest.MonkeyPatch, *args: str) -> int:
    monkeypatch.setattr(sys, "argv", ["fedft", *args])
    with pytest.raises(SystemExit) as e:
        main.main()
    return int(e.value.code or 0)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    return site_file(tmp_path, "[policy]\nstrategies = ['flora']\napprove = 'ask'\n")


def test_a_run_is_shown_and_approved_and_refused(
    site: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    known = KnownRuns(site.parent / "fedft-site")
    assert fedft(monkeypatch, "site", "runs", str(site)) == 0
    assert capsys.readouterr().out == "no run has asked for this site yet\n"
    known.note(job(data={"response": "{answer}\x1b[31m"}))
    assert fedft(monkeypatch, "site", "runs", str(site)) == 0
    out = capsys.readouterr().out
    assert f"run {job().run}  waits" in out
    for word in ("strategy", "base", "targets", "rank", "steps", "rate", "tokens", "code", "prompt", "response"):
        assert f"\n  {word}" in out
    assert "\x1b" not in out
    (command,) = [line.split("fedft ")[1].split("    ")[0] for line in out.splitlines() if "-> fedft" in line]
    assert fedft(monkeypatch, *command.split()) == 0, "as it is printed"
    assert "approved" in capsys.readouterr().out
    assert fedft(monkeypatch, *command.split(), "--refuse", "--json") == 0
    assert json.loads(capsys.readouterr().out)["state"] == "refused"
    assert fedft(monkeypatch, "site", "runs", str(site), "--json") == 0
    (row,) = json.loads(capsys.readouterr().out)["runs"]
    assert (row["run"], row["state"], row["asks"]["strategy"]) == (job().run, "refused", "flora")


def test_what_its_rows_have_cost_is_shown_to_a_site_s_operator(
    site: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger = Ledger(site.parent / "fedft-site")
    ledger.begin(Terms("a" * 16, "example-dp", 320, 2.0, None, 1e-5))
    ledger.charge(Charge("a" * 16, 0, "f" * 64, "0" * 16, "example-dp", 2.0, 0.025, 40))
    ledger.charge(Charge("b" * 16, 0, "promised", "", "central-dp", 4.0))
    monkeypatch.setattr(accountant, "epsilon", lambda releases, delta: float(sum(r.count for r in releases)))
    assert fedft(monkeypatch, "site", "runs", str(site)) == 0
    said = "privacy: epsilon 41 at delta 1e-05, of 2 turns in 1 run, 1 of them with a server's promise of noise"
    assert f"{said}; no most is set" in capsys.readouterr().out
    assert fedft(monkeypatch, "site", "runs", str(site), "--json") == 0
    found = json.loads(capsys.readouterr().out)["privacy"]
    assert (found["epsilon"], found["turns"], found["max_epsilon"]) == (41, 2, None)
    (site.parent / "fedft-site" / FILE).unlink()
    assert fedft(monkeypatch, "site", "runs", str(site)) == 65
    assert "restore it from a backup" in capsys.readouterr().err


def test_a_run_says_what_it_hides(
    site: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    KnownRuns(site.parent / "fedft-site").note(job())
    fedft(monkeypatch, "site", "runs", str(site))
    assert "the server sees each update, and the model may tell of rows" in capsys.readouterr().out
    private = {"mode": "example-dp", "clip": 1.0, "noise_multiplier": 2.0, "delta": 1e-5}
    KnownRuns(site.parent / "fedft-site").note(job(privacy=private))
    fedft(monkeypatch, "site", "runs", str(site))
    assert "mode = example-dp, clip = 1.0, noise_multiplier = 2.0, delta = 1e-05" in capsys.readouterr().out


def test_a_mistake_is_one_line(site: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    KnownRuns(site.parent / "fedft-site").note(job())
    for args in (["0"], [job().run, "--job", "0"]):
        assert fedft(monkeypatch, "site", "approve", str(site), *args) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_a_run_that_the_policy_forbids_by_now_is_shown_as_that(
    site: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    KnownRuns(site.parent / "fedft-site").note(job(local={"steps": 10**6}))
    assert fedft(monkeypatch, "site", "runs", str(site)) == 0
    out = capsys.readouterr().out
    assert "against the policy" in out
    assert "policy_steps" in out
