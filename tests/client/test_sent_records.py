"""What has left a site is in its record before it leaves, in a chain that shows what was done to it."""

import hashlib
import json
import logging
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from deployed import SITES, Deployment

from fedft import durable
from fedft.client import sent_records
from fedft.client.sent_records import FILE, SentRecords
from fedft.errors import ConfigError, RunPaused
from fedft.security.chained_lines import FIRST, BrokenChain

RUN, PLAN = "0123456789abcdef", "d" * 64


def filled(folder: Path, lines: int = 4) -> Path:
    """A record of so many answers."""
    sent = SentRecords(folder / FILE, clock=lambda: 1.8e9)
    for n in range(lines):
        sent.add("train", RUN, n, n + 1, PLAN, b"answer %d" % n, 10 + n)
    return folder / FILE


def entries(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_says_what_left_when_and_what_for(tmp_path: Path) -> None:
    first, second = entries(filled(tmp_path, 2))
    assert first == {
        "at": "2027-01-15T08:00:00Z",
        "kind": "train",
        "run": RUN,
        "round": 0,
        "attempt": 1,
        "plan": PLAN,
        "bytes": 8,
        "sha256": hashlib.sha256(b"answer 0").hexdigest(),
        "rows": 10,
        "before": FIRST,
    }
    assert second["before"] == hashlib.sha256((tmp_path / FILE).read_bytes().split(b"\n")[0]).hexdigest()
    assert stat.S_IMODE((tmp_path / FILE).stat().st_mode) == 0o600


def test_a_whole_chain_is_counted_and_its_end_named(tmp_path: Path) -> None:
    path = filled(tmp_path)
    last = hashlib.sha256(path.read_bytes().splitlines()[-1]).hexdigest()
    assert sent_records.verify(tmp_path) == sent_records.verify(path) == (4, last, 0)


def test_another_process_goes_on_with_the_chain(tmp_path: Path) -> None:
    path = filled(tmp_path, 3)
    SentRecords(path).add("evaluate", RUN, 9, 9, PLAN, b"more", 5)
    assert sent_records.verify(path).lines == 4


def test_the_answer_that_was_recorded_last_is_recorded_once_though_it_is_sent_again(tmp_path: Path) -> None:
    path = filled(tmp_path, 3)
    again = SentRecords(path)
    again.add("train", RUN, 2, 3, PLAN, b"answer 2", 12)
    assert sent_records.verify(path).lines == 3
    again.add("train", RUN, 2, 3, PLAN, b"another answer", 12)
    again.add("train", RUN, 2, 4, PLAN, b"another answer", 12)
    assert sent_records.verify(path).lines == 5


@pytest.mark.parametrize("left", [1, 40, -1])
def test_a_torn_last_line_is_said_and_left_out(tmp_path: Path, left: int, caplog: pytest.LogCaptureFixture) -> None:
    path = filled(tmp_path, 3)
    whole, last = path.read_bytes()[:-1].rsplit(b"\n", 1)
    path.write_bytes(whole + b"\n" + last[:left])
    assert sent_records.verify(path)[::2] == (2, len(last[:left]))
    with caplog.at_level(logging.WARNING):
        SentRecords(path).add("train", RUN, 2, 3, PLAN, b"answer 2", 12)
    assert "the last line" in caplog.text
    assert "is not whole" in caplog.text
    assert sent_records.verify(path)[::2] == (3, 0)


def swapped(lines: list[bytes]) -> list[bytes]:
    return [lines[0], lines[2], lines[1], lines[3]]


def lacking(lines: list[bytes]) -> list[bytes]:
    return [lines[0], *lines[2:]]


def fewer_rows(lines: list[bytes]) -> list[bytes]:
    return [lines[0], lines[1].replace(b'"rows": 11', b'"rows": 10'), *lines[2:]]


def beheaded(lines: list[bytes]) -> list[bytes]:
    return lines[1:]


def no_json(lines: list[bytes]) -> list[bytes]:
    return [lines[0], b"[" * 10, *lines[2:]]


def another_key(lines: list[bytes]) -> list[bytes]:
    return [*lines[:3], lines[3][:-1] + b', "more": 1}']


def no_number(lines: list[bytes]) -> list[bytes]:
    return [*lines[:3], lines[3].replace(b'"bytes": 8', b'"bytes": NaN')]


@pytest.mark.parametrize(
    ("change", "line"),
    [(swapped, 2), (lacking, 2), (fewer_rows, 3), (beheaded, 1), (no_json, 2), (another_key, 4), (no_number, 4)],
)
def test_the_line_that_breaks_the_chain_is_named(
    tmp_path: Path, change: Callable[[list[bytes]], list[bytes]], line: int
) -> None:
    path = filled(tmp_path)
    lines = path.read_bytes().splitlines()
    assert change(lines) != lines
    path.write_bytes(b"\n".join([*change(lines), b""]))
    with pytest.raises(BrokenChain, match=rf"{FILE}, line {line}: "):
        sent_records.verify(path)


def test_where_there_is_no_record_it_says_what_it_wanted(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="wanted a site's state folder"):
        sent_records.verify(tmp_path)


def test_every_answer_of_a_run_is_there_with_its_bytes(tmp_path: Path) -> None:
    d = Deployment(tmp_path, "fedit", rounds=3)
    d.run()
    for number, site in enumerate(SITES, 1):
        found = entries(tmp_path / "sites" / site / FILE)
        assert sent_records.verify(tmp_path / "sites" / site).lines == len(found)
        trained = [e for e in found if e["kind"] == "train"]
        assert [e["round"] for e in trained] == [0, 1, 2]
        assert {e["rows"] for e in trained} == {10 * number}
        assert [e["bytes"] for e in trained] == [line["bytes"][site]["up"] for line in d.metrics.lines[1:]]
        assert found[0]["kind"] == "job"
        assert {e["rows"] for e in found if e["kind"] == "evaluate"} == {1}
        assert {e["run"] for e in found} == {d.job.run}
        (_, payload) = d.sites[site].responder.disk.answer(d.job.run) or (None, b"")
        assert trained[-1]["sha256"] == hashlib.sha256(payload).hexdigest()


def test_nothing_leaves_that_could_not_be_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, at: int, line: bytes, *, sync: bool) -> None:
        raise RunPaused(f"{path}: cannot be written (No space left on device)")

    monkeypatch.setattr(durable, "append", full)
    d = Deployment(tmp_path, "fedit", rounds=1)
    with pytest.raises(RunPaused):
        d.run()
    assert all(site.responder.disk.answer(d.job.run) is None for site in d.sites.values())


def test_a_site_says_each_round_in_a_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="fedft.client.requests"):
        Deployment(tmp_path, "fedit", rounds=2, names=SITES[:1]).run()
    (one, two) = [m for m in caplog.messages if "to send" in m]
    assert one.startswith("round 0: 3 steps, loss ")
    sent = [e for e in entries(tmp_path / "sites" / "anna" / FILE) if e["kind"] == "train"][1]
    assert two.endswith(f"10 rows: {sent['bytes']} bytes, sha256 {str(sent['sha256'])[:12]} to send")
