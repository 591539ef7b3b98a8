"""`fedft probe`: what the health checks of containers say of a server and of a site."""

import os
import re
import socket
import threading
import time
from pathlib import Path

import pytest
import typer
from carried import House, wait

from fedft.carriers import connectivity_check
from fedft.cli import probe
from fedft.client import contact
from fedft.errors import ConfigError

SITE = """
[site]
name = "ann"
state = "state"
[server]
address = "fl.example.org:9443"
[model]
id = "some/model"
[data]
train = "rows.jsonl"
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    file = tmp_path / "site.toml"
    file.write_text(SITE)
    for name in ("state", "keys"):
        (tmp_path / name).mkdir()
    for name in ("keys/ca.pem", "keys/server.pub", "keys/signing.key", "keys/node.key", "rows.jsonl"):
        (tmp_path / name).touch()
    return file


def test_a_server_that_answers_is_well_and_its_sites_stay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also where its certificate is for the names under which others reach it, as a container's own port is asked."""
    house = House(tmp_path, "ann")
    ca = tmp_path / "server" / "ca.pem"
    stop, node = threading.Event(), house.node("ann")
    thread = threading.Thread(target=node.run, args=(lambda *_: None, stop), daemon=True)
    assert not node.connected()
    thread.start()
    try:
        (before,) = house.online("ann").values()
        wait(node.connected)
        probe.probe(house.address, ca)
        assert re.fullmatch(rf"{house.address} answers over TLS in \d+\.\d\d s\n", capsys.readouterr().out)
        assert house.online("ann") == {"ann": before}
        assert node.connected()
        house.link.close()
        wait(lambda: not node.connected())
        with pytest.raises(typer.Exit) as ended:
            probe.probe(house.address, ca)
        assert ended.value.exit_code == 1
        assert "is refused: nothing listens there" in capsys.readouterr().err
    finally:
        stop.set()
        thread.join(10)


def test_a_port_of_somebody_else_is_not_well(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another authority's server, and one that never answers."""
    house = House(tmp_path / "one")
    other = House(tmp_path / "two")
    try:
        with pytest.raises(typer.Exit):
            probe.probe(house.address, tmp_path / "two" / "server" / "ca.pem")
        assert "another authority" in capsys.readouterr().err
    finally:
        house.link.close()
        other.link.close()
    monkeypatch.setattr(connectivity_check.dial, "CONNECT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(typer.Exit):
        probe.probe(f"127.0.0.1:{silent.getsockname()[1]}", tmp_path / "one" / "server" / "ca.pem")


def test_a_mistake_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="wanted HOST:PORT"):
        probe.probe("9443", tmp_path / "ca.pem")
    with pytest.raises(ConfigError, match=r"ca\.pem: cannot be read"):
        probe.probe("127.0.0.1:9443", tmp_path / "ca.pem")
    with pytest.raises(ConfigError):
        probe.probe(str(tmp_path / "none.toml"))


def test_a_site_is_well_while_its_server_was_heard_lately(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def code() -> int:
        try:
            probe.probe(str(site))
        except typer.Exit as e:
            return e.exit_code
        return 0

    assert code() == 1
    assert "site ann never heard its server fl.example.org:9443" in capsys.readouterr().err
    file = site.parent / "state" / contact.FILE
    file.touch()
    assert code() == 0
    old = time.time() - 121
    os.utime(file, (old, old))
    assert code() == 1
    assert "heard its server fl.example.org:9443 121 s ago" in capsys.readouterr().err
    probe.probe(str(site), within=200)


def test_contact_is_noted_while_there_is_some(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also after the file was lost; no longer than the server is heard; a folder that is gone ends nothing."""
    monkeypatch.setattr(contact, "EVERY_S", 0.01)
    monkeypatch.setattr(contact, "SOON_S", 0.01)
    connected, stop, looks = True, threading.Event(), [0]

    def now() -> bool:
        looks[0] += 1
        return connected

    thread = threading.Thread(target=contact.keep, args=(tmp_path / "state", now, stop))
    assert contact.seconds_ago(tmp_path / "state") is None
    thread.start()
    try:
        wait(lambda: looks[0] > 2)
        (tmp_path / "state").mkdir()
        wait(lambda: contact.seconds_ago(tmp_path / "state") is not None)
        connected, seen = False, looks[0]
        wait(lambda: looks[0] > seen + 1)
        (tmp_path / "state" / contact.FILE).unlink()
        seen = looks[0]
        wait(lambda: looks[0] > seen + 2)
        assert contact.seconds_ago(tmp_path / "state") is None
    finally:
        stop.set()
        thread.join(10)
    assert not thread.is_alive()
