"""`status.json`: it follows the events of a run, is always whole, and never fails the run."""

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fedft.board import live_file
from fedft.board.live_file import LiveFile
from fedft.privacy.tables import Privacy
from fedft.server import private_facts

ASKING = {"round": 3, "clients": ["a", "b", "c"], "need": 2, "deadline_s": 600.0, "grace_s": 5.0}


@pytest.fixture
def live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LiveFile]:
    """The file of a run that has three clients, written a hundred times as often as usual."""
    monkeypatch.setattr(live_file, "WRITE_S", 0.01)
    made = LiveFile(tmp_path)
    made("enrolling", {"clients": ["a", "b", "c"]})
    yield made
    made("ended", {"folder": tmp_path, "summary": None})


def until(folder: Path, true: Callable[[dict], bool]) -> dict:
    """The facts in the file once `true` of them."""
    end = time.monotonic() + 20
    while time.monotonic() < end:
        if (found := live_file.read(folder)) is not None and true(found):
            return found
        time.sleep(0.005)
    raise AssertionError(f"never came: {live_file.read(folder)}")


def test_the_file_follows_a_round(live: LiveFile, tmp_path: Path) -> None:
    live("round", {"round": 3, "asked": ["a", "b", "c"], "barred": ["d"]})
    live("asking", ASKING)
    live("progress", {"client": "b", "round": 3, "doing": "training", "step": 3, "steps": 8, "left_s": 4.0})
    live("refused", {"client": "c", "code": "norm", "reason": "too long", "size": 1, "sha256": "", "proven": True})
    live("admitted", {"round": 3, "client": "a", "metrics": {"loss": 1.5}})
    found = until(tmp_path, lambda f: f["sites"].get("a", {}).get("answered"))
    assert (found["phase"], found["round"], found["asked"], found["barred"]) == ("training", 3, ["a", "b", "c"], ["d"])
    assert 500 < found["deadline"] - time.time() <= 600
    assert found["sites"]["a"]["loss"] == 1.5
    assert len(found["sites"]["a"]["took"]) == 1
    assert (found["sites"]["b"]["step"], found["sites"]["b"]["steps"]) == (3, 8)
    assert [(r["round"], r["client"], r["code"]) for r in found["refused"]] == [(3, "c", "norm")]
    live("line", {"version": 4})
    found = until(tmp_path, lambda f: f["phase"] == "between")
    assert found["deadline"] is None


def test_how_long_a_site_took_is_not_said_where_nobody_may_know(live: LiveFile, tmp_path: Path) -> None:
    said = Privacy(mode="central-dp", clip=1.0, noise_multiplier=1.0, delta=1e-3)
    heard = private_facts.quiet(live, said)
    heard("round", {"round": 3, "asked": ["a", "b", "c"]})
    heard("asking", ASKING)
    heard("progress", {"client": "b", "round": 3, "doing": "training", "step": 3, "steps": 8, "left_s": 4.0})
    heard("admitted", {"round": 3, "client": "a", "metrics": {"loss": 1.5}})
    sites = until(tmp_path, lambda f: f["sites"].get("a", {}).get("answered"))["sites"]
    assert sites["a"]["took"] == []
    assert sites["a"]["loss"] is None
    assert sites["a"]["answered"] == sites["a"]["asked"]
    assert (sites["b"]["doing"], sites["b"]["step"], sites["b"]["left_s"]) == ("training", None, None)


def test_the_deadline_is_the_grace_once_there_are_enough(live: LiveFile, tmp_path: Path) -> None:
    live("round", {"round": 3, "asked": ["a", "b", "c"]})
    live("asking", ASKING)
    live("admitted", {"round": 3, "client": "a", "metrics": {}})
    assert until(tmp_path, lambda f: f["sites"].get("a", {}).get("answered"))["deadline"] > time.time() + 500
    live("admitted", {"round": 3, "client": "b", "metrics": {}})
    assert until(tmp_path, lambda f: f["sites"].get("b", {}).get("answered"))["deadline"] < time.time() + 5.1


def test_who_answered_before_the_process_was_killed_has_answered(live: LiveFile, tmp_path: Path) -> None:
    live("round", {"round": 3, "asked": ["a", "b", "c"], "recovered": ["c"]})
    live("asking", {**ASKING, "clients": ["a", "b"]})
    assert until(tmp_path, lambda f: f["sites"].get("c", {}).get("answered"))["deadline"] > time.time() + 500
    live("admitted", {"round": 3, "client": "a", "metrics": {}})
    found = until(tmp_path, lambda f: f["sites"]["a"].get("answered"))
    assert found["deadline"] < time.time() + 5.1  # two answers, as many as are needed
    assert found["sites"]["c"]["took"] == []


def test_whoever_reads_finds_a_whole_file(live: LiveFile, tmp_path: Path) -> None:
    """However often it is replaced meanwhile."""
    seen: set[int | None] = set()
    ends = time.monotonic() + 20
    for i in range(2000):
        if i >= 200 and (len(seen) > 3 or time.monotonic() > ends):
            break
        live("round", {"round": i, "asked": ["a"] * (i % 500 + 1)})
        for _ in range(20):
            found = json.loads((tmp_path / live_file.NAME).read_text())
            assert found["phase"] == "enrolling" or len(found["asked"]) == found["round"] % 500 + 1
            seen.add(found["round"])
    assert len(seen) > 3


def test_the_end_is_written_at_once_and_ends_the_thread(tmp_path: Path) -> None:
    before = threading.active_count()
    live = LiveFile(tmp_path)
    assert threading.active_count() == before + 1
    live("ended", {"folder": tmp_path, "summary": {"rounds": 4}})
    found = live_file.read(tmp_path)
    assert found is not None
    assert (found["ended"], found["finished"]) == (True, True)
    assert threading.active_count() == before


def test_a_resumed_run_knows_what_sites_took_before(live: LiveFile, tmp_path: Path) -> None:
    live("round", {"round": 3, "asked": ["a"]})
    live("asking", {**ASKING, "clients": ["a"]})
    live("admitted", {"round": 3, "client": "a", "metrics": {}})
    live("refused", {"client": "b", "code": "late", "reason": "-", "size": 1, "sha256": "", "proven": True})
    live("ended", {"folder": tmp_path, "summary": None})
    again = LiveFile(tmp_path)
    again("ended", {"folder": tmp_path, "summary": None})
    found = live_file.read(tmp_path)
    assert found is not None
    assert len(found["sites"]["a"]["took"]) == 1
    assert found["sites"]["a"].get("answered") is None
    assert [r["client"] for r in found["refused"]] == ["b"]


def test_a_disk_that_takes_nothing_is_told_of_once_and_the_run_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        live = LiveFile(tmp_path / "gone")
        live("round", {"round": 0, "asked": []})
        live("ended", {"folder": tmp_path, "summary": None})
    assert caplog.text.count("the run goes on") == 1


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"form": 2}', '{"form": 1, "sites": [], "refused": []}', "7"])
def test_a_file_that_is_none_of_ours_is_as_good_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / live_file.NAME).write_text(text)
    assert live_file.read(tmp_path) is None
    LiveFile(tmp_path)("ended", {"folder": tmp_path, "summary": None})
    assert live_file.read(tmp_path) is not None
