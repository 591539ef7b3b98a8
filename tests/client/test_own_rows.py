"""Rows that changed on disk are taken up at the next round, said and told; rows that are gone cost that round only."""

import json
import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from asked_site import SITE
from deployed import SITES, Deployment, Killed, kill_at

from fedft import run_file
from fedft.client import app, own_rows, sent_records
from fedft.client.disk import SiteDisk
from fedft.client.own_rows import OwnRows
from fedft.client.resident_models import ResidentModels
from fedft.client.site_settings import SiteAudit, SiteConfig
from fedft.client.train import Client
from fedft.errors import ConfigError, PlanRefused
from fedft.models import adapter_folder
from fedft.privacy.audit import canaries
from fedft.security.chained_lines import BrokenChain
from fedft.server.job import job_of

RUN = {
    "strategy": {"name": "flora"},
    "data": {"max_length": 32, "holdout": 0.25, "prompt": "Q: {prompt}\n"},
    "local": {"steps": 2, "batch_size": 2},
}


def write(file: Path, rows: int, word: str = "yes") -> None:
    lines = [json.dumps({"prompt": f"number {n}", "response": f" {word}"}) + "\n" for n in range(rows)]
    file.write_text("".join(lines), encoding="utf-8")


def site_of(folder: Path, base: Path, **data: Any) -> SiteConfig:
    write(folder / "train.jsonl", 8)
    return replace(
        SITE,
        site=replace(SITE.site, state=str(folder / "state")),
        model=replace(SITE.model, id=str(base)),
        data=replace(SITE.data, **{"train": str(folder / "train.jsonl"), **data}),
    )


@pytest.fixture
def client(tmp_path: Path, tiny_base: Path) -> Client:
    """A site's client that has joined a run: eight rows, two of them held out."""
    site = site_of(tmp_path, tiny_base)
    config = run_file.from_dict(RUN)
    return app.Joiner(site, SiteDisk(tmp_path / "state"), ResidentModels())(
        job_of(config, adapter_folder.load(str(tiny_base), "causal-lm").digest, b"")
    )


def counts(client: Client) -> tuple[int, int]:
    return len(client.train_rows), len(client.test_rows)


