"""A site that takes part in several runs of one server at a time: nothing of one gets into another."""

import hashlib
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from deployed import OPTIONS, SERVER_KEY, Deployment, SiteOfRuns, ToyClient

from fedft import durable, strategies, testing
from fedft.client.disk import Asked, SiteDisk
from fedft.client.private_state import Kept
from fedft.client.requests import MAX_WAITING
from fedft.contract import State
from fedft.security import sealed
from fedft.security.sealed import About, Kind
from fedft.update import RUNS_AT_ONCE, Job, Plan
from fedft.wire import messages

A, B = "a" * 16, "b" * 16
METHODS = {A: "scaffold", B: "fedsa_lora"}  # clients of both keep something between rounds


def site_in(folder: Path) -> tuple[SiteOfRuns, Job]:
    """A site of several runs, and a job of the first."""
    d = Deployment(folder / "of config", "fedit")
    return SiteOfRuns("anna", 0, folder / "site", d.config, METHODS), d.job


def job_of(job: Job, run: str) -> bytes:
    name = METHODS.get(run, "fedit")
    tables = {**job.tables, "strategy": {"name": name, **OPTIONS.get(name, {})}}
    return messages.encode_job(replace(job, run=run, tables=tables))


def letter(kind: Kind, run: str, payload: bytes, round: int = 0, attempt: int = 0) -> bytes:
    about = About(run, round, attempt, "anna", sealed.digest(payload))
    return sealed.seal(kind, about, payload, SERVER_KEY)


def plan_of(run: str, round: int) -> bytes:
    """A plan of a round from version 0."""
    recipe = strategies.make(METHODS.get(run, "fedit"), {})
    toy = testing.toy(recipe)
    state = recipe.first_state(toy.layout, 2, testing.SEED)
    counted = round - 1 if round else None
    bare = Plan(run, round, 0, rank=2, steps=2, learning_rate=0.05, attempt=round, counted=counted, label=state.label)
    return messages.encode_plan(replace(bare, tensors=recipe.downlink(state, None, bare)), "fp32")


def said_by(site: SiteOfRuns, *data: bytes) -> list[sealed.Opened]:
    """What the site answers once it has been sent all of these, in the order in which it answers."""
    said: list[bytes] = []
    for each in data:
        site.responder.take(each, said.append)
    while site.responder.work(0):
        pass
    key = site.responder.key.public_key()
    return [sealed.open_sealed(x, lambda _: key) for x in said]


def course(site: SiteOfRuns, job: Job, order: list[tuple[str, int]], between: Callable[[], None] = lambda: None) -> Any:
    """Payloads of the site's answers by run and round, asked in this order; `between` two requests."""
    for run in dict.fromkeys(run for run, _ in order):
        (said,) = said_by(site, letter(Kind.JOB, run, job_of(job, run)))
        assert said.kind is Kind.ANSWER, said.payload
    found = {}
    for run, round in order:
        between()
        plan = plan_of(run, round)
        answers = said_by(site, letter(Kind.TRAIN, run, plan, round, round))
        if answers[0].kind is not Kind.ANSWER:  # a start later, the site asks for the job
            assert b"wrong_run" in answers[0].payload, answers[0].payload
            said_by(site, letter(Kind.JOB, run, job_of(job, run)))
            answers = said_by(site, letter(Kind.TRAIN, run, plan, round, round))
        (said,) = answers
        assert said.kind is Kind.ANSWER, said.payload
        found[run, round] = said.payload
    return found


ALONE = [[(run, round) for round in range(3)] for run in (A, B)]
MIXED = [(run, round) for round in range(3) for run in (A, B)]


@pytest.mark.parametrize("restarts", [False, True], ids=["one start", "a start for each request"])
def test_runs_that_take_turns_get_the_answers_of_runs_alone(tmp_path: Path, restarts: bool) -> None:
    """Also where clients keep something: control variates of one run, private factors of the other."""
    alone = {}
    for number, order in enumerate(ALONE):
        site, job = site_in(tmp_path / str(number))
        alone |= course(site, job, order)
    site, job = site_in(tmp_path / "mixed")
    mixed = course(site, job, MIXED, site.start if restarts else lambda: None)
    assert mixed == alone
    assert len(set(alone.values())) == 6


def test_requests_of_two_runs_are_carried_out_in_the_order_in_which_they_came(tmp_path: Path) -> None:
    site, job = site_in(tmp_path)
    said_by(site, letter(Kind.JOB, A, job_of(job, A)), letter(Kind.JOB, B, job_of(job, B)))
    first, second = (letter(Kind.TRAIN, run, plan_of(run, 0)) for run in (B, A))
    status = [letter(Kind.STATUS, run, b"") for run in (A, B)]
    said = said_by(site, first, second, *status)
    assert [(o.kind, o.about.run) for o in said[:2]] == [(Kind.PROGRESS, A), (Kind.PROGRESS, B)]
    assert [(o.kind, o.about.run) for o in said[2:]] == [(Kind.ANSWER, B), (Kind.ANSWER, A)]


