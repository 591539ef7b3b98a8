"""The board over HTTP: what it gives, and whom it refuses."""

import http.client
import io
import json
import socket
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import watched_runs

from fedft.board import adapter_zip, listener
from fedft.errors import ConfigError

TOKEN = "a-token-of-some-length"


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A board ends at once."""
    monkeypatch.setattr(listener, "POLL_S", 0.01)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return watched_runs.folder(tmp_path / "run", finished=True)


@pytest.fixture
def port(folder: Path) -> Iterator[int]:
    """Of the board of a finished run, for this machine only."""
    with listener.serving(folder, "127.0.0.1", 0, "--listen") as address:
        yield int(address.rpartition(":")[2].rstrip("/"))


@pytest.fixture
def guarded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Of the same on every address."""
    monkeypatch.setenv(listener.TOKEN, TOKEN)
    with listener.serving(folder, "0.0.0.0", 0, "--listen") as address:
        assert TOKEN not in address
        yield int(address.rpartition(":")[2].partition("/")[0])


def get(port: int, path: str, method: str = "GET", **headers: str) -> tuple[int, bytes, http.client.HTTPMessage]:
    """(code, body, headers) of the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request(method, path, headers={k.replace("_", "-"): v for k, v in headers.items()})
    answer = connection.getresponse()
    found = answer.status, answer.read(), answer.headers
    connection.close()
    return found


def raw(port: int, said: bytes) -> bytes:
    """All that is answered to these bytes, until the other side closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as s:
        s.sendall(said)
        found = b""
        while piece := s.recv(65536):
            found += piece
    return found


def test_what_there_is_to_see(port: int) -> None:
    code, body, headers = get(port, "/")
    assert code == 200
    assert b"3 of 6 rounds done; finished" in body
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert (headers["Cache-Control"], headers["X-Content-Type-Options"]) == ("no-store", "nosniff")
    code, body, _ = get(port, "/status.json")
    assert watched_runs.check(json.loads(body))["round"] == 3
    code, body, headers = get(port, "/metrics")
    assert (code, headers["Content-Type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    assert b'fedft_round{run="run"} 3\n' in body
    assert get(port, "/healthz")[:2] == get(port, "/readyz")[:2] == (200, b"ok\n")
    assert get(port, "/nothing")[0] == 404


def test_the_adapter_comes_as_a_zip_of_its_files(port: int, folder: Path) -> None:
    (folder / "model" / "link").symlink_to("/etc/hostname")
    code, body, headers = get(port, "/adapter.zip")
    assert (code, headers["Content-Type"]) == (200, "application/zip")
    with zipfile.ZipFile(io.BytesIO(body)) as found:
        assert found.testzip() is None
        assert sorted(found.namelist()) == ["model/adapter.safetensors", "model/adapter_config.json"]
        same = found.read("model/adapter.safetensors") == (folder / "model" / "adapter.safetensors").read_bytes()
    assert same


def test_a_large_zip_is_never_in_memory(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "w").write_bytes(bytes(8 << 20))
    sizes = [len(piece) for piece in adapter_zip.chunks(tmp_path / "model")]
    assert sum(sizes) > 8 << 20
    assert max(sizes) <= adapter_zip.CHUNK_BYTES


def test_a_run_that_has_no_adapter_yet_says_so(tmp_path: Path) -> None:
    with listener.serving(watched_runs.folder(tmp_path / "run"), "127.0.0.1", 0, "--listen") as address:
        assert get(int(address.rpartition(":")[2].rstrip("/")), "/adapter.zip")[0] == 404


def test_a_folder_without_a_run_is_waited_for(tmp_path: Path) -> None:
    with listener.serving(tmp_path / "later", "127.0.0.1", 0, "--board") as address:
        port = int(address.rpartition(":")[2].rstrip("/"))
        assert b"no run here yet" in get(port, "/")[1]
        assert [get(port, p)[0] for p in ("/healthz", "/readyz", "/status.json", "/metrics")] == [200, 503, 404, 200]
        watched_runs.folder(tmp_path / "later")
        assert get(port, "/readyz")[0] == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "HEAD", "OPTIONS", "TRACE", "PATCH", "CONNECT", "BREW"])
def test_nothing_but_get_is_answered(port: int, method: str) -> None:
    code, _, headers = get(port, "/status.json", method)
    assert (code, headers["Allow"]) == (405, "GET")


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8080", "127.0.0.1.evil.example", "[::2]", "", "localhost.x"]
)
def test_a_name_that_is_not_this_machine_is_refused(port: int, host: str) -> None:
    """As a browser sends it whose page made its own name point at this machine."""
    code, body, _ = get(port, "/status.json", Host=host)
    assert code == 421
    assert b"loss" not in body
    assert get(port, "/status.json", Host="LOCALHOST:1234")[0] == get(port, "/", Host="[::1]:80")[0] == 200


