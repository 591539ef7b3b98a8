"""Real processes of a deployment on loopback: `fedft server` and `fedft client`, ended with the block whatever happens.

with Deployment(folder, "run.toml", ["server.rounds=2"]) as d:
    d.rehearse()                         # keys, site folders
    server, north = d.server(), d.client("north")
    server.wait_for("finished", 60)
"""

import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import warm_processes

FEDFT = (sys.executable, "-m", "fedft")
POLL_S = 0.05


class Ended(AssertionError):
    """A process ended, or said nothing in time, while something else was expected of it."""


class Service:
    """A command of ours that runs until it is stopped; what it prints goes to `log`, one file over all its starts."""

    def __init__(self, log: Path, *command: str) -> None:
        self.log, self.command = log, command
        self.program: Sequence[str] = FEDFT
        self.starts = 0
        self._process: warm_processes.Process | None = None
        self._from = 0

    @property
    def pid(self) -> int:
        """Of the present or last process."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> Self:
        """Start, or start again."""
        with open(self.log, "ab") as log:
            self._from = log.tell()
            self._process = warm_processes.start([*self.program[1:], *self.command], log, log)
        self.starts += 1
        return self

    def code(self) -> int | None:
        """Exit code, None while it runs."""
        assert self._process is not None
        return self._process.poll()

    def send(self, number: int) -> None:
        """Send a signal to the process alone."""
        assert self._process is not None
        self._process.send_signal(number)

    def ended(self, seconds: float = 30) -> int:
        """Wait for the end; returns the exit code."""
        assert self._process is not None
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise Ended(f"{self.command[0]} still runs after {seconds} s:\n{self.said()}") from None

    def stop(self, seconds: float = 30) -> int:
        """SIGTERM; returns the exit code."""
        self.send(signal.SIGTERM)
        return self.ended(seconds)

    def kill(self) -> None:
        """End it and all its children now."""
        if self._process is not None:
            for act in (signal.SIGCONT, signal.SIGKILL):
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(self._process.pid, act)
            self._process.wait()

    def said(self) -> str:
        """What it has printed since its last start."""
        with open(self.log, "rb") as log:
            log.seek(self._from)
            return log.read().decode(errors="replace")

    def lines(self) -> list[str]:
        """The same without the times that log lines begin with."""
        return [re.sub(r"^\S+Z (\w+) +", r"\1 ", line) for line in self.said().splitlines()]

    def wait_for(self, pattern: str, seconds: float = 60) -> str:
        """The first line since the last start in which the pattern is found. Raises Ended if none comes."""
        until = time.monotonic() + seconds
        while True:
            code = self.code()
            for line in self.lines():
                if re.search(pattern, line):
                    return line
            if code is not None or time.monotonic() > until:
                state = "runs" if code is None else f"ended with {code}"
                raise Ended(f"no {pattern!r} from {' '.join(self.command[:2])}, which {state}; it said:\n{self.said()}")
            time.sleep(POLL_S)

    def children(self) -> list[int]:
        """Process ids of all that it has started and that live."""
        parents = dict(_processes())
        family = {self.pid}
        while more := {pid for pid, parent in parents.items() if parent in family} - family:
            family |= more
        return sorted(family - {self.pid})


def _processes() -> Iterator[tuple[int, int]]:
    """Every living process and its parent."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with suppress(OSError):
                state, parent = (entry / "stat").read_text().rsplit(")", 1)[1].split()[:2]
                if state not in "ZX":
                    yield int(entry.name), int(parent)


def lives(pid: int) -> bool:
    """Whether there is such a process, and not only what is left of one."""
    return pid in dict(_processes())


def command_of(pid: int) -> str:
    """Its command line."""
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()


def free_port() -> int:
    """A port of loopback that nobody listens on, below those that the system gives to outgoing connections."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as s, suppress(OSError):
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            s.bind(("127.0.0.1", port))
            return port


@dataclass
class Deployment:
    """One run file's server and sites, in `folder`."""

    folder: Path
    run: Path
    overrides: Sequence[str] = ()
    port: int = field(default_factory=free_port)
    services: list[Service] = field(default_factory=list)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        for service in self.services:
            service.kill()

    @property
    def keys(self) -> Path:
        """The server's key folder."""
        return self.folder / "keys"

    @property
    def out(self) -> Path:
        """The run folder."""
        return self.folder / "out"

    def site(self, name: str) -> Path:
        """A site's folder."""
        return self.folder / "sites" / name

    def rehearse(self, reached_at: int | None = None) -> list[str]:
        """Make keys and site folders as the commands do; returns the sites' names.

        Args:
            reached_at: port that the sites connect to, where that is not the server's own.
        """
        from fedft import run_file
        from fedft.security import new_keys
        from fedft.simulations import split_for_sites

        new_keys.make_server(self.keys, ["127.0.0.1", "localhost"], 30)
        c = run_file.load(self.run, self.overrides)
        made = split_for_sites.split(
            c, self.folder / "sites", server=f"127.0.0.1:{reached_at or self.port}", keys=self.keys
        )
        return [path.parent.name for path in made]

    def server(self, *more: str, out: Path | None = None) -> Service:
        """Start the server."""
        sets = [part for override in self.overrides for part in ("--set", override)]
        where = ["--keys", str(self.keys), "--out", str(out or self.out), "--listen", f"127.0.0.1:{self.port}"]
        return self._service("server", "server", str(self.run), *where, *sets, *more)

    def client(self, name: str, *more: str) -> Service:
        """Start a site's client."""
        return self._service(name, "client", str(self.site(name) / "site.toml"), *more)

    def _service(self, log: str, *command: str) -> Service:
        service = Service(self.folder / f"{log}.log", *command)
        self.services.append(service)
        return service.start()
