"""The status of a board over the network: the same lines, one line for each fault, and nothing believed."""

import json
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import watched_runs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from one_line import one_line

from fedft.board import listener, network_status, status_form, status_text
from fedft.board.run_folders import FolderReader
from fedft.board.run_status import RunReader
from fedft.cli import watch
from fedft.cli.deploy import address_of
from fedft.errors import ConfigError
from fedft.security import new_keys

TOKEN = "a-token-of-some-length"


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A board ends at once, and there is no token but a test's."""
    monkeypatch.setattr(listener, "POLL_S", 0.01)
    monkeypatch.delenv(listener.TOKEN, raising=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return watched_runs.folder(tmp_path / "run", finished=True)


@contextmanager
def stranger(answer: bytes | Callable[[socket.socket], None], tls: ssl.SSLContext | None = None) -> Iterator[str]:
    """HOST:PORT of a server that takes a request and answers with these bytes, or does as the function does."""
    ours = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                taken, _ = ours.accept()
            except OSError:
                return
            with taken, suppress(OSError), tls.wrap_socket(taken, server_side=True) if tls else taken as s:
                if callable(answer):
                    answer(s)
                else:
                    s.recv(65536)
                    s.sendall(answer)
                    s.shutdown(socket.SHUT_WR)
                    s.recv(65536)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{ours.getsockname()[1]}"
    finally:
        ours.shutdown(socket.SHUT_RDWR)
        ours.close()
        thread.join(10)


def said(body: bytes | dict[str, Any], code: int = 200, *more: str) -> bytes:
    """A whole answer of HTTP."""
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    return "\r\n".join((f"HTTP/1.0 {code} X", *more, "", "")).encode() + body


def fault(place: str, **more: Any) -> str:
    """The line with which `fedft status` ends there."""
    with pytest.raises(ConfigError) as e:
        watch.status(place, **more)
    line = one_line(e)
    assert line.isprintable()
    return line


def test_a_board_says_what_its_folder_says(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    watch.status(str(folder))
    here = capsys.readouterr().out
    assert "3 of 6 rounds done; finished" in here
    with listener.serving(folder, "127.0.0.1", 0, "--listen") as address:
        for place in (address, address.removeprefix("http://").rstrip("/"), f"{address}status.json"):
            watch.status(place)
            there = capsys.readouterr().out
            same = [[x for x in text.splitlines() if not x.startswith("disk")] for text in (here, there)]
            assert same[0] == same[1]
        watch.status(address, as_json=True)
        assert watched_runs.check(json.loads(capsys.readouterr().out))["round"] == 3


def test_a_board_of_many_runs_and_one_of_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b c"):
        watched_runs.folder(tmp_path / "queue" / name)
    with listener.serving(tmp_path / "queue", "127.0.0.1", 0, "--listen") as address:
        watch.status(address)
        assert [line.partition("  ")[0] for line in capsys.readouterr().out.splitlines()] == ["run", "a", "b c"]
        watch.status(f"{address}?run=b%20c")
        assert capsys.readouterr().out.startswith("run      b c: fedit on base")
        assert "the board has no run 'no/such'" in fault(f"{address}?run=no/such")


def test_the_token_is_the_file_s_else_the_environment_s(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(listener.TOKEN, TOKEN)
    with listener.serving(folder, "0.0.0.0", 0, "--listen") as address:
        place = f"127.0.0.1:{address.partition('0.0.0.0:')[2].partition('/')[0]}"
        watch.status(place)
        monkeypatch.delenv(listener.TOKEN)
        assert fault(place).endswith("wants a token: FEDFT_BOARD_TOKEN, or --token-file")
        (tmp_path / "token").write_text(f"{TOKEN}\n")
        watch.status(place, token_file=tmp_path / "token")
        watch.status(f"http://{place}/?token={TOKEN}")  # as the board shows its address
        (tmp_path / "token").write_text("another-token-of-some-length")
        line = fault(place, token_file=tmp_path / "token")
        assert line.endswith("wants another token")
        assert "another-token" not in line
    for wrong, why in (("", "is empty"), ("tök", "of ASCII"), ("a\nb", "of ASCII")):
        (tmp_path / "token").write_text(wrong)
        assert why in fault(place, token_file=tmp_path / "token")
    assert "no such file" in fault(place, token_file=tmp_path / "none")
    assert not [r for r in caplog.records if "unencrypted" in r.message]  # it never left this machine


def test_a_token_that_goes_out_unencrypted_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        watch._reader(f"http://192.0.2.1:80/?token={TOKEN}", None, None)
        watch._reader(f"https://192.0.2.1:80/?token={TOKEN}", None, None)
    (record,) = caplog.records
    assert record.message == "the token goes to http://192.0.2.1:80 unencrypted"


def test_each_fault_is_a_line_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as s:
        nobody = f"127.0.0.1:{s.getsockname()[1]}"
    assert "no board there (Connection refused)" in fault(nobody)
    assert "no board there" in fault("no-such-name.invalid:8080")
    for answer, why in (
        (b"", "closed without an answer"),
        (b"220 mail.example ESMTP\x1b[2J\r\n", "no whole answer of HTTP"),
        (b"HTTP/1.0 200 X\r\nContent-Length: 9\r\n\r\n{}", "no status"),
        (said(b"<html>"), "no board of this version: no status"),
        (said(b'{"form": 1, "loss": NaN}'), "no board of this version: no status"),
        (said(b"[" * 100_000), "no board of this version: no status"),
        (said({"form": 2}), "a status of form 2, wanted 1"),
        (said({"form": 1}), "a status whose 'name' is absent"),
        (said(b"moved", 301, "Location: http://203.0.113.1/"), "no board (HTTP 301)"),
        (said(b"", 404), "no board (HTTP 404)"),
        (said({"error": "no such run"}, 404), "the board has no run yet"),
        (said(b"", 421), "is for its own machine only: ssh -L"),
    ):
        with stranger(answer) as place:
            assert why in fault(place), answer
    with listener.serving(tmp_path / "later", "127.0.0.1", 0, "--board") as address:
        assert fault(address).endswith("the board has no run yet")
        monkeypatch.setattr(network_status, "MAX_BYTES", 20)
        with stranger(said(b" " * 21)) as place:
            assert "more than 20 bytes" in fault(place)


@pytest.mark.parametrize("place", ["http://", "https://:80", "http://a:b/", "http://u:p@h/", "http://h\x1b[2J/", "h:0"])
def test_what_is_no_address_is_a_line(place: str) -> None:
    assert "wanted HOST:PORT" in fault(place)


def test_what_is_for_boards_is_refused_for_folders(folder: Path, tmp_path: Path) -> None:
    assert "--ca is for a board's address" in fault(str(folder), ca=tmp_path)
    assert "--token-file is for a board's address" in fault("fl.example.org", token_file=tmp_path)
    assert "or HOST:PORT of a board" in fault("fl.example.org")
    assert "wanted https://" in fault("127.0.0.1:1", ca=tmp_path)
    assert "no certificates in PEM" in fault("https://127.0.0.1:1", ca=tmp_path / "none")


def test_an_endless_answer_is_cut_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte from time to time keeps no one: in the head, in the body, and before TLS."""
    monkeypatch.setattr(network_status, "ANSWER_S", 0.4)

    def drip(first: bytes) -> Callable[[socket.socket], None]:
        def answer(s: socket.socket) -> None:
            s.sendall(first)
            while True:
                s.sendall(b" ")
                time.sleep(0.02)

        return answer

    began = time.monotonic()
    for first in (b"HTTP/1.0 200 X\r\nA: ", b"HTTP/1.0 200 X\r\n\r\n"):
        with stranger(drip(first)) as place:
            assert "no answer within 0.4 s" in fault(place)
    with stranger(drip(b"\x16\x03\x03\x40\x00")) as place:
        assert "no answer within 0.4 s" in fault(f"https://{place}")
    assert time.monotonic() - began < 10


def test_a_certificate_is_held_against_who_vouches_for_it(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    new_keys.make_server(tmp_path / "keys", ["127.0.0.1"])
    new_keys.make_server(tmp_path / "others", ["127.0.0.1"])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "keys" / "server.pem", tmp_path / "keys" / "server.key")
    with stranger(said(RunReader(folder).status()), context) as place:
        watch.status(f"https://{place}", ca=tmp_path / "keys" / "ca.pem")
        assert "3 of 6 rounds done" in capsys.readouterr().out
        for ca in (None, tmp_path / "others" / "ca.pem"):
            assert "its certificate is not trusted" in fault(f"https://{place}", ca=ca)
        monkeypatch.setattr(
            socket, "create_connection", lambda *_, real=socket.create_connection: real(address_of(place, ""))
        )
        line = fault(place.replace("127.0.0.1", "https://fl.example.org"), ca=tmp_path / "keys" / "ca.pem")
        assert "is not trusted (Hostname mismatch" in line
        monkeypatch.undo()
    with stranger(said(b"")) as place:
        assert "no TLS is spoken there" in fault(f"https://{place}")


def test_what_a_stranger_writes_moves_no_cursor(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evil = "\x1b[2J\r\n\x07\u202e\ud800x"
    found = RunReader(folder).status()
    refusal = {**found["refusals"][0], "client": evil, "code": evil, "reason": evil}
    site = {**found["sites"][0], "name": evil, "state": evil, "doing": evil}
    one = {
        **found, "name": evil, "state": "running", "phase": evil, "strategy": evil, "model": evil, "missing": [evil],
        "barred": {evil: evil}, "sites": [site], "refusals": [refusal],
    }  # fmt: skip
    many = {
        "form": 1,
        "name": evil,
        "left_out": 0,
        "runs": [dict.fromkeys(status_form.SHORT) | {"name": evil, "state": evil}],
    }
    for status, seen in ((one, 9), ({**one, "state": evil}, 9), (many, 2)):
        with stranger(said(status)) as place:
            watch.status(place)
            text = capsys.readouterr().out
            assert text.count("x") >= seen
            assert all(line.isprintable() for line in text.splitlines())
            watch.status(place, as_json=True)
            (line,) = capsys.readouterr().out.splitlines()
            assert line.isprintable()


def test_the_deadline_is_counted_by_the_board_s_clock(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = {**RunReader(folder).status(), "deadline": 1000000090.0}
    with stranger(said(status, 200, "Date: Sun, 09 Sep 2001 01:46:40 GMT")) as place:
        watch.status(place)
    assert "01:48:10 UTC, in 90 s" in capsys.readouterr().out


def test_a_board_that_comes_back_is_shown_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status = RunReader(folder).status()
    answers = [(status, None), ConfigError("gone"), (status, None), KeyboardInterrupt()]

    def read(*_: Any) -> Any:
        found = answers.pop(0)
        if isinstance(found, BaseException):
            raise found
        return found

    monkeypatch.setattr(network_status, "read", read)
    monkeypatch.setattr(watch, "REFRESH_S", 0.0)
    watch.status("127.0.0.1:1", watch=True)
    assert "finished" in (text := capsys.readouterr().out)
    assert text.count("rounds done") == 2
    assert "fedft: gone" in text
    answers[:] = [(status, None), ConfigError("gone"), KeyboardInterrupt()]
    watch.status("127.0.0.1:1", watch=True, as_json=True)
    assert json.loads(capsys.readouterr().out.splitlines()[1]) == {"error": "gone"}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_passes_as_a_status_can_be_shown(data: st.DataObject, folder: Path) -> None:
    """One value of a status, or of one in its lists, replaced by anything."""
    status = json.loads(json.dumps(RunReader(folder).status()))
    if data.draw(st.booleans()):
        status = FolderReader(folder.parent).status()
    inner = [status, *(x for key in ("sites", "refusals", "runs") for x in status.get(key, ()))]
    place = data.draw(st.sampled_from(inner))
    place[data.draw(st.sampled_from(sorted(place)))] = data.draw(JSON)
    if not status_form.fault(status):
        assert all(line.isprintable() for line in status_text.lines(status))
