"""The admin socket and its command: who may ask, what is taken in, and what an act leaves behind."""

import json
import os
import re
import socket
import stat
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from deployed import Deployment

from fedft import run_file
from fedft.cli import admin as command
from fedft.cli import main
from fedft.security import new_keys
from fedft.security import roster as keys
from fedft.server import admin, admin_socket, open_run, steering
from fedft.server import audit as audits
from fedft.server.audit import Audit
from fedft.server.roster_file import RosterFile
from fedft.server.steering import Steering


@pytest.fixture
def acts(tmp_path: Path) -> admin.Acts:
    """Acts on a run of anna and bert whose version is 2, and of which no round is open."""
    new_keys.make_server(tmp_path / "keys", ["localhost"], 30)
    roster = tmp_path / "keys" / "roster.toml"
    for name in ("anna", "bert"):
        keys.enrol(roster, new_keys.make_site(tmp_path / name, name))
    run = tmp_path / "run"
    d = Deployment(run, names=("anna", "bert"), rounds=2)
    d.run()
    d.federation.barred = ["bert"]
    config = open_run.resolved(run_file.from_dict({"strategy": {"name": "fedit"}}))
    (run / "config.toml").write_text('[model]\nid = "x"\n[strategy]\nname = "fedit"\n[server]\nrounds = 5\nseed = 0\n')
    audit = Audit(run / audits.FILE, lambda kind, info: None)
    audit.begin("f" * 16, 2)
    steered = Steering(run / steering.FILE, config, open_run.resolved, version=2)
    return admin.Acts(d.federation, steered, RosterFile(roster), roster, run, audit)


@pytest.fixture
def served(acts: admin.Acts) -> Iterator[admin.Acts]:
    with admin_socket.listening(acts.folder, acts.answer):
        yield acts


def fedft(monkeypatch: pytest.MonkeyPatch, run: Path, *args: str) -> int:
    monkeypatch.setattr(sys, "argv", ["fedft", "admin", str(run), *args])
    with pytest.raises(SystemExit) as e:
        main.main()
    return int(e.value.code or 0)


def asked(folder: Path, data: bytes) -> Mapping[str, Any]:
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(str(folder / admin_socket.NAME))
        peer.sendall(data)
        peer.shutdown(socket.SHUT_WR)
        found: Mapping[str, Any] = json.loads(b"".join(iter(lambda: peer.recv(4096), b"")))
    return found


def written(acts: admin.Acts) -> list[dict[str, Any]]:
    """What the audit has of acts, without times and digests."""
    lines = [e for e in audits.tail(acts.audit.path, 100) if e["event"] == "admin"]
    return [{k: v for k, v in e.items() if k not in ("time", "round", "event", "before")} for e in lines]


