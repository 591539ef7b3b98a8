"""A deployment that is disturbed all the time must end with the bytes of a simulation that nobody disturbed.

    python benchmarks/deployment/chaos.py RUN.toml --kills 30 --seed 0 --set server.rounds=60

Simulates the run file, then deploys it on this machine: a server, its SuperLink, a client for each site, and a proxy
before each site that stands for the network. At random moments, spread over the rounds, one of them is killed, stopped
in an orderly way, frozen for a while or cut off, a third of the times before the last one has recovered; it comes back
at once or after a pause. All sites must be in every round, so that the same updates are added up. Exit code 1 if any
state differs from the simulation's, or if the run gets stuck.
"""

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp
from typing import Annotated, Any

import typer

sys.path.append(str(Path(__file__).resolve().parents[2] / "tests" / "support"))

from processes import FEDFT, Deployment, Service, command_of, lives

HOW = {
    "server": ("kill -9", "SIGTERM", "freeze"),
    "superlink": ("kill -9", "SIGTERM", "freeze"),
    "client": ("kill -9", "SIGTERM", "freeze"),
    "network": ("cut", "stall"),
}
PAUSE_S = 6.0  # longest pause before a restart
AWAY_S = 12.0  # longest freeze or cut: longer than a site's heartbeat
BURST = 1 / 3  # of the kills come before the one before is over
SIGNALS = {"kill -9": signal.SIGKILL, "SIGTERM": signal.SIGTERM, "freeze": signal.SIGSTOP}
ORDERLY = {"server": 130, "client": 0}
ENDS_S = 30.0  # after SIGTERM and the pause: what runs still is wrong
TOO_SOON = -signal.SIGTERM  # before the command has said what SIGTERM shall do: it was still importing


