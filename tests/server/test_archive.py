"""The archive of past rounds: every committed round is in it, whole, once; and from it the run can be computed anew."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import scenario
from deployed import SITES, Deployment, Killed, kill_at
from faults import Odds
from sampled_kills import sample
from scenario import NAMES, Scenario

from fedft import durable, run_file, testing
from fedft.cli import main
from fedft.contract import State
from fedft.errors import ConfigError, RunPaused, StateDamaged
from fedft.security.chained_lines import FIRST
from fedft.server import checkpoint
from fedft.server.archive import FOLDER, INDEX, Archive, blocks
from fedft.server.archive_check import BrokenArchive, replayed, verify
from fedft.server.checkpoint import Store
from fedft.server.robust_sum import RobustSum


def archived(folder: Path, name: str = "fedit", **more: Any) -> Deployment:
    """A deployment that archives, in a folder or again in it."""
    run = Deployment(folder, name, **more)
    run.store = run.federation.store = Store(folder / "state", Archive(folder / FOLDER, run.config.codec.up))
    (folder / "config.toml").touch()
    return run


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / FOLDER / INDEX).read_text().splitlines()]


def replay(folder: Path, run: Deployment) -> State:
    """The last state, from the first one and the archive alone."""
    federation = run.federation
    state = federation.recipe.first_state(federation.layout, federation.rank, testing.SEED)
    for line in lines(folder):
        assert state.digest == line["before"]
        path = folder / FOLDER / line["file"]
        state = replayed(path, federation.recipe, federation.layout, state, federation.guard)
        assert state.digest == line["after"]
    return state


@pytest.mark.parametrize("rule", ["norm_clip", "geometric_median"])
def test_a_robust_round_is_computed_anew_with_its_guard_and_not_without(tmp_path: Path, rule: str) -> None:
    guard = RobustSum(run_file.from_dict({"robust": {"rule": rule}, "server": {"seed": testing.SEED}}))
    run = archived(tmp_path, federation={"guard": guard})
    wanted = run.run().digest
    assert replay(tmp_path, run).digest == wanted
    first = lines(tmp_path)[0]
    recipe, layout = run.federation.recipe, run.federation.layout
    state = recipe.first_state(layout, run.federation.rank, testing.SEED)
    assert replayed(tmp_path / FOLDER / first["file"], recipe, layout, state).digest != first["after"]


@pytest.mark.parametrize("name", ["fedit", "fedopt", "scaffold", "flora", "fedkseed", "hetlora"])
def test_every_state_can_be_computed_anew_from_the_archive_and_the_state_before(tmp_path: Path, name: str) -> None:
    run = archived(tmp_path, name)
    state = run.run()
    again = replay(tmp_path, run)
    assert again.digest == state.digest
    assert again.own.keys() == state.own.keys()
    found = verify(tmp_path)
    assert (found.rounds, found.missing, found.again, found.strays, found.torn) == (4, [], [], [], 0)
    assert found.bytes == sum(p.stat().st_size for p in (tmp_path / FOLDER).glob("round-*"))
    assert lines(tmp_path)[0]["last"] == FIRST
    said = [b.said["what"] for b in blocks(tmp_path / FOLDER / "round-00000002.fedft")]
    assert said == ["round", *["plan"] * 3, *["update"] * 3]
    assert Deployment(tmp_path / "plain", name).run().digest == state.digest, "archiving changes a run"


def test_a_crash_at_any_call_of_the_disk_loses_no_round_and_adds_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call, step = sample(2, 6)
    while crashed(tmp_path / str(call), monkeypatch, call):
        call += step
    assert call > 80, "the disk was called too rarely for this to be a test"


def archiving(seed: int, folder: Path, monkeypatch: pytest.MonkeyPatch, **fixed: Any) -> Scenario:
    """A run under faults, carried to its end with an archive."""
    run = Scenario(seed, folder, **fixed)
    monkeypatch.setattr(scenario, "Store", lambda f: Store(f, Archive(f.parent / FOLDER, run.up, lambda: 1.8e9)))
    with scenario.silent():
        run.run()
    return run


def crashed(folder: Path, monkeypatch: pytest.MonkeyPatch, call: int) -> bool:
    """A run with a crash at this call of the disk, whose archive leads to its last state; whether there was a crash."""
    run = archiving(call, folder, monkeypatch, odds=Odds(), strategy="flora", names=NAMES[:2], rounds=2, kill_at=call)
    found = verify(folder)
    assert (found.rounds, found.again, found.strays) == (2, [], [])
    state = run.recipe.first_state(run.layout, max(run.config.ranks()), testing.SEED)
    for line in lines(folder):
        state = replayed(folder / FOLDER / line["file"], run.recipe, run.layout, state)
        assert state.digest == line["after"]
    newest = Store(folder / "state").latest(recover=False)
    assert newest is not None
    assert (newest[0].version, newest[0].digest) == (2, state.digest)
    return run.world.disk_calls >= call


def test_under_all_faults_what_is_archived_is_what_was_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torn generations, too: a round that is done again from the one before stands there twice, and leads on."""
    for seed in (3, 4, 5):
        run = archiving(seed, folder := tmp_path / str(seed), monkeypatch)
        found, newest = verify(folder), Store(folder / "state").latest(recover=False)
        assert newest is not None
        assert newest[0].digest == lines(folder)[-1]["after"]
        assert {line["round"] for line in lines(folder)} | {*found.missing} == {*range(run.rounds)}


def test_a_key_that_is_turned_on_later_keeps_what_comes_from_then_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = Deployment(tmp_path)
    kill_at(first, "line", 2)
    with pytest.raises(Killed):
        first.run()
    run = archived(tmp_path, sites=first.sites)
    run.run()
    assert [line["round"] for line in lines(tmp_path)] == [2, 3]
    assert "round 1 is not archived: its journal is not there any more" in caplog.text
    assert verify(tmp_path).missing == []