def test_none_and_two_hosts_are_refused(port: int) -> None:
    assert b" 400 " in raw(port, b"GET / HTTP/1.1\r\n\r\n").splitlines()[0]
    assert b" 400 " in raw(port, b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n").splitlines()[0]
    assert b" 400 " in raw(port, b"GET http://evil.example/ HTTP/1.1\r\nHost: localhost\r\n\r\n").splitlines()[0]


@pytest.mark.parametrize("path", ["/", "/status.json", "/metrics", "/adapter.zip", "/nothing"])
def test_beyond_this_machine_nothing_is_told_without_the_token(guarded: int, path: str) -> None:
    for wrong in ("", "?token=", "?token=wrong", f"?token={TOKEN}x", f"?token={TOKEN[:-1]}", "?token=%ff%fe"):
        code, body, _ = get(guarded, path + wrong)
        assert (code, b"loss" in body) == (401, False)
    assert get(guarded, path, Authorization=f"Basic {TOKEN}")[0] == 401
    assert get(guarded, path, Authorization="Bearer ünknown".encode().decode("latin-1"))[0] == 401
    found = get(guarded, f"{path}?token={TOKEN}")[0], get(guarded, path, Authorization=f"Bearer {TOKEN}")[0]
    assert found == ((404, 404) if path == "/nothing" else (200, 200))


def test_probes_need_no_token_and_links_carry_it(guarded: int) -> None:
    assert get(guarded, "/healthz")[0] == get(guarded, "/readyz")[0] == 200
    body = get(guarded, f"/?token={TOKEN}")[1].decode()
    assert f'href="/adapter.zip?token={TOKEN}"' in body


def test_a_token_is_drawn_where_none_is_given(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(listener.TOKEN, raising=False)
    drawn = set()
    for _ in range(2):
        with listener.serving(folder, "0.0.0.0", 0, "--listen") as address:
            drawn.add(address.partition("?token=")[2])
    assert len(drawn) == 2
    assert min(map(len, drawn)) >= 32


def test_a_long_or_slow_head_is_given_up(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    long = b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: " + b"a" * (listener.HEAD_BYTES - 4000)
    assert b" 200 " in raw(port, long + b"\r\n\r\n").splitlines()[0]
    assert b" 431 " in raw(port, long + b"a" * 8000).splitlines()[0]
    monkeypatch.setattr(listener, "HEAD_S", 0.3)
    with socket.create_connection(("127.0.0.1", port), timeout=20) as s:
        began = time.monotonic()
        while time.monotonic() < began + 10:  # a byte from time to time is no way to stay
            try:
                s.sendall(b"G")
                s.settimeout(0.05)
                if s.recv(10) == b"":
                    break
            except TimeoutError:
                continue
            except OSError:
                break
        else:
            raise AssertionError("the connection was kept")


@pytest.mark.parametrize(
    "said",
    [
        b"\r\n\r\n",
        b"\x16\x03\x01\x02\x00\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9\r\n\r\n",
        b"GET / FTP/1\r\n\r\n",
        b"GET / HTTP/1.1\r\n<script>\r\n\r\n",
        b"GET /" + b"%" * 500 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /?" + b"a=b&" * 50 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ],
)
def test_whatever_comes_the_board_goes_on_and_repeats_nothing(port: int, said: bytes) -> None:
    assert b"<script>" not in raw(port, said)
    assert get(port, "/healthz")[0] == 200


def test_too_many_connections_are_closed_and_a_place_comes_back(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    held = [socket.create_connection(("127.0.0.1", port), timeout=5) for _ in range(listener.MAX_CONNECTIONS)]
    time.sleep(0.2)
    assert raw(port, b"") == b""  # closed without an answer, long before its time is up
    for s in held:
        s.close()
    ends = time.monotonic() + 10
    while True:
        try:
            assert get(port, "/healthz")[0] == 200
            break
        except (OSError, http.client.HTTPException):
            assert time.monotonic() < ends, "the places were lost"
            time.sleep(0.05)


def test_an_address_that_cannot_be_had_is_one_line(folder: Path, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for host, at in (("127.0.0.1", port), ("no-such-name.invalid", 80), ("203.0.113.7", 80)):
        with pytest.raises(ConfigError, match=f"--board {host}:{at}: cannot listen"):
            listener.serving(folder, host, at, "--board").__enter__()
    monkeypatch.setenv(listener.TOKEN, "short")
    with pytest.raises(ConfigError, match="at least 16"):
        listener.serving(folder, "127.0.0.1", 0, "--board").__enter__()
