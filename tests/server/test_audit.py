"""The server's audit: a chain that shows what was done to it, with a line for whatever somebody may ask for later."""

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from deployed import SITES, Deployment, Killed

from fedft.cli import records
from fedft.errors import ConfigError, RunPaused
from fedft.security import chained_lines
from fedft.security.chained_lines import BrokenChain
from fedft.server import audit as audits
from fedft.server.audit import FILE, Audit

RUN = "f" * 16


def begun(folder: Path, version: int = -1) -> Audit:
    audit = Audit(folder / FILE, lambda kind, info: None)
    audit.begin(RUN, version)
    return audit


def entries(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / FILE).read_text().splitlines()]


def audited(folder: Path, **how: Any) -> Deployment:
    """A deployment on the toy model whose events are audited; another one in the folder is a restart."""
    d = Deployment(folder, rounds=2, **how)
    found = d.store.latest()
    audit = begun(folder, found[0].version if found else -1)
    d.federation.observe = d.post.observe = audit
    return d


def test_a_run_s_audit_says_who_counted_in_which_round_and_holds_together(tmp_path: Path) -> None:
    d = audited(tmp_path)
    d.run()
    d.federation.observe("ended", {"summary": {}, "folder": tmp_path})
    told = [(e["event"], e["round"], e.get("site")) for e in entries(tmp_path)]
    admitted = [("admitted", n, s) for n in (0, 1) for s in SITES]
    assert told == [("started", -1, None), *admitted, ("stopped", 1, None)]
    assert audits.verify(tmp_path).lines == len(told)
    assert entries(tmp_path)[-1]["finished"] is True


def test_what_the_run_file_has_changed_stands_behind_the_start(tmp_path: Path) -> None:
    """It is found before the server can say of which run the file is."""
    heard: list[str] = []
    audit = Audit(tmp_path / FILE, lambda kind, info: heard.append(kind))
    audit("preparing", {"folder": tmp_path})
    audit("changed", {"keys": {"server.quorum": [0.6, 0.5]}, "by": "run file"})
    audit.begin(RUN, 2)
    audit.begin(RUN, 2)
    assert [e["event"] for e in entries(tmp_path)] == ["started", "changed", "started"]
    assert entries(tmp_path)[1]["keys"] == {"server.quorum": [0.6, 0.5]}
    assert heard == ["preparing", "changed"]


@pytest.mark.parametrize("told", [True, False])
def test_who_was_admitted_stands_once_though_the_server_is_killed_beside_the_line(tmp_path: Path, told: bool) -> None:
    """The update is durable before its line is; what the line lacks then is made up for at the next start."""
    d = audited(tmp_path)
    observe = d.federation.observe

    def dying(kind: str, info: Mapping[str, Any]) -> None:
        last = kind == "admitted" and (info["client"], info["round"]) == ("bert", 1)
        if not last or told:
            observe(kind, info)
        if last:
            raise Killed

    d.federation.observe = dying
    with pytest.raises(Killed):
        d.run()
    again = audited(tmp_path, sites=d.sites)
    again.run()
    lines = entries(tmp_path)
    assert [(e["round"], e["site"]) for e in lines if e["event"] == "admitted"] == [
        (n, s) for n in (0, 1) for s in SITES
    ]
    assert [e.get("after") for e in lines if e["event"] == "started"] == [None, "kill"]
    assert audits.verify(tmp_path).lines == len(lines)


def test_a_quarantine_and_its_end_have_a_line_each(tmp_path: Path) -> None:
    def barred() -> list[str]:
        found = d.store.latest()
        assert found is not None
        return list(found[1]["barred"])

    d = audited(tmp_path)
    d.run()
    state, notes = d.store.latest() or (None, {})
    assert state is not None
    notes["refusals"] = [[n, "bert"] for n in (0, 1, 1)]
    again = audited(tmp_path, sites=d.sites)
    again.loop._notes(2, {**notes, "refusals": [[n, "bert"] for n in (0, 1, 2)]}, _outcome(state))
    d.store.save(state, {**notes, "barred": ["bert"]})
    lifted = audited(tmp_path, sites=d.sites)
    lifted.loop.lift = ["bert"]
    lifted.run()
    assert barred() == []
    told = [(e["event"], e["site"]) for e in entries(tmp_path) if e["event"] in ("quarantined", "lifted")]
    assert told == [("quarantined", "bert"), ("lifted", "bert")]


