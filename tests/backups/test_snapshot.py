"""A backup of a run, or of a site, that is in use: it is whole, and the run goes on from it to the same bytes."""

import json
import logging
import os
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from deployed import SITES, Deployment
from typer.testing import CliRunner

from fedft import durable
from fedft.backups import archive, snapshot
from fedft.cli.main import app
from fedft.client import sent_records
from fedft.client.privacy_ledger import Ledger
from fedft.errors import ConfigError, FedftError, PlanRefused, StateDamaged
from fedft.server import archive_check, attempt_numbers
from fedft.server.archive import Archive
from fedft.server.checkpoint import Store


def command(*args: object) -> str:
    done = CliRunner().invoke(app, [str(a) for a in args])
    assert done.exit_code == 0, (done.output, done.exception)
    return done.output


def deployment(folder: Path, name: str = "scaffold", **more: Any) -> Deployment:
    made = Deployment(folder, name, **more)
    (folder / "config.toml").write_text("")  # which makes it a run's folder
    return made


def taken_at(d: Deployment, event: str, number: int, path: Path) -> None:
    """Take a backup when the run says `event` of this round, in the middle of it."""
    told = d.federation.observe

    def observe(kind: str, info: Mapping[str, Any]) -> None:
        told(kind, info)
        if kind == event and info["round"] == number and not path.exists():
            command("backup", d.metrics._path.parent, "--to", path)

    d.federation.observe = observe


def goes_on(first: Deployment, strategy: str, folder: Path) -> Deployment:
    """The run that is restored from `b.tar`, of round 2, at its end: with the bytes of `first` and of a simulation."""
    wanted = first.digest()
    assert wanted == Deployment(folder / "simulated", strategy).simulated()
    shutil.rmtree(folder / "run" / "state")
    command("restore", folder / "b.tar", "--to", folder / "again")
    again = Deployment(folder / "again", strategy, sites=first.sites)
    assert again.metrics.lines[-1]["version"] == 2
    assert again.digest() == wanted
    return again


@pytest.mark.parametrize("event", ["asking", "admitted"])
def test_a_run_goes_on_from_a_backup_to_the_same_bytes(tmp_path: Path, event: str) -> None:
    """Its sites have gone on meanwhile, to the end, and have answered later attempts."""
    first = deployment(tmp_path / "run")
    taken_at(first, event, 2, tmp_path / "b.tar")
    again = goes_on(first, "scaffold", tmp_path)
    assert [line["participants"] for line in again.metrics.lines[1:]] == [list(SITES)] * 4
    assert not [r for line in again.metrics.lines for r in line["refused"]]
    assert [line["state_digest"] for line in again.metrics.lines] == [s["state_digest"] for s in first.metrics.lines]


