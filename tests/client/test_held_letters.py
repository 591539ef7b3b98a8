"""A run that the operator has to agree to waits at the site, without a fault of anybody's, until he does."""

import json
import logging
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from asked_site import SITE, job, site_file
from deployed import SITES, Deployment, Site
from virtual_clock import Clock

from fedft.carriers.interface import Letter
from fedft.client import app, asked_of_site
from fedft.client import site_file as site_files
from fedft.client.held_letters import APPROVAL, Door, HeldLetters
from fedft.client.known_runs import KnownRuns, digest_of
from fedft.client.site_settings import SiteConfig
from fedft.errors import ConfigError, PlanRefused
from fedft.security.sealed import About
from fedft.server import site_reports
from fedft.server.open_letter import OpenLetter
from fedft.update import Job


def asking(folder: Path) -> SiteConfig:
    return replace(SITE, site=replace(SITE.site, state=str(folder)), policy=replace(SITE.policy, approve="ask"))


def test_a_job_waits_until_exactly_it_is_approved(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    site, asked = asking(tmp_path), job()
    door, known = Door(site, tmp_path / "a site.toml"), KnownRuns(tmp_path)
    assert door.closed(asked) == door.closed(asked) == APPROVAL
    command = f"fedft site approve '{tmp_path}/a site.toml' {asked.run} --job {digest_of(asked)[:12]}"
    assert [command in m for m in caplog.messages] == [True], "said once, as it is typed"
    known.decide(known.find(asked.run[:6]), "approved")
    assert door.closed(asked) == Door(site, tmp_path).closed(asked) == ""
    changed = job(local={"steps": 11})
    assert changed.run == asked.run
    assert door.closed(changed) == APPROVAL, "a changed job asks again"
    assert door.closed(asked) == ""


def test_runs_that_wait_side_by_side_are_each_told_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The server asks about each of them every few seconds, in turn."""
    door, runs = Door(asking(tmp_path), tmp_path / "site.toml"), [replace(job(), run=f"{n:016x}") for n in range(3)]
    for _ in range(3):
        assert {door.closed(asked) for asked in runs} == {APPROVAL}
    told = [m for m in caplog.messages if "waits for approval" in m]
    assert [asked.run in m for asked, m in zip(runs, told, strict=True)] == [True] * 3


def test_a_refused_run_is_refused_whatever_approve_says(tmp_path: Path) -> None:
    site, asked = asking(tmp_path), job()
    assert Door(site, tmp_path).closed(asked)
    known = KnownRuns(tmp_path)
    known.decide(known.find(asked.run), "refused")
    for approve in ("ask", "auto"):
        with pytest.raises(PlanRefused) as e:
            Door(replace(site, policy=replace(site.policy, approve=approve)), tmp_path).closed(asked)
        assert e.value.code == "not_approved"


def test_what_the_policy_forbids_is_not_even_asked_about(tmp_path: Path) -> None:
    with pytest.raises(PlanRefused) as e:
        Door(asking(tmp_path), tmp_path).closed(job(local={"steps": 10**6}))
    assert e.value.code == "policy_steps"
    assert KnownRuns(tmp_path).all() == []


def test_auto_is_the_default_and_notes_the_run(tmp_path: Path) -> None:
    site = replace(asking(tmp_path), policy=SITE.policy)
    assert site.policy.approve == "auto"
    assert Door(site, tmp_path).closed(job()) == ""
    assert [r.job for r in KnownRuns(tmp_path).all()] == [job()]


def test_a_server_cannot_fill_the_disk_with_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedft.client.known_runs.MOST", 3)
    ticks = iter(range(100))
    known = KnownRuns(tmp_path, clock=lambda: float(next(ticks)))
    jobs = [replace(job(), run=f"{n:016x}") for n in range(6)]
    known.note(jobs[0])
    known.decide(known.find(jobs[0].run), "approved")
    for one in jobs[1:]:
        known.note(one)
    assert [r.job for r in known.all()] == [jobs[0], *jobs[3:]], "decided ones stay, then the newest"


@pytest.mark.parametrize("spoiled", [b"", b"{", b"[]", b'{"form": 1}', b'{"form": 9, "said": "approved"}'])
def test_a_decision_that_cannot_be_read_is_none(tmp_path: Path, spoiled: bytes) -> None:
    known = KnownRuns(tmp_path)
    known.note(job())
    known.decide(known.find(job().run), "approved")
    assert known.decision(job()) == "approved"
    (tmp_path / "runs" / f"{job().run}.decision.json").write_bytes(spoiled)
    assert known.decision(job()) == ""


def test_a_job_that_was_altered_on_disk_is_left_out_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    known = KnownRuns(tmp_path)
    known.note(job())
    path = tmp_path / "runs" / f"{job().run}.json"
    said = json.loads(path.read_bytes())
    said["job"]["tables"]["local"]["steps"] = 1
    path.write_text(json.dumps(said))
    assert known.all() == []
    assert "it is not what was written" in caplog.text


@pytest.mark.parametrize(
    ("run", "digest", "said"), [("", "", "0 runs begin"), ("zz", "", "known here: "), ("=", "ff", "its job is")]
)
def test_what_cannot_be_decided_is_said_in_a_line(tmp_path: Path, run: str, digest: str, said: str) -> None:
    known = KnownRuns(tmp_path)
    known.note(job())
    with pytest.raises(ConfigError, match=said) as e:
        known.find(job().run if run == "=" else run, digest)
    assert "\n" not in str(e.value)


def test_a_person_is_told_what_a_run_asks(tmp_path: Path) -> None:
    said = asked_of_site.asked(job(local={"steps": 7, "learning_rate": 2e-4}, data={"prompt": "{secret}"}), SITE)
    assert said["strategy"] == "flora"
    assert said["steps"].startswith("7 a round")
    assert said["rate"].startswith("0.0002")
    assert said["tokens"].startswith("96 a row")
    assert said["prompt"] == '"{secret}" (the server\'s)'
    assert said["code"] == "built in"
    assert said["rank"] == "as the plan of each round says, at most 64 here"
    assert job().base[:12] in said["base"]


@dataclass
class Shut:
    """Requests wait while `why` says so."""

    why: str = APPROVAL

    def closed(self, job: Job) -> str:
        return self.why


def waiting(folder: Path, shut: Shut, **more: Any) -> Deployment:
    """A deployment whose carl waits, on a clock of its own."""
    clock = Clock()
    run = Deployment(folder, "fedit", federation={"clock": clock}, post={"clock": clock}, **more)
    run.sites["carl"].responder.held = HeldLetters(shut.closed)
    return run


def test_a_round_closes_without_a_site_that_waits_and_nobody_is_blamed(tmp_path: Path) -> None:
    run = waiting(tmp_path, Shut(), rounds=5, quorum=0.6, deadline_s=60.0, grace_s=10.0)
    run.run()
    lines = run.metrics.lines[1:]
    assert [line["participants"] for line in lines] == [["anna", "bert"]] * 5
    assert run.sites["carl"].trained == 0
    assert run.sites["carl"].responder.runs.loaded(run.job.run) is None, "nothing was loaded"
    assert {r["code"] for line in lines for r in line["refused"]} == {"deadline"}
    found = run.store.latest()
    assert found is not None
    assert found[1]["barred"] == []
    said = [i for kind, i in run.events if kind == "progress" and i["client"] == "carl"]
    assert {i["doing"] for i in said} == {APPROVAL}
    assert len(said) <= 12, "once for each letter, however long it waits"


def test_once_approved_the_site_takes_part_in_the_round_at_hand_and_bytes_are_the_simulation_s(tmp_path: Path) -> None:
    shut = Shut()
    run = waiting(tmp_path / "a", shut, quorum=1.0)
    told = run.federation.observe

    def approving(kind: str, info: Any) -> None:
        told(kind, info)
        if kind == "progress" and info["doing"] == APPROVAL:
            shut.why = ""

    run.federation.observe = run.post.observe = approving
    assert run.digest() == Deployment(tmp_path / "b").simulated()
    assert [line["participants"] for line in run.metrics.lines[1:]] == [list(SITES)] * 4
    assert run.sites["carl"].trained == 4


def test_a_site_that_restarts_while_it_waits_waits_on(tmp_path: Path) -> None:
    shut, restarts = Shut(), []
    run = waiting(tmp_path, shut, quorum=0.6, deadline_s=60.0, rounds=2)
    told = run.federation.observe

    def dying(kind: str, info: Any) -> None:
        told(kind, info)
        if kind == "round":
            carl: Site = run.sites["carl"]
            carl.start()
            carl.responder.held = HeldLetters(shut.closed)
            restarts.append(info["round"])

    run.federation.observe = dying
    run.run()
    assert restarts == [0, 1]
    assert run.sites["carl"].trained == 0


def test_a_refusal_by_hand_in_the_middle_of_a_run_ends_it_here_without_quarantine(tmp_path: Path) -> None:
    site, run = tmp_path / "state", Deployment(tmp_path / "run", rounds=5, quorum=0.6)
    state, refuses = KnownRuns(site), []

    def closed(asked: Job) -> str:
        state.note(asked)
        if state.decision(asked) == "refused":
            refuses.append(asked.run)
            raise PlanRefused("not_approved", "this site's operator has refused the run")
        return ""

    run.sites["carl"].responder.held = HeldLetters(closed)
    told = run.federation.observe

    def observe(kind: str, info: Any) -> None:
        told(kind, info)
        if kind == "round" and info["round"] == 2:
            state.decide(state.find(run.job.run), "refused")

    run.federation.observe = observe
    run.run()
    assert [len(line["participants"]) for line in run.metrics.lines[1:]] == [3, 3, 2, 2, 2]
    assert refuses
    found = run.store.latest()
    assert found is not None
    assert found[1]["barred"] == []


def test_a_letter_that_a_slow_line_still_brings_is_not_taken_for_lost(tmp_path: Path) -> None:
    responder = Deployment(tmp_path).sites["anna"].responder
    about = About(job().run, 0, 1, "anna", b"p" * 32)
    assert responder._progress(about) == {"doing": "unknown"}
    responder.receiving = lambda: True
    assert responder._progress(about) == {"doing": "receiving"}
    o = OpenLetter(Letter("anna", "train", bytes), b"p" * 32, 10, 0.0)
    o.sent(0.0)
    assert o.report(site_reports.progress(b'{"doing": "receiving"}')[0], 6.0)
    assert o.pushed, "it does not go out again"


@pytest.mark.parametrize("rate", ["0.5", "0", "-3", "nan", "inf"])
def test_a_rate_below_what_the_server_waits_for_is_one_line(tmp_path: Path, rate: str) -> None:
    with pytest.raises(ConfigError, match=r"\[site\] max_mbit_s is .*, wanted 1 or more") as e:
        site_files.load(site_file(tmp_path, f"max_mbit_s = {rate}\n"))
    assert "\n" not in str(e.value)
    assert site_files.load(site_file(tmp_path, "max_mbit_s = 5\n")).site.max_mbit_s == 5


def test_a_rate_under_a_superlink_is_refused_in_a_line(tmp_path: Path) -> None:
    found = site_files.load(site_file(tmp_path, "max_mbit_s = 5\n"))
    with pytest.raises(ConfigError, match=r"max_mbit_s is for our own carrier") as e:
        app.attend(found, threading.Event(), "127.0.0.1:9")
    assert "\n" not in str(e.value)


def test_a_word_that_no_site_says_is_none(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert site_reports.progress(json.dumps({"doing": f"{APPROVAL}!"}).encode())[0] == "?"
        assert site_reports.progress(json.dumps({"doing": APPROVAL}).encode())[0] == APPROVAL