@pytest.mark.parametrize("what", ["payload", "weights", "line", "order", "gone", "cut"])
def test_whatever_is_changed_is_named(tmp_path: Path, what: str) -> None:
    archived(tmp_path).run()
    index, file = tmp_path / FOLDER / INDEX, tmp_path / FOLDER / "round-00000001.fedft"
    data, kept = file.read_bytes(), index.read_bytes().splitlines(keepends=True)
    wanted = "round-00000001.fedft"
    if what == "payload":
        file.write_bytes(data[:-5] + bytes([data[-5] ^ 1]) + data[-4:])
    elif what == "weights":
        file.write_bytes(data.replace(b'"anna": 10', b'"anna": 90'))
        assert file.read_bytes() != data
    elif what == "line":
        index.write_bytes(b"".join([kept[0].replace(b'"round": 0', b'"round": 7'), *kept[1:]]))
        wanted = "round-00000000.fedft: is of another round"
    elif what == "order":
        index.write_bytes(b"".join([kept[0], kept[2], kept[1], kept[3]]))
        wanted = "line 2: last is"
    elif what == "gone":
        file.unlink()
    else:
        file.write_bytes(data[: len(data) // 2])
    with pytest.raises(BrokenArchive, match=wanted) as e:
        verify(tmp_path)
    assert "\n" not in str(e.value)


def test_another_state_is_not_taken_for_the_one_before(tmp_path: Path) -> None:
    run = archived(tmp_path)
    run.run()
    state = run.federation.recipe.first_state(run.federation.layout, run.federation.rank, testing.SEED + 1)
    with pytest.raises(ValueError, match="begins at state"):
        replayed(tmp_path / FOLDER / "round-00000000.fedft", run.federation.recipe, run.federation.layout, state)


def restored(folder: Path, version: int, sites: Any, names: Any) -> State:
    """The run once more from an earlier state on."""
    for later in (version + 1, version + 2):
        (folder / "state" / f"gen-{later:08d}.fedft").unlink()
    (folder / "metrics.jsonl").unlink()
    return archived(folder, sites=sites, names=names).run()


def test_rounds_done_again_on_a_restored_state_stand_beside_the_old_ones(tmp_path: Path) -> None:
    run = archived(tmp_path)
    state = run.run()
    assert restored(tmp_path, 2, run.sites, SITES).digest == state.digest
    assert len(lines(tmp_path)) == 4, "what leads to the same state is kept once"
    other = restored(tmp_path, 2, {s: run.sites[s] for s in SITES[:2]}, SITES[:2])
    assert other.digest != state.digest
    assert [line["file"] for line in lines(tmp_path)[4:]] == ["round-00000002-1.fedft", "round-00000003-1.fedft"]
    assert verify(tmp_path).again == [2, 3]
    assert lines(tmp_path)[-1]["after"] == other.digest


def test_a_disk_without_room_for_a_round_pauses_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = archived(tmp_path)
    run.run()
    generation = (tmp_path / "state" / "gen-00000004.fedft").stat().st_size
    free = 2 * generation + lines(tmp_path)[-1]["bytes"]
    for left, fails in ((free, False), (free - 1, True)):
        usage = SimpleNamespace(disk_usage=lambda p, n=left: SimpleNamespace(free=n))
        monkeypatch.setattr(checkpoint, "shutil", usage)
        if fails:
            with pytest.raises(RunPaused, match="make room"):
                run.store.check_room()
        else:
            run.store.check_room()
    monkeypatch.setattr(checkpoint, "shutil", shutil)


def test_a_file_that_the_disk_does_not_take_pauses_the_run_and_is_written_when_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = archived(tmp_path)

    def full(path: Path, *args: Any) -> None:
        raise RunPaused(f"{path}: no room")

    with monkeypatch.context() as m:
        m.setattr(durable, "append", full)
        with pytest.raises(RunPaused):
            run.run()
    again = archived(tmp_path, sites=run.sites)
    assert again.run().digest == Deployment(tmp_path / "plain").run().digest
    assert verify(tmp_path).rounds == 4


def test_the_command_says_what_it_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fedft(*args: str) -> int:
        monkeypatch.setattr("sys.argv", ["fedft", *args])
        with pytest.raises(SystemExit) as e:
            main.main()
        return int(e.value.code or 0)

    archived(tmp_path).run()
    assert fedft("records", "verify", str(tmp_path)) == 0
    assert capsys.readouterr().out.startswith("4 rounds are archived in ")
    assert fedft("records", "verify", str(tmp_path), "--json") == 0
    assert json.loads(capsys.readouterr().out)["rounds"] == 4
    (tmp_path / FOLDER / "round-00000000.fedft").write_bytes(b"")
    assert fedft("records", "verify", str(tmp_path)) == 1
    assert "round-00000000.fedft: not as it was written" in capsys.readouterr().err
    shutil.rmtree(tmp_path / FOLDER)
    assert fedft("records", "verify", str(tmp_path)) == 2
    assert "holds no archive; [server] archive = true keeps one" in capsys.readouterr().err


def test_an_index_that_is_not_one_stops_the_run_before_it_adds_to_it(tmp_path: Path) -> None:
    archived(tmp_path).run()
    (tmp_path / FOLDER / INDEX).write_bytes(b"{}\n")
    with pytest.raises(StateDamaged, match="fedft records verify"):
        Archive(tmp_path / FOLDER, "fp32")
    with pytest.raises(ConfigError):
        verify(tmp_path / "none")