def test_status_is_answered_for_each_run_while_one_of_them_trains(tmp_path: Path) -> None:
    site, job = site_in(tmp_path)
    said_by(site, letter(Kind.JOB, A, job_of(job, A)), letter(Kind.JOB, B, job_of(job, B)))
    told: dict[str, bytes] = {}
    train = ToyClient.train

    def asked(client: ToyClient, turn: Any) -> Any:
        for run, plan in plans.items():
            about = About(run, 0, 0, "anna", sealed.digest(plan))
            data = sealed.seal(Kind.STATUS, about, b"", SERVER_KEY)
            heard: list[bytes] = []
            site.responder.take(data, heard.append)
            told.setdefault(run, sealed.open_sealed(heard[0], lambda _: site.responder.key.public_key()).payload)
        return train(client, turn)

    plans = {run: plan_of(run, 0) for run in (A, B)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ToyClient, "train", asked)
        said_by(site, *(letter(Kind.TRAIN, run, plan) for run, plan in plans.items()))
    assert b'"training"' in told[A]
    assert told[B] == b'{"doing": "queued"}'


def test_the_same_request_again_gets_the_same_bytes_whatever_the_other_run_has_done_since(tmp_path: Path) -> None:
    site, job = site_in(tmp_path)
    found = course(site, job, MIXED)
    site.start()
    for run in (A, B):
        said_by(site, letter(Kind.JOB, run, job_of(job, run)))
        (again,) = said_by(site, letter(Kind.TRAIN, run, plan_of(run, 2), 2, 2))
        assert again.payload == found[run, 2]
        (older,) = said_by(site, letter(Kind.TRAIN, run, plan_of(run, 1), 1, 1))
        assert b"stale" in older.payload


def test_a_site_is_in_so_many_runs_and_no_more(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A server can make a site hold no more than that, in memory or on disk."""
    site, job = site_in(tmp_path)
    runs = [f"{n:016x}" for n in range(1, RUNS_AT_ONCE + 4)]
    with caplog.at_level(logging.WARNING):
        course(site, job, [(run, 0) for run in runs])
    assert len(site.responder.runs._jobs) == len(site.responder.runs._clients) == RUNS_AT_ONCE
    held = {p.stem.rpartition("-")[2] for p in (tmp_path / "site").glob("*.fedft")}
    assert len(held) <= RUNS_AT_ONCE
    assert runs[-1] in held
    assert "what was kept of it is removed" in caplog.text


def test_no_more_requests_wait_than_the_runs_there_can_be(tmp_path: Path) -> None:
    site, _ = site_in(tmp_path)
    for n in range(3 * MAX_WAITING):
        site.responder.take(letter(Kind.TRAIN, A, str(n).encode()), lambda data: None)
    assert site.responder.requests.qsize() == len(site.responder._waiting) == MAX_WAITING


def test_what_a_site_of_one_run_had_on_its_disk_is_taken_over(tmp_path: Path) -> None:
    """The files of earlier versions: state.fedft, answer.fedft, kept/kept-<round>.fedft."""
    disk = SiteDisk(tmp_path)
    asked = Asked(A, 3, 4, "0" * 64, "w")
    disk.keep_answer(asked, b"payload")
    disk.keep_state(A, "label", State(3, {"w": torch.ones(2)}))
    kept = Kept(tmp_path / "kept")
    for run in (A, B):
        kept.open(run)
        kept.keep(2, {"owner": {"x": torch.ones(1)}}, None)
    for name in ("answer", "state"):
        (tmp_path / f"{name}-{A}.fedft").rename(tmp_path / f"{name}.fedft")
    new = SiteDisk(tmp_path)
    assert new.answer(A) == (asked, b"payload")
    assert new.answer(B) is None
    state = new.state(A)
    assert state is not None
    assert state[1].version == 3
    assert not list(new.kept(A).glob("*"))
    mine = Kept(new.kept(B))
    mine.open(B)
    assert mine.after(2)["owner"]["x"] == 1


def test_of_an_answer_that_was_damaged_nothing_is_taken_over(tmp_path: Path) -> None:
    durable.commit(tmp_path / "answer.fedft", b"[1]\nx")
    shutil.copy(tmp_path / "answer.fedft", tmp_path / "state.fedft")
    assert SiteDisk(tmp_path).answer(A) is None
    assert (tmp_path / "answer.fedft").exists()


def test_an_answer_is_hashed_once_and_another_one_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk, answer = SiteDisk(tmp_path), b"an answer"
    assert disk.digest_of(answer) == hashlib.sha256(answer).digest()
    known = hashlib.sha256(answer).digest()
    with monkeypatch.context() as patched:
        patched.setattr(hashlib, "sha256", None)
        assert disk.digest_of(answer) == known
    assert disk.digest_of(b"another") == hashlib.sha256(b"another").digest()