class Wire:
    """The network between one site and the server, which can be cut (refused, reset) or stall (silence)."""

    def __init__(self, to: int) -> None:
        self._to = to
        self._open: set[socket.socket] = set()
        self._cut = False
        self._flows = threading.Event()
        self._flows.set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Reset what is open, and whatever is opened from now on."""
        self._cut = True
        for end in list(self._open):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def stall(self) -> None:
        """Carry no byte more."""
        self._flows.clear()

    def mend(self) -> None:
        """As new."""
        self._cut = False
        self._flows.set()

    def _accept(self) -> None:
        while True:
            site, _ = self._listener.accept()
            try:
                if self._cut:
                    raise OSError
                server = socket.create_connection(("127.0.0.1", self._to))
            except OSError:
                site.close()
                continue
            for pair in ((site, server), (server, site)):
                self._open.add(pair[0])
                threading.Thread(target=self._carry, args=pair, daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                self._flows.wait()
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._open.discard(source)


@dataclass(frozen=True)
class Kill:
    """One disturbance, as the seed has it."""

    after: float
    """States that must stand before it comes; a burst comes whatever stands."""
    delay: float
    """Seconds from then on."""
    burst: bool
    what: str
    how: str
    site: str
    away: float
    """Seconds until it is restarted, thawed or mended."""


def plan(kills: int, seed: int, rounds: int, sites: list[str]) -> list[Kill]:
    """Kills spread over the rounds."""
    rng = random.Random(seed)
    planned = []
    for i in range(kills):
        what = rng.choice(list(HOW))
        how = rng.choice(HOW[what])
        lasts = how in ("freeze", "cut", "stall")
        away = rng.uniform(0.5, AWAY_S) if lasts else rng.choice([0.0, rng.uniform(0, PAUSE_S)])
        after = 0.97 * rounds * (i + rng.random()) / kills
        planned.append(
            Kill(after, rng.uniform(0, 3), i > 0 and rng.random() < BURST, what, how, rng.choice(sites), away)
        )
    return planned


@dataclass
class Chaos:
    """A deployment and what is done to it."""

    deployment: Deployment
    server: Service
    clients: dict[str, Service]
    wires: dict[str, Wire]
    say: Callable[[str], None]
    done: list[dict[str, Any]] = field(default_factory=list)
    states: list[tuple[float, int]] = field(default_factory=list)
    """When each state was first told of."""
    wrong: list[str] = field(default_factory=list)
    """What no disturbance explains."""
    superlinks: set[int] = field(default_factory=set)
    _read: int = 0
    _later: list[tuple[float, Callable[[], object]]] = field(default_factory=list)
    down: set[str] = field(default_factory=set)

    def run(self, planned: list[Kill], patience_s: float) -> bool:
        """Disturb until the run is finished; False if it is stuck."""
        begun = time.monotonic()
        waiting, due = list(planned), None
        while True:
            now = time.monotonic()
            self._look()
            for item in [x for x in self._later if x[0] <= now]:
                self._later.remove(item)
                item[1]()
            if "server" not in self.down and (code := self.server.code()) is not None:
                if code == 0:
                    return True
                self._unexpected("server", self.server, code)
            for name, client in self.clients.items():
                if name not in self.down and (code := client.code()) is not None:
                    self._unexpected(name, client, code)
            if waiting:
                kill = waiting[0]
                if due is None and (kill.burst or self._version() >= kill.after):
                    due = now + kill.delay
                if due is not None and now >= due:
                    waiting.pop(0)
                    due = None
                    self._disturb(kill, now - begun)
            last = max([t for t, _ in self.states] + [d["at"] + begun + d["away"] for d in self.done] + [begun])
            if now > last + patience_s:
                return False
            time.sleep(0.02)

    def _version(self) -> int:
        return self.states[-1][1] if self.states else 0

    def _look(self) -> None:
        with open(self.server.log, "rb") as log:
            log.seek(self._read)
            new = log.read()
        new = new[: new.rfind(b"\n") + 1]
        self._read += len(new)
        for version in re.findall(rb"state (\d+)[,;]", new):
            self.states.append((time.monotonic(), int(version)))

    def _superlink(self) -> int | None:
        if "server" in self.down:
            return None
        found = [pid for pid in self.server.children() if "superlink" in command_of(pid)]
        self.superlinks.update(found)
        return found[0] if found else None

    def _disturb(self, kill: Kill, at: float) -> None:
        what, how, name = kill.what, kill.how, kill.site
        if what == "superlink" and (pid := self._superlink()) is not None:
            _send(pid, SIGNALS[how])
            if how == "freeze":
                self._in(kill.away, lambda: _send(pid, signal.SIGCONT))
        elif what == "network":
            wire = self.wires[name]
            wire.cut() if how == "cut" else wire.stall()
            self._in(kill.away, wire.mend)
        else:
            what = "client" if what == "client" else "server"
            name = name if what == "client" else "server"
            if name in self.down:
                how = "(is down already)"
            else:
                self._superlink()
                if what == "server":  # a frozen SuperLink would outlive it, and keep its port
                    self._thaw()
                self._strike(what, name, how, kill.away)
        target = what if what in ("server", "superlink") else f"{what} {name}"
        self.done.append({"at": at, "states": self._version(), "what": target, "how": how, "away": kill.away})
        self.say(f"{at:6.1f} s  state {self._version():3d}  {target}: {how}, back after {kill.away:.1f} s")

    def _strike(self, what: str, name: str, how: str, away: float) -> None:
        service = self.server if what == "server" else self.clients[name]
        service.send(SIGNALS[how])
        self.down.add(name)

        sent = time.monotonic()

        def back() -> None:
            if how == "freeze":
                service.send(signal.SIGCONT)
            elif service.code() is None and time.monotonic() < sent + away + ENDS_S:
                self._in(0.1, back)
                return
            else:
                if service.code() is None:
                    self.wrong.append(f"{name}: runs {time.monotonic() - sent:.0f} s after {how}")
                    service.kill()
                elif how == "SIGTERM" and service.code() not in (ORDERLY[what], TOO_SOON, 0):
                    self.wrong.append(f"{name}: exit code {service.code()} after SIGTERM")
                if not (what == "server" and service.code() == 0):  # it had just finished
                    service.start()
            self.down.discard(name)

        self._in(away, back)

    def _thaw(self) -> None:
        for pid in self.superlinks:
            _send(pid, signal.SIGCONT)

    def _unexpected(self, name: str, service: Service, code: int) -> None:
        said = service.said().strip().splitlines()
        self.wrong.append(f"{name}: ended by itself with exit code {code}: {said[-1] if said else 'nothing said'}")
        service.start()

    def _in(self, seconds: float, act: Callable[[], object]) -> None:
        self._later.append((time.monotonic() + seconds, act))


def _send(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def digests(folder: Path) -> list[str]:
    """The state digest of every version, from a run folder."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["state_digest"] for line in sorted(lines, key=lambda line: line["version"])]


