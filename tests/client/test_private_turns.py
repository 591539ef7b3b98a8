"""A site whose updates have noise of its own: killed at any instant it says the same bytes, and books them once."""

import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from deployed import SERVER_KEY, Deployment, Killed, Site

from fedft import durable, strategies, testing
from fedft.client import noise_key
from fedft.client.privacy_ledger import FILE, Ledger
from fedft.security import sealed
from fedft.security.sealed import About, Kind, Opened
from fedft.update import Plan
from fedft.wire import messages

pytest.importorskip("dp_accounting", reason="pip install 'fedft[dp]'")

PRIVACY = {"mode": "local-dp", "clip": 0.5, "noise_multiplier": 2.0, "delta": 1e-3}
ROUNDS = 2


def site_in(folder: Path) -> tuple[Site, bytes]:
    """A site, and the job of its run."""
    d = Deployment(folder / "of config", privacy=PRIVACY)
    return Site("anna", 0, folder / "site", d.config), messages.encode_job(d.job)


def letter(kind: Kind, payload: bytes, round: int = 0) -> bytes:
    about = About(testing.RUN, round, round, "anna", sealed.digest(payload))
    return sealed.seal(kind, about, payload, SERVER_KEY)


def plan_of(round: int, *, evaluate: bool = False) -> bytes:
    recipe = strategies.make("fedit", {})
    toy = testing.toy(recipe)
    state = recipe.first_state(toy.layout, 2, testing.SEED)
    steps = 0 if evaluate else 2
    bare = Plan(testing.RUN, round, 0, rank=2, steps=steps, learning_rate=0.05, attempt=round, label=state.label)
    bare = Plan(**{**vars(bare), "evaluate": evaluate, "tensors": recipe.downlink(state, None, bare)})
    return messages.encode_plan(bare, "fp32")


def said(site: Site, data: bytes) -> Opened:
    """What the site answers."""
    heard: list[bytes] = []
    site.responder.take(data, heard.append)
    while site.responder.work(0):
        pass
    return sealed.open_sealed(heard[-1], lambda _: site.responder.key.public_key())


def turns(site: Site, job: bytes) -> list[bytes]:
    """The payloads of all rounds' answers, asked again after each death of the site."""
    found = []
    for round in range(ROUNDS):
        while True:
            try:
                if (joined := said(site, letter(Kind.JOB, job))).kind is not Kind.ANSWER:
                    raise AssertionError(joined.payload)
                found.append(said(site, letter(Kind.TRAIN, plan_of(round), round)).payload)
                break
            except Killed:
                site.start()
    return found


@contextmanager
def killed_at(number: int, *, behind: bool) -> Iterator[Counter[str]]:
    """Inside, the process dies once: in front of, or behind, the durable write of this number. Counts writes."""
    calls: Counter[str] = Counter()
    originals: dict[str, Callable[..., None]] = {n: getattr(durable, n) for n in ("commit", "write", "append")}

    def dying(name: str) -> Callable[..., None]:
        def call(path: Path, *args: Any, **more: Any) -> None:
            calls[path.name.split("-")[0] if path.name.startswith("answer") else path.name] += 1
            dies = calls.total() == number
            if dies and not behind:
                raise Killed
            originals[name](path, *args, **more)
            if dies:
                raise Killed

        return call

    with mock.patch.multiple(durable, **{n: dying(n) for n in originals}):
        yield calls


