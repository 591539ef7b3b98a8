"""Durable state: whatever instant the power goes, the newest committed generation is what is read."""

import hashlib
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from fedft import durable
from fedft.arithmetic import tensors
from fedft.backups import held_files
from fedft.contract import State
from fedft.errors import OtherVersion, RunPaused, StateDamaged
from fedft.server.checkpoint import Store
from fedft.server.kept_generations import kept
from fedft.server.spare_files import LARGE


def state(version: int) -> State:
    return State(version, {"b": torch.full((3,), float(version)), "a": torch.zeros(0, 4)})


def test_what_was_saved_is_what_is_found(tmp_path: Path) -> None:
    Store(tmp_path).save(state(4), {"norms": [[1.0]]})
    found = Store(tmp_path).latest()
    assert found is not None
    assert (found[0].version, found[1]) == (4, {"norms": [[1.0]]})
    assert tensors.digest(found[0].tensors) == tensors.digest(state(4).tensors)


def test_a_new_folder_has_no_state(tmp_path: Path) -> None:
    assert Store(tmp_path).latest() is None


def test_a_damaged_generation_is_put_aside_and_the_one_before_is_used(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for v in (0, 1):
        store.save(state(v), {})
    newest = tmp_path / "gen-00000001.fedft"
    newest.write_bytes(newest.read_bytes()[:-1] + b"\x7f")
    found = Store(tmp_path).latest()
    assert found is not None
    assert found[0].version == 0
    assert (tmp_path / "gen-00000001.damaged").exists()


@pytest.mark.parametrize(
    ("tensors_", "meta"),
    [
        ({"layers.0.lora_A": torch.ones(2)}, {"version": "3", "notes": "{}"}),  # before there were drawers
        ({"/x": torch.ones(2)}, {"format": "9"}),
        ({"/x": torch.ones(2)}, None),
    ],
)
def test_the_state_of_another_version_is_neither_called_damaged_nor_renamed(
    tmp_path: Path, tensors_: dict[str, torch.Tensor], meta: dict[str, str] | None
) -> None:
    (tmp_path / "journal" / "00000007").mkdir(parents=True)
    durable.commit(tmp_path / "gen-00000003.fedft", save(tensors_, meta))
    before = {p.name: p.is_file() and p.read_bytes() for p in tmp_path.rglob("*")}
    for recover in (True, False):
        with pytest.raises(OtherVersion, match=r"gen-00000003\.fedft: written by another version of fedft") as e:
            Store(tmp_path).latest(recover=recover)
        assert "damaged" not in str(e.value)
        assert "\n" not in str(e.value)
        assert e.value.exit_code == 65
    assert {p.name: p.is_file() and p.read_bytes() for p in tmp_path.rglob("*")} == before


def test_a_torn_write_is_never_read(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.save(state(0), {})
    (tmp_path / "gen-00000001.fedft.tmp").write_bytes(b"half a generation")
    found = Store(tmp_path).latest()
    assert found is not None
    assert found[0].version == 0


def test_no_generation_that_verifies_refuses_to_start(tmp_path: Path) -> None:
    Store(tmp_path).save(state(0), {})
    (tmp_path / "gen-00000000.fedft").write_bytes(b"nonsense")
    for _ in range(2):  # and again: the damaged file must not look like a fresh folder
        with pytest.raises(StateDamaged):
            Store(tmp_path).latest()


def test_the_last_three_generations_are_kept_and_fewer_of_older_ones(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for v in range(24):
        store.save(state(v), {})
    assert generations(tmp_path) == [0, 8, 16, 20, 21, 22, 23]


def generations(folder: Path) -> list[int]:
    return sorted(int(p.stem.removeprefix("gen-")) for p in folder.glob("gen-*.fedft"))


def test_generations_that_are_kept_grow_with_the_logarithm_of_the_rounds_and_none_is_missed_later() -> None:
    there: set[int] = set()
    for newest in range(1100):
        there = {v for v in {*there, newest} if kept(v, newest)}
        assert there == {v for v in range(newest + 1) if kept(v, newest)}
        assert {0, newest, max(0, newest - 1), max(0, newest - 2)} <= there
        assert len(there) <= 3 + newest.bit_length()


NAMES = ["clinic-3", "a/b", "..", ".", "ä ö", "%2e", "x", "x.tmp", "X", "n" * 300]


def test_an_admitted_update_survives_under_any_roster_name_and_names_do_not_meet(tmp_path: Path) -> None:
    for client in NAMES:
        Store(tmp_path).journal(2, client, client.encode())
    assert [Store(tmp_path).read(2, c) for c in NAMES] == [c.encode() for c in NAMES]
    assert {p.parent.name for p in tmp_path.rglob("u-*")} == {"00000002"}
    assert len({p.name.lower() for p in tmp_path.rglob("u-*")}) == len(NAMES)


def test_a_commit_clears_the_journal_of_its_round_only(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.journal(0, "a", b"0")
    store.journal(1, "a", b"1")
    (tmp_path / "journal" / ".DS_Store").write_bytes(b"not ours")
    store.save(state(1), {})
    assert (store.read(0, "a"), store.read(1, "a")) == (None, b"1")


def test_a_torn_journal_entry_does_not_count(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.journal(0, "a", b"abc")
    (path,) = tmp_path.rglob("u-*")
    path.write_bytes(path.read_bytes()[:-1])
    assert store.read(0, "a") is None


def test_a_full_disk_pauses_the_run_and_keeps_the_old_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    store.save(state(0), {})

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunPaused, match="No space left"):
        store.save(state(1), {})
    monkeypatch.undo()
    found = Store(tmp_path).latest()
    assert found is not None
    assert found[0].version == 0


def test_verified_is_none_for_what_is_not_there(tmp_path: Path) -> None:
    assert durable.verified(tmp_path / "nothing") is None


def test_what_is_long_or_comes_in_parts_is_hashed_whole(tmp_path: Path) -> None:
    parts = [b"head", memoryview(bytes(2 * durable.PIECE + 5)), b"", b"tail"]
    durable.commit(tmp_path / "x", *parts)
    raw = (tmp_path / "x").read_bytes()
    assert raw[durable.DIGEST_BYTES :] == b"".join(parts)
    assert raw[: durable.DIGEST_BYTES] == hashlib.sha256(b"".join(parts)).digest()
    assert durable.verified(tmp_path / "x") == b"".join(parts)


def test_a_digest_that_is_known_is_taken_and_not_computed_again(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.journal(0, "a", b"abc", hashlib.sha256(b"abc").hexdigest())
    store.journal(0, "b", b"abc", "00" * 32)
    assert (store.read(0, "a"), store.read(0, "b")) == (b"abc", None)


def _round(store: Store, version: int) -> None:
    """All that a round of two clients writes."""
    store.keep_plans(version, {"a": b"1", "b": b"2"})
    store.keep_members(version, {})
    store.next_attempt()
    for client in "ab":
        store.journal(version, client, b"x" * 100)
    store.save(state(version + 1), {})


def test_a_simulation_waits_for_the_disk_once_a_round_and_a_deployment_for_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file and its folder are two waits; a new folder of a round is one more."""
    waits: list[int] = []
    monkeypatch.setattr(os, "fsync", waits.append)
    found = {}
    for sync_all in (False, True):
        store = Store(tmp_path / str(sync_all), sync_all=sync_all)
        store.save(state(0), {})
        waits.clear()
        _round(store, 0)
        found[sync_all] = len(waits)
    assert found == {False: 2, True: 13}


def test_what_a_crash_of_the_machine_takes_of_a_simulated_round_is_made_again(tmp_path: Path) -> None:
    store = Store(tmp_path, sync_all=False)
    store.save(state(0), {})
    store.keep_plans(0, {"a": b"1"})
    store.journal(0, "a", b"abc")
    for path in (tmp_path / "journal" / "00000000").iterdir():
        path.write_bytes(b"")  # as a file system leaves a file whose content never reached the disk
    again = Store(tmp_path, sync_all=False)
    assert again.latest() is not None
    assert (again.plans(0), again.read(0, "a")) == ({}, None)


def _kept(folder: Path) -> list[Path]:
    return sorted((folder / "journal").glob("spare/*"))


def test_a_simulation_writes_over_the_journal_of_a_round_that_is_over(tmp_path: Path) -> None:
    """The same file, by its number, under another name, with nothing of what was in it; small ones are made anew."""
    store, long, short = Store(tmp_path, sync_all=False), b"1" * (2 * LARGE), b"2" * LARGE
    store.keep_plans(0, {"a": b"1"})
    store.journal(0, "a", long)
    (before,) = (tmp_path / "journal" / "00000000").glob("u-*")
    number = before.stat().st_ino
    store.save(state(1), {})
    assert [f.stat().st_ino for f in _kept(tmp_path)] == [number]
    store.journal(1, "b", short, hashlib.sha256(short).hexdigest())
    (after,) = (tmp_path / "journal" / "00000001").glob("u-*")
    assert (after.stat().st_ino, _kept(tmp_path)) == (number, [])
    assert after.read_bytes() == hashlib.sha256(short).digest() + short
    assert Store(tmp_path).read(1, "b") == short


def test_a_deployment_keeps_nothing_of_a_round_that_is_over_nor_a_simulation_of_one_that_is_done_again(
    tmp_path: Path,
) -> None:
    for sync_all in (True, False):
        store = Store(tmp_path / str(sync_all), sync_all=sync_all)
        store.journal(0, "a", b"1" * LARGE)
        if sync_all:
            store.save(state(1), {})
        else:
            store.drop(0)
        assert not list((tmp_path / str(sync_all) / "journal").rglob("*"))


def test_what_is_kept_to_be_written_over_goes_with_the_run_and_with_a_process_that_was_killed(tmp_path: Path) -> None:
    for end in (Store.close, lambda store: Store(tmp_path, sync_all=False).latest()):
        store = Store(tmp_path, sync_all=False)
        store.journal(0, "a", b"1" * LARGE)
        store.save(state(1), {})
        assert _kept(tmp_path)
        end(store)
        assert not (tmp_path / "journal" / "spare").exists()
        store.journal(1, "a", b"2" * LARGE)  # whoever took the files away: new ones are made
        assert store.read(1, "a") == b"2" * LARGE
        store.drop(0)


def test_a_file_that_is_read_or_has_another_name_is_not_written_over(tmp_path: Path) -> None:
    store = Store(tmp_path, sync_all=False)
    for client in "abc":
        store.journal(0, client, client.encode() * LARGE)
    a, b, _ = sorted((tmp_path / "journal" / "00000000").iterdir())
    os.link(b, tmp_path / "link")
    content = a.read_bytes(), b.read_bytes()
    with open(a, "rb") as read:
        held_files.hold(read)
        store.save(state(1), {})
        assert len(_kept(tmp_path)) == 1
        for client in "abc":
            store.journal(1, client, b"d" * LARGE)
        assert (read.read(), (tmp_path / "link").read_bytes()) == content