def main(
    run: Annotated[Path, typer.Argument(metavar="RUN.toml")],
    kills: Annotated[int, typer.Option(help="Disturbances in all.")] = 30,
    seed: Annotated[int, typer.Option(help="Of what happens when.")] = 0,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to work in [default: a new temporary one].")] = None,
    patience: Annotated[float, typer.Option(help="Seconds without a new state that count as stuck.")] = 180,
) -> None:
    """Disturb a deployment and compare it with an undisturbed simulation."""
    from fedft import run_file
    from fedft.reports.terminal import table

    folder = out or Path(mkdtemp(prefix="fedft-chaos-"))
    folder.mkdir(parents=True, exist_ok=True)
    overrides = [*(set_ or ()), "server.quorum=1.0", f"server.deadline_s={10 * patience}"]
    rounds = run_file.load(run, overrides).server.rounds
    sets = [part for override in overrides for part in ("--set", override)]
    started = time.monotonic()
    command = [*FEDFT, "simulate", str(run), *sets, "--out", str(folder / "simulated"), "--json"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    simulated = time.monotonic() - started
    typer.echo(f"simulated {rounds} rounds in {simulated:.0f} s; {folder}")
    with Deployment(folder, run, overrides) as deployment:
        names = deployment.rehearse()
        wires = {name: Wire(deployment.port) for name in names}
        for name, wire in wires.items():
            file = deployment.site(name) / "site.toml"
            file.write_text(file.read_text().replace(f":{deployment.port}", f":{wire.port}"))
        started = time.monotonic()
        server = deployment.server()
        chaos = Chaos(deployment, server, {n: deployment.client(n) for n in names}, wires, typer.echo)
        finished = chaos.run(plan(kills, seed, rounds, names), patience)
        wall = time.monotonic() - started
        for name, client in chaos.clients.items():
            client.send(signal.SIGCONT)
            if finished and name not in chaos.down and (code := client.stop()) != 0:
                chaos.wrong.append(f"{name}: exit code {code} after SIGTERM at the end")
        if left := [pid for pid in chaos.superlinks if lives(pid)] if finished else []:
            chaos.wrong.append(f"processes {left} of SuperLinks are left")
    for d in chaos.done:
        after = [t - started - d["at"] for t, _ in chaos.states if t - started > d["at"]]
        d["next_state"] = min(after, default=None)
    table(chaos.done, ("at", "states", "what", "how", "away", "next_state"))
    slowest = max((d["next_state"] - d["away"] for d in chaos.done if d["next_state"]), default=0.0)
    equal = finished and digests(deployment.out) == digests(folder / "simulated")
    verdict = "stuck" if not finished else "all states equal" if equal else "UNEQUAL"
    for line in chaos.wrong:
        typer.echo(f"wrong: {line}")
    typer.echo(
        f"{verdict}: {len(chaos.done)} of {kills} kills, {rounds} rounds, {wall:.0f} s (simulation {simulated:.0f} s); "
        f"at most {slowest:.1f} s from a return to the next state; {len(chaos.wrong)} things wrong"
    )
    if finished:
        typer.echo(f"state digest {digests(deployment.out)[-1]}")
    raise typer.Exit(0 if equal and not chaos.wrong else 1)


if __name__ == "__main__":
    typer.run(main)