def test_rows_that_changed_are_loaded_and_all_else_stays(
    client: Client, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = (client.base, client.handle, client.memory, client.rows_digest)
    assert counts(client) == (6, 2)
    write(tmp_path / "train.jsonl", 12, "no")
    with caplog.at_level(logging.WARNING):
        client.renew_rows()
    assert counts(client) == (9, 3)
    assert (client.base, client.handle, client.memory) == before[:3]
    assert client.rows_digest != before[3]
    (said,) = [m for m in caplog.messages if "rows changed" in m]
    assert "9 to train on and 3 held out, before 6 and 2" in said
    assert client.rows_digest[:12] in said
    rows = client.train_rows
    client.renew_rows()
    assert client.train_rows is rows


def test_files_that_hold_the_same_are_neither_loaded_nor_hashed_twice(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hashed: list[Any] = []
    digest = own_rows._digest
    monkeypatch.setattr(own_rows, "_digest", lambda stamp: hashed.append(stamp) or digest(stamp))
    rows, file = client.train_rows, tmp_path / "train.jsonl"
    client.renew_rows()
    assert hashed == [], "not even looked into"
    shutil.copy(file, tmp_path / "copy")
    os.replace(tmp_path / "copy", file)
    for _ in range(2):
        client.renew_rows()
    assert len(hashed) == 1
    assert client.train_rows is rows
    assert not caplog.messages


@pytest.mark.parametrize("how", ["gone", "torn", "empty", "no field"])
def test_rows_that_cannot_be_used_cost_the_round_and_come_back(
    client: Client, tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    file, whole, rows = tmp_path / "train.jsonl", (tmp_path / "train.jsonl").read_bytes(), client.train_rows
    if how == "gone":
        file.unlink()
    elif how == "torn":
        file.write_bytes(whole[:-7])
    else:
        file.write_bytes(b"" if how == "empty" else whole.replace(b"response", b"answer"))
    for _ in range(2):
        with pytest.raises(PlanRefused) as e:
            client.renew_rows()
        assert e.value.code == "site_unfit"
        assert "yes" not in str(e.value)
    assert str(file) in caplog.text
    file.write_bytes(whole)
    client.renew_rows()
    assert client.train_rows is rows, "the same as before"
    write(file, 4)
    client.renew_rows()
    assert counts(client) == (3, 1)


def test_a_held_out_file_and_a_pattern_are_watched_too(tmp_path: Path, tiny_base: Path) -> None:
    write(tmp_path / "more-1.jsonl", 3)
    write(tmp_path / "held.jsonl", 2)
    site = site_of(tmp_path, tiny_base, train=str(tmp_path / "more-*.jsonl"), test=str(tmp_path / "held.jsonl"))
    rows = OwnRows(site, run_file.from_dict({"data": {"train": site.data.train, "test": site.data.test}}), "r")
    first, digests = rows.read(), {rows.digest}
    assert list(map(len, first)) == [3, 2]
    write(tmp_path / "more-2.jsonl", 4)
    assert list(map(len, rows.read())) == [7, 2]
    digests.add(rows.digest)
    write(tmp_path / "held.jsonl", 1)
    assert list(map(len, rows.read())) == [7, 1]
    assert len({*digests, rows.digest}) == 3


def test_what_changes_while_it_is_read_is_read_again(
    tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = site_of(tmp_path, tiny_base)
    rows = OwnRows(site, run_file.from_dict({"data": {"train": site.data.train, "holdout": 0.0}}), "r")
    of_site = own_rows.client_datasets.of_site
    grows: Iterator[int] = iter([20])

    def meanwhile(*args: Any) -> Any:
        found = of_site(*args)
        for n in grows:
            write(tmp_path / "train.jsonl", n)
        return found

    monkeypatch.setattr(own_rows.client_datasets, "of_site", meanwhile)
    assert len(rows.read()[0]) == 20
    alone = OwnRows(site, rows.config, "r")
    alone.read()
    assert rows.digest == alone.digest, "the digest is of what was read"


def test_a_site_plants_what_its_own_file_says_and_keeps_the_plan_to_itself(tmp_path: Path, tiny_base: Path) -> None:
    """Whatever a server's `[audit]` says; the rows stand in front, and another plan is refused later on."""
    plain, state = site_of(tmp_path, tiny_base), tmp_path / "state"
    job = run_file.from_dict({"data": {"train": plain.data.train, "holdout": 0.0}, "audit": {"canaries": 50}})
    before, _ = OwnRows(plain, job, "r").read()
    site = replace(plain, site=replace(plain.site, state=str(state)), audit=SiteAudit(canaries=8, repeats=[2], seed=5))
    rows = OwnRows(site, job, "r")
    train, _ = rows.read()
    assert train[: len(before)] == before
    plan = canaries.read(state)
    assert plan is not None
    assert [r["response"] for r in train[len(before) :]] == [c.secret for c in plan.of(plain.site.name)]
    assert len(train) - len(before) == 2 * sum(c.planted for c in plan.canaries) > 0
    assert (state / canaries.FILE).stat().st_mode & 0o777 == 0o600
    assert rows.read()[0] == train
    with pytest.raises(ConfigError, match="is another plan than"):
        OwnRows(replace(site, audit=SiteAudit(canaries=9)), job, "r").read()
    seeds = set()
    for name in "ab":
        drawn = replace(site, site=replace(site.site, state=str(tmp_path / name)), audit=SiteAudit(canaries=8))
        first, _ = OwnRows(drawn, job, "r").read()
        assert OwnRows(drawn, job, "r").read()[0] == first, "a seed that is drawn stays"
        seeds.add(canaries.read(tmp_path / name).seed)  # type: ignore[union-attr]
    assert len(seeds) == 2


class Renewed:
    """Rows of a toy client, which change when a test says so."""

    digest = "a" * 64
    _new: Any = None

    def change(self, rows: int, digest: str) -> None:
        """From the next look on."""
        self._new, self._digest = [None] * rows, digest

    def renewed(self, base: Any) -> Any:
        """See `OwnRows`."""
        if self._new is None:
            return None
        found, self._new, self.digest = (self._new, self._new[:1]), None, self._digest
        return found


def watched(folder: Path) -> tuple[Deployment, dict[str, Renewed]]:
    """A deployment whose sites look at their rows."""
    run = Deployment(folder)
    rows = {name: Renewed() for name in SITES}
    for name, site in run.sites.items():
        join = site.responder.runs.join

        def joined(job: Any, name: str = name, join: Any = join) -> Any:
            client = join(job)
            client.rows = rows[name]
            return client

        site.responder.runs.join = joined
    return run, rows


def test_the_server_hears_of_new_rows_with_the_next_update_and_the_record_holds_them(tmp_path: Path) -> None:
    run, rows = watched(tmp_path)
    told = run.federation.observe

    def observe(kind: str, info: Any) -> None:
        told(kind, info)
        if kind == "round" and info["round"] == 2:
            rows["bert"].change(25, "b" * 64)

    run.federation.observe = observe
    run.run()
    weights = [line["weights"] for line in run.metrics.lines[1:]]
    assert [w["bert"] for w in weights] == [20, 20, 25, 25]
    assert {w["anna"] for w in weights} == {10}
    state = tmp_path / "sites" / "bert"
    lines = [json.loads(x) for x in (state / sent_records.FILE).read_text().splitlines()]
    trained = [(e["rows"], e["data"]) for e in lines if e["kind"] == "train"]
    assert trained == [(20, "a" * 64)] * 2 + [(25, "b" * 64)] * 2
    assert sent_records.verify(state).lines == len(lines)
    altered = (state / sent_records.FILE).read_text().replace("b" * 64, "c" * 64, 1)
    (state / sent_records.FILE).write_text(altered)
    with pytest.raises(BrokenChain):
        sent_records.verify(state)


def test_rows_that_do_not_change_change_no_bytes(tmp_path: Path) -> None:
    assert watched(tmp_path / "a")[0].digest() == Deployment(tmp_path / "b").simulated()


def test_a_later_attempt_at_a_round_trains_on_the_rows_of_then(tmp_path: Path) -> None:
    """The answer that was kept is of other rows: what is recorded of it would not be so."""
    run, rows = watched(tmp_path)

    kill_at(run, "admitted", 1)
    with pytest.raises(Killed):
        run.run()
    for site in run.sites.values():
        while site.responder.work(0):
            pass
    rows["carl"].change(7, "c" * 64)
    again = Deployment(tmp_path, sites=run.sites)
    again.run()
    lines = [json.loads(x) for x in (tmp_path / "sites" / "carl" / sent_records.FILE).read_text().splitlines()]
    of_round = [(e["rows"], e["data"][0]) for e in lines if e["kind"] == "train" and e["round"] == 1]
    assert of_round[-1] == (7, "c")
    assert again.metrics.lines[2]["weights"]["carl"] == 7