def test_an_old_run_folder_that_was_copied_by_hand_needs_no_hand_work(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The number of its last attempt is an old one: the sites say `stale` once, and the numbers jump."""
    half = deployment(tmp_path / "run", rounds=2)
    half.run()
    shutil.copytree(tmp_path / "run", tmp_path / "old", ignore=shutil.ignore_patterns("sites"))
    for site in half.sites.values():
        site.config = Deployment(tmp_path / "other").config
    full = Deployment(tmp_path / "run", "scaffold", sites=half.sites)
    wanted = full.digest()
    with caplog.at_level(logging.WARNING):
        again = Deployment(tmp_path / "old", "scaffold", sites=half.sites)
        assert again.digest() == wanted
    said = [m for m in caplog.messages if "asking anew" in m]
    assert len(said) == 1
    assert all(line["participants"] == list(SITES) for line in again.metrics.lines[1:])
    refused = [r["code"] for line in again.metrics.lines for r in line["refused"]]
    assert refused == ["stale"] * 3, "told of once; nobody is blamed, and every round has all of them"
    assert not again.loop._contradicted


def test_a_site_makes_the_numbers_jump_once_a_round_and_not_past_all_bounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = deployment(tmp_path, "fedit", rounds=3, quorum=0.5)

    def stale(*_: object) -> bytes:
        raise PlanRefused("stale", "for ever")

    monkeypatch.setattr(run.sites["bert"].responder, "_train", stale)
    jumps: list[int] = []
    jump = run.store.jump
    monkeypatch.setattr(run.store, "jump", lambda: jumps.append(run.store._attempts._last() or 0) or jump())
    run.run()
    assert len(jumps) == 3
    assert [line["participants"] for line in run.metrics.lines[1:]] == [["anna", "carl"]] * 3
    monkeypatch.setattr(attempt_numbers, "MAX_AHEAD", 10 * attempt_numbers.JUMP)
    assert sum(jump() for _ in range(20)) in (6, 7, 8, 9), "some are behind it already"
    last = run.store.next_attempt()
    assert not jump()
    assert run.store.next_attempt() == last + 1 < 2**32


def test_a_run_whose_attempts_are_lost_goes_far_ahead_and_a_new_one_does_not(tmp_path: Path) -> None:
    run = deployment(tmp_path, "fedit", rounds=2)
    assert run.store.next_attempt() == 0
    assert Store(tmp_path / "state").next_attempt() == 1
    run.run()
    (tmp_path / "state" / "attempt").unlink()
    assert Store(tmp_path / "state").next_attempt() > 10**9
    (tmp_path / "state" / "attempt").write_bytes(b"")
    assert Store(tmp_path / "state").next_attempt() > 10**9


def test_a_site_goes_on_from_its_backup(tmp_path: Path) -> None:
    half = deployment(tmp_path, rounds=2)
    half.run()
    bert = tmp_path / "sites" / "bert"
    (bert / "lock").write_bytes(b"")
    (bert / "contact").write_bytes(b"")
    with open(bert / "sent.jsonl", "ab") as f:
        f.write(b'{"half')
    command("backup", bert, "--to", tmp_path / "bert.tar")
    shutil.rmtree(bert)
    said = command("restore", tmp_path / "bert.tar", "--to", bert)
    assert "goes on from there" in said
    assert not (bert / "lock").exists()
    assert not (bert / "contact").exists(), "its time would say that the server was heard just now"
    assert sent_records.verify(bert).torn == 0
    again = Deployment(tmp_path, "scaffold")
    assert again.digest() == Deployment(tmp_path / "simulated", "scaffold").simulated()
    assert not [line for line in again.metrics.lines if "memory_lost" in line]


def test_one_time_secrets_of_secure_sums_are_in_no_backup_of_a_site(tmp_path: Path) -> None:
    """A site that got them back would mask another vector with a mask that it has used."""
    site = tmp_path / "site"
    (site / "kept").mkdir(parents=True)
    names = [f"{kind}-{'a' * 16}.fedft" for kind in ("secagg", "integers")]
    for name in [*names, "sent.jsonl"]:
        (site / name).write_bytes(b"")
    with snapshot.taken(site) as found:
        assert [p.name for p in found.parts] == ["sent.jsonl"]
        assert sorted(found.left_out) == sorted(names)


def test_the_keys_of_a_site_s_noise_are_in_no_backup_and_its_ledger_is(tmp_path: Path) -> None:
    """Who has the key subtracts the noise from what the site has sent."""
    privacy = {"mode": "local-dp", "clip": 0.5, "noise_multiplier": 1.0, "delta": 1e-3}
    run = Deployment(tmp_path, privacy=privacy, rounds=1)
    run.run()
    bert = tmp_path / "sites" / "bert"
    assert list(bert.rglob("privacy.key"))
    assert "privacy.key" in command("backup", bert, "--to", tmp_path / "bert.tar", "--json")
    shutil.rmtree(bert)
    command("restore", tmp_path / "bert.tar", "--to", bert)
    assert not list(bert.rglob("privacy.key"))
    assert len(Ledger(bert).read().charges) == 1


def test_a_site_that_restored_an_old_memory_is_told_of(tmp_path: Path) -> None:
    Deployment(tmp_path, "scaffold", rounds=1).run()
    bert = tmp_path / "sites" / "bert"
    command("backup", bert, "--to", tmp_path / "bert.tar")
    Deployment(tmp_path, "scaffold", rounds=3).run()
    shutil.rmtree(bert)
    command("restore", tmp_path / "bert.tar", "--to", bert)
    run = Deployment(tmp_path, "scaffold")
    run.run()
    assert [info for kind, info in run.events if kind == "memory_lost"] == [{"round": 3, "client": "bert"}]


def test_the_newest_whole_generation_is_taken_and_a_backup_of_none_is_none(tmp_path: Path) -> None:
    deployment(tmp_path / "run", rounds=3).run()
    state = tmp_path / "run" / "state"
    newest = state / "gen-00000003.fedft"
    newest.write_bytes(newest.read_bytes()[:-1])
    said = json.loads(command("backup", tmp_path / "run", "--to", tmp_path / "b.tar", "--json"))
    assert [n for n in said["files"] if "gen-" in n] == ["state/gen-00000002.fedft"]
    assert not {"state/attempt", "state/lock"} & said["files"].keys()
    assert {"config.toml", "metrics.jsonl"} <= said["files"].keys()
    assert "sites/" in said["left_out"]
    for path in state.glob("gen-*"):
        path.write_bytes(b"x")
    with pytest.raises(StateDamaged, match="nothing to back up"), snapshot.taken(tmp_path / "run"):
        pass


def test_a_state_that_only_grows_is_backed_up_with_its_history_and_goes_on(tmp_path: Path) -> None:
    first = deployment(tmp_path / "run", "mezo")
    taken_at(first, "admitted", 2, tmp_path / "b.tar")
    goes_on(first, "mezo", tmp_path)


def test_a_generation_whose_history_is_damaged_is_not_backed_up(tmp_path: Path) -> None:
    deployment(tmp_path / "run", "mezo", rounds=3).run()
    with open(tmp_path / "run" / "state" / "history", "r+b") as f:
        f.truncate(f.seek(0, 2) - 1)
    said = json.loads(command("backup", tmp_path / "run", "--to", tmp_path / "b.tar", "--json"))
    assert [n for n in said["files"] if "gen-" in n] == ["state/gen-00000002.fedft"]
    assert "state/history" in said["files"]


def test_an_archive_of_past_rounds_goes_on_from_a_backup(tmp_path: Path) -> None:
    """A round that is archived in the middle of the backup has no line in it, and then a file that has none."""

    def archived(folder: Path, **more: Any) -> Deployment:
        run = deployment(folder, "fedit", **more)
        run.store = run.federation.store = Store(folder / "state", Archive(folder / "archive", run.config.codec.up))
        return run

    first = archived(tmp_path / "run")
    taken_at(first, "admitted", 2, tmp_path / "b.tar")
    digest = first.digest()
    command("restore", tmp_path / "b.tar", "--to", tmp_path / "again")
    assert archive_check.verify(tmp_path / "again").rounds == 2
    again = archived(tmp_path / "again", sites=first.sites)
    assert again.digest() == digest
    found = archive_check.verify(tmp_path / "again")
    assert (found.rounds, found.missing, found.again, found.strays) == (4, [], [], [])
    (tmp_path / "run" / "archive" / "round-00000009.fedft").write_bytes(b"of a crash")
    with snapshot.taken(tmp_path / "run") as taken:
        assert [p.name for p in taken.parts if p.name.startswith("archive/")][::5] == [
            "archive/index.jsonl",
            "archive/round-00000009.fedft",
        ]


def test_links_and_strange_names_are_left_out_and_said(tmp_path: Path) -> None:
    deployment(tmp_path / "run", "fedit", rounds=1).run()
    (tmp_path / "secret").write_text("s")
    (tmp_path / "run" / "link").symlink_to(tmp_path / "secret")
    (tmp_path / "run" / "ä b").write_text("")
    os.mkfifo(tmp_path / "run" / "pipe")
    (tmp_path / "run" / "model").mkdir()
    with snapshot.taken(tmp_path / "run") as found:
        assert {"link", "ä b", "pipe", "model/"} <= {*found.left_out}
        assert not {"link", "ä b", "pipe"} & {p.name for p in found.parts}


def test_a_folder_of_neither_kind_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="neither a run folder"), snapshot.taken(tmp_path):
        pass


@pytest.mark.parametrize("kind", ["run", "site"])
def test_what_goes_between_two_looks_is_one_line_if_it_never_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    deployment(tmp_path, "fedit", rounds=1).run()
    folder = tmp_path if kind == "run" else tmp_path / "sites" / "bert"
    monkeypatch.setattr(snapshot, "AGAIN_S", 0.0)
    looks: list[int] = []

    def gone(*of: Any) -> Any:
        looks.append(1)
        raise FileNotFoundError

    with monkeypatch.context() as m:
        m.setattr(snapshot, "_stamps", gone)
        with pytest.raises(ConfigError, match="changes all the time; try again"), snapshot.taken(folder):
            pass
    assert len(looks) == snapshot.TRIES
    with snapshot.taken(folder) as found:
        assert found.parts


def test_every_backup_of_a_busy_run_can_be_started_from(tmp_path: Path) -> None:
    """Generations come and go, and the journal with them, while backups are taken."""
    run = deployment(tmp_path / "run", "fedit", rounds=40)
    worker = threading.Thread(target=run.run)
    worker.start()
    taken, refused = 0, []
    while worker.is_alive() and taken < 12:
        try:
            with snapshot.taken(tmp_path / "run") as found:
                archive.write(tmp_path / f"{taken}.tar", found.kind, found.parts)
        except FedftError as e:
            refused.append(str(e))
            continue
        archive.restore(tmp_path / f"{taken}.tar", tmp_path / f"to{taken}")
        state = tmp_path / f"to{taken}" / "state"
        latest = Store(state).latest()
        assert latest is not None
        journal = [p for p in (state / "journal").rglob("*") if p.is_file()]
        assert {p.parent.name for p in journal} <= {f"{latest[0].version:08d}"}
        assert all(durable.verified(p) is not None for p in journal)
        taken += 1
    worker.join()
    assert taken > 2
    assert all("try again" in said or "no generation" in said for said in refused), "it has none before round 0"
