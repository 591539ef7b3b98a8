"""Typical mistakes end with one line on stderr that says what was found, what was wanted and where to look."""

import errno
import itertools
import logging
import os
import shlex
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import place_of_mistakes
import pytest
from typical_mistakes import MISTAKES, Mistake

from fedft.cli import main
from fedft.server import run_folder

MIN = 43
LONGEST = 700


@dataclass
class Said:
    code: int
    out: str
    err: str


Command = Callable[[str], Said]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    at = tmp_path_factory.mktemp("mistakes")
    place_of_mistakes.prepare(at)
    return at


@pytest.fixture
def fedft(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Command]:
    """The command in this process, in the folder of mistakes."""
    root = logging.getLogger()
    before = root.handlers[:], root.level, {n: logging.getLogger(n).level for n in ("httpx", "flwr", "datasets")}
    monkeypatch.chdir(place)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("FEDFT_ALLOW", raising=False)

    def run(command: str) -> Said:
        monkeypatch.setattr(sys, "argv", ["fedft", *shlex.split(command)])
        root.handlers[:] = []  # the command's own log goes to stderr
        code = 0
        try:
            main.main()
        except SystemExit as e:
            code = int(e.code or 0)
        return Said(code, *capsys.readouterr())

    if not (place / "done").exists():
        assert run("simulate run.toml --out done").code == 0
        place_of_mistakes.spoil_runs(place)
    yield run
    root.handlers[:], levels = before[0], before[2]
    root.setLevel(before[1])
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def the_line(said: Said, code: int) -> str:
    """The one line that a mistake left on stderr."""
    lines = said.err.strip().splitlines()
    assert said.code == code, said.err
    assert len(lines) == 1, said.err
    line = lines[0]
    assert line.startswith("fedft: ")
    assert "Traceback" not in said.out
    assert len(line) < LONGEST
    assert "  " not in line
    return line


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda m: m.command)
def test_a_typical_mistake_is_answered_in_one_line(fedft: Command, mistake: Mistake) -> None:
    line = the_line(fedft(mistake.command), mistake.code)
    for part in mistake.said:
        assert part in line
    words = line.removeprefix("fedft: ").split(": ")
    assert all(a != b for a, b in itertools.pairwise(words)), "a name is there twice"


def test_there_are_as_many_as_a_new_user_makes() -> None:
    commands = [m.command for m in MISTAKES]
    assert len(set(commands)) == len(commands) >= MIN
    assert all(m.said and m.code for m in MISTAKES)


def test_a_finished_run_that_is_resumed_says_what_would_go_on(fedft: Command) -> None:
    said = fedft("simulate run.toml --out done --resume")
    assert said.code == 0
    assert "nothing is left to do" in said.err
    assert "server.rounds goes on, as 2" in said.err


def test_a_run_that_is_still_running_is_left_alone(fedft: Command, place: Path) -> None:
    with run_folder.alone(place / "done"):
        said = fedft("simulate run.toml --out done --resume --set server.rounds=2")
    assert "another process is running this run" in the_line(said, 2)


def test_a_port_that_is_taken_is_named(fedft: Command) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        line = the_line(fedft(f"server run.toml --keys keys --out taken --listen 127.0.0.1:{port}"), 2)
    assert f"cannot listen on 127.0.0.1:{port}" in line
    assert "in use" in line


def test_a_full_disk_pauses_the_run(fedft: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    line = the_line(fedft("simulate run.toml --out full"), 75)
    assert "full/" in line
    assert "No space left on device" in line
    assert "make room and resume" in line


def test_ctrl_c_says_how_to_go_on(fedft: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fedft.server.loop.Loop.run", stop)
    line = the_line(fedft("simulate run.toml --out stopped"), 130)
    assert "add --resume --out stopped to the same command" in line


def test_doctor_has_a_line_for_each_fault_and_a_remedy(fedft: Command) -> None:
    for command, fault in {
        "doctor none.toml": "none.toml: no such",
        "doctor typo.toml --no-model": "max_rnk",
        "doctor run.toml --keys expired --no-model": "expired",
        "doctor run.toml --keys foreign --no-model": "not signed by ca.pem",
        "doctor run.toml --keys keys --listen 80 --no-model": "wanted HOST:PORT",
    }.items():
        said = fedft(command)
        assert said.code == 1, command
        assert fault in said.out, command
        assert "Traceback" not in said.out + said.err