def _outcome(state: Any) -> Any:
    from fedft.server.admitted import Outcome

    return Outcome(state, {}, [], [], set())


@pytest.mark.parametrize("left", [1, 30, -1])
def test_a_torn_last_line_is_said_and_the_chain_goes_on(
    tmp_path: Path, left: int, caplog: pytest.LogCaptureFixture
) -> None:
    audit = begun(tmp_path)
    audit.write("admin", act="pause", uid=1)
    whole, last = (tmp_path / FILE).read_bytes()[:-1].rsplit(b"\n", 1)
    (tmp_path / FILE).write_bytes(whole + b"\n" + last[:left])
    assert audits.verify(tmp_path).torn == len(last[:left])
    with caplog.at_level(logging.WARNING):
        begun(tmp_path)
    assert "is not whole, and is left out" in caplog.text
    assert [(e["event"], e.get("healed")) for e in entries(tmp_path)] == [
        ("started", None),
        ("started", len(last[:left])),
    ]
    assert audits.verify(tmp_path)[::2] == (2, 0)


def without(lines: list[bytes]) -> list[bytes]:
    return [lines[0], *lines[2:]]


def another_site(lines: list[bytes]) -> list[bytes]:
    return [lines[0], lines[1].replace(b"anna", b"bert"), *lines[2:]]


def unknown_event(lines: list[bytes]) -> list[bytes]:
    return [*lines[:3], lines[3].replace(b'"admin"', b'"magic"')]


@pytest.mark.parametrize(("change", "line"), [(without, 2), (another_site, 3), (unknown_event, 4)])
def test_the_line_that_was_changed_is_named_by_the_command(
    tmp_path: Path, change: Callable[[list[bytes]], list[bytes]], line: int, capsys: pytest.CaptureFixture[str]
) -> None:
    audit = begun(tmp_path)
    for client in ("anna", "bert"):
        audit("admitted", {"client": client, "round": 0, "metrics": {}})
    audit.write("admin", act="pause", uid=1)
    records.verify(tmp_path)
    assert capsys.readouterr().out.startswith("4 lines hold together, the last is ")
    lines = (tmp_path / FILE).read_bytes().splitlines()
    assert change(lines) != lines
    (tmp_path / FILE).write_bytes(b"\n".join([*change(lines), b""]))
    with pytest.raises(BrokenChain, match=rf"{FILE}, line {line}: "):
        audits.verify(tmp_path)


def test_where_there_is_no_audit_it_says_what_it_wanted(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="wanted a run folder"):
        audits.verify(tmp_path)


def test_an_audit_of_before_is_kept_beside_the_new_one(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text('{"code": "norm", "site": "anna"}\n')
    begun(tmp_path)
    assert (tmp_path / audits.OF_OLD).read_text() == '{"code": "norm", "site": "anna"}\n'
    assert audits.verify(tmp_path).lines == 1


def test_a_full_disk_is_told_of_and_the_run_goes_on_but_no_act_is_done_unwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[str] = []
    audit = begun(tmp_path)
    audit.observe = lambda kind, info: heard.append(kind)

    def full(path: Path, at: int, line: bytes, *, sync: bool) -> None:
        raise RunPaused(f"{path}: cannot be written (No space left on device)")

    monkeypatch.setattr(chained_lines.durable, "append", full)
    audit("admitted", {"client": "anna", "round": 0, "metrics": {}})
    assert heard == ["admitted"]
    assert "audit: " in caplog.text
    with pytest.raises(RunPaused):
        audit.write("admin", act="pause", uid=1)
