"""`fedft board` and `fedft server --board`: the address is said, and what is there is the run's page."""

import logging
import re
import threading
import urllib.request
from pathlib import Path

import pytest
import watched_runs

from fedft.board import listener
from fedft.cli import deploy, watch
from fedft.errors import ConfigError


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A board ends at once, and no proxy is asked."""
    monkeypatch.setattr(listener, "POLL_S", 0.01)
    monkeypatch.setenv("NO_PROXY", "*")


def read(address: str) -> str:
    with urllib.request.urlopen(address, timeout=20) as answer:
        return str(answer.read().decode())


def test_the_board_serves_until_it_is_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[str] = []

    def look_and_interrupt() -> None:
        (address,) = re.findall(r"http://\S+", capsys.readouterr().out)
        seen.extend((address, read(address)))
        raise KeyboardInterrupt

    monkeypatch.setattr(watch, "_wait", look_and_interrupt)
    watch.board(watched_runs.folder(tmp_path / "run"), "127.0.0.1:0")
    assert "3 of 6 rounds done" in seen[1]
    with pytest.raises(OSError, match="refused"):
        read(seen[0])


def test_the_board_of_no_run_is_refused_before_it_listens(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="wanted the folder of a run"):
        watch.board(tmp_path, "127.0.0.1:0")


def test_a_server_shows_its_run_from_before_it_begins_until_it_ends(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO), deploy._shown(tmp_path / "run", "127.0.0.1:0"):
        (address,) = re.findall(r"board: (http://\S+)", caplog.text)
        assert "no run here yet" in read(address)
        watched_runs.folder(tmp_path / "run")
        assert "3 of 6 rounds done" in read(address)
    with pytest.raises(OSError, match="refused"):
        read(address)
    with deploy._shown(tmp_path / "run", ""):
        assert "board" not in {t.name for t in threading.enumerate()}