def test_every_act_is_said_written_and_holds(
    served: admin.Acts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    card, uid = new_keys.make_site(tmp_path / "carl", "carl"), os.geteuid()
    for words, said in (
        (["set", "server.quorum=0.5", "limits.max_norm=2"], "server.quorum from 0.666"),
        (["pause"], "paused: once the open round is over"),
        (["resume"], "resumed: at once"),
        (["lift", "bert"], "lifted the quarantine of bert: from round 2 on"),
        (["remove", "anna"], "removed anna from this run: at once"),
        (["revoke", "bert"], "revoked bert: at once"),
        (["enrol", str(card)], "enrolled carl, fingerprint "),
        (["enrol", str(tmp_path / "anna" / "anna.card.toml")], "enrolled anna, fingerprint "),
    ):
        assert fedft(monkeypatch, served.folder, *words) == 0, words
        assert capsys.readouterr().out.startswith(said), words
    told = written(served)
    assert [e["act"] for e in told] == ["set", "pause", "resume", "lift", "remove", "revoke", "enrol", "enrol"]
    assert {e["uid"] for e in told} == {uid}
    assert audits.verify(served.folder).torn == 0
    again = Steering(served.steering.path, served.steering.config, open_run.resolved, version=2)
    assert (again.latest().server.quorum, again.latest().limits.max_norm) == (0.5, 2)
    assert again.lifted(2) == {"bert"}
    assert (again.paused, dict(again.removed)) == (None, {}), "anna's card has taken it back"
    assert set(served.roster.present()) == {"anna", "carl"}
    assert fedft(monkeypatch, served.folder, "sites", "--json") == 0
    rows = {row["site"]: row for row in json.loads(capsys.readouterr().out)}
    assert {s: row["roster"] for s, row in rows.items()} == {"anna": "enrolled", "bert": "revoked", "carl": "enrolled"}
    assert fedft(monkeypatch, served.folder, "audit", "--lines", "2") == 0
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()] == ["admin", "admin"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["lift", "anna"], "anna is not in quarantine"),
        (["revoke", "ann"], "no site 'ann' in .*roster.toml; did you mean 'anna'"),
        (["set", "server.seed=1"], "set 'server.seed=1': wanted KEY=VALUE with one of"),
        (["set", "server.rounds=1"], "2 are done or under way"),
        (["enrol", "run.card.toml"], "run.card.toml: "),
    ],
)
def test_what_cannot_be_done_is_one_line_and_in_the_audit(
    served: admin.Acts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    words: list[str], said: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.card.toml").write_text("no = 'card'")
    assert fedft(monkeypatch, served.folder, *words) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert err.startswith(f"fedft: {served.folder}: ")
    assert re.search(said, err), err
    (line,) = written(served)
    assert line["act"] == words[0]
    assert line["failed"]
    assert not served.steering.path.exists()


def test_the_socket_is_its_owner_s_and_gone_with_the_server(acts: admin.Acts) -> None:
    path = acts.folder / admin_socket.NAME
    path.write_bytes(b"left by a server that was killed")
    with admin_socket.listening(acts.folder, acts.answer):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_ISSOCK(path.stat().st_mode)
    assert not path.exists()


def test_another_user_is_refused_by_the_kernel_s_word(served: admin.Acts, monkeypatch: pytest.MonkeyPatch) -> None:
    uid = os.geteuid()
    monkeypatch.setattr(admin_socket.os, "geteuid", lambda: uid + 12345)
    if uid == 0:
        monkeypatch.setattr(admin_socket.struct, "unpack", lambda form, data: (1, 999, 1))
    assert "may not steer this run" in asked(served.folder, b'{"act": "pause"}\n')["error"]
    assert served.steering.paused is None


@pytest.mark.parametrize(
    "data",
    [b"", b"\n", b"[1]\n", b'{"act": "pause"}', b'{"act": ' + b"[" * 5000 + b"\n", b"x" * 70_000 + b"\n",
     b'{"act": 3}\n', b'{"act": "remove", "site": ["anna"]}\n',
     b'{"act": "set", "keys": "server.rounds=9"}\n', b"\xff\n"],
)  # fmt: skip
def test_whatever_is_sent_is_answered_in_one_line_and_changes_nothing(served: admin.Acts, data: bytes) -> None:
    try:
        found = asked(served.folder, data)
    except (ConnectionResetError, BrokenPipeError):  # more was sent than is read
        found = {"error": "cut off"}
    assert found.keys() == {"error"}
    assert "\n" not in found["error"]
    assert not served.steering.path.exists()
    assert asked(served.folder, b'{"act": "pause"}\n')["said"], "and the next one is heard"


def test_a_run_folder_with_a_long_path_is_steered_all_the_same(
    acts: admin.Acts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)  # the command changes to the run folder
    far = tmp_path / ("d" * 90) / ("e" * 90)
    far.mkdir(parents=True)
    with admin_socket.listening(far, acts.answer):
        assert fedft(monkeypatch, far, "pause") == 0
    assert acts.steering.paused is not None


def test_without_a_server_it_says_so_and_what_does_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fedft(monkeypatch, tmp_path, "pause") == 2
    err = capsys.readouterr().err
    assert err.startswith(f"fedft: {tmp_path}: no server is running this run here; ")
    assert err.count("\n") == 1
    for other in ("fedft keys enrol", "fedft keys revoke", "--lift SITE", "fedft status"):
        assert other in err
    assert command._nobody(tmp_path) in err


def test_an_act_that_the_disk_does_not_take_changes_nothing(
    served: admin.Acts, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from fedft.errors import RunPaused

    def full(path: Path, *parts: bytes, mode: int = 0) -> None:
        raise RunPaused(f"{path}: cannot be written (No space left on device)")

    monkeypatch.setattr(steering.durable, "write", full)
    assert fedft(monkeypatch, served.folder, "set", "server.quorum=0.5") == 2
    assert "No space left" in capsys.readouterr().err
    assert served.steering.latest().server.quorum == 2 / 3
    assert [e.get("failed") is not None for e in written(served)] == [False, True]