def test_killed_at_every_durable_write_a_site_says_the_same_and_is_charged_once(tmp_path: Path) -> None:
    key = noise_key.of_run(tmp_path / "key")
    assert len(key) == noise_key.KEY_BYTES

    def run(name: str, number: int, *, behind: bool) -> tuple[list[bytes], Counter[str], Site]:
        site, job = site_in(tmp_path / name)
        shutil.copytree(tmp_path / "key", site.folder / "kept")
        with killed_at(number, behind=behind) as calls:
            return turns(site, job), calls, site

    undisturbed, calls, site = run("undisturbed", 0, behind=False)
    assert len(set(undisturbed)) == ROUNDS
    assert (calls[FILE], calls["answer"]) == (1 + ROUNDS, ROUNDS), calls
    charges = Ledger(site.folder).read().charges
    assert [c.round for c in charges] == [0, 1]
    for number in range(1, calls.total() + 1):
        for behind in (False, True):
            found, _, site = run(f"killed-{number}-{behind}", number, behind=behind)
            assert found == undisturbed, (number, behind)
            assert Ledger(site.folder).read().charges == charges, (number, behind)


def test_whatever_leaves_a_site_is_in_its_ledger_before(tmp_path: Path) -> None:
    site, job = site_in(tmp_path)
    kept, told = site.responder.disk.keep_answer, []

    def keep(asked: Any, payload: bytes) -> None:
        told.append((asked.round, [c.round for c in Ledger(site.folder).read().charges]))
        kept(asked, payload)

    site.responder.disk.keep_answer = keep  # type: ignore[method-assign]
    turns(site, job)
    assert told == [(0, [0]), (1, [0, 1])]


def test_an_update_is_the_clipped_one_with_noise_and_says_nothing_of_rows(tmp_path: Path) -> None:
    site, job = site_in(tmp_path)
    joined = said(site, letter(Kind.JOB, job))
    enrolled = messages.decode_update(joined.payload, {}, "fp32", max_bytes=2**20)
    assert (enrolled.num_examples, dict(enrolled.metrics)) == (1, {"held_out": 0.0}), "there are ten, and one"
    client = site.responder.runs.loaded(testing.RUN)
    assert client is not None
    turn = client.install(messages.decode_plan(plan_of(0), max_bytes=2**20))
    update = client.train(turn)
    assert update.num_examples == 1
    assert update.metrics.keys() <= {"steps"}
    numbers = torch.cat([x.flatten() for x in update.delta.values()])
    bare = client.steps(client.install(turn.plan)).delta
    assert float(torch.cat([x.flatten() for x in bare.values()]).norm()) > 0
    clipped = 0.5
    assert float(numbers.norm()) == pytest.approx(2.0 * clipped * len(numbers) ** 0.5, rel=0.5)


def test_a_site_measures_nothing_for_a_server(tmp_path: Path) -> None:
    site, job = site_in(tmp_path)
    said(site, letter(Kind.JOB, job))
    refused = said(site, letter(Kind.EVALUATE, plan_of(0, evaluate=True)))
    assert refused.kind is Kind.REFUSAL
    assert b"privacy_evaluation" in refused.payload


def test_a_site_whose_ledger_is_lost_takes_no_part(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    site, job = site_in(tmp_path)
    turns(site, job)
    (site.folder / FILE).unlink()
    site.start()
    refused = said(site, letter(Kind.JOB, job))
    assert refused.kind is Kind.REFUSAL
    assert "so nobody knows what these rows have cost in privacy; restore it from a backup" in caplog.text
    assert not (site.folder / FILE).exists()


def test_a_deployment_and_a_simulation_of_seeded_noise_end_alike(tmp_path: Path) -> None:
    seeded = {**PRIVACY, "noise": "seeded"}
    digest = Deployment(tmp_path / "deployed", privacy=seeded).digest()
    assert Deployment(tmp_path / "simulated", privacy=seeded).simulated() == digest
    assert Deployment(tmp_path / "fresh", privacy=PRIVACY).digest() != digest


def test_a_deployment_s_lines_say_what_is_public(tmp_path: Path) -> None:
    run = Deployment(tmp_path, privacy=PRIVACY, rounds=2)
    run.run()
    spent = [line["epsilon"] for line in run.metrics.lines]
    assert spent[0] == 0 < spent[1] < spent[2]
    assert all("train_loss" not in line for line in run.metrics.lines)
    assert set(run.metrics.lines[1]["weights"].values()) == {1}
