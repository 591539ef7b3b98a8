"""What may be done to a deployment, when, and a run that is disturbed in that way; `chaos.py` compares its end."""

import random
import re
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from network import Wire
from processes import Service

HOW = {
    "server": ("kill -9", "SIGTERM", "freeze"),
    "client": ("kill -9", "SIGTERM", "freeze"),
    "network": ("cut", "stall"),
}
PAUSE_S = 6.0  # longest pause before a restart
AWAY_S = 12.0  # longest freeze or cut: longer than a site's heartbeat
DELAY_S = 3.0  # longest wait for a place inside of a round
BURST = 1 / 3  # of the kills come before the one before is over
SIGNALS = {"kill -9": signal.SIGKILL, "SIGTERM": signal.SIGTERM, "freeze": signal.SIGSTOP}
ORDERLY = {"server": 130, "client": 0}
ENDS_S = 30.0  # after SIGTERM and the pause: what runs still is wrong
TOO_SOON = -signal.SIGTERM  # before the command has said what SIGTERM shall do: it was still importing


@dataclass(frozen=True)
class Kill:
    """One disturbance, as the seed has it."""

    after: int
    """States that must stand before it comes; a burst comes whatever stands."""
    delay: float
    """Seconds from then on, up to DELAY_S; half a round at most, so that short ones are not over before."""
    burst: bool
    what: str
    how: str
    site: str
    away: float
    """Seconds until it is restarted, thawed or mended."""


def plan(kinds: list[str], seed: int, rounds: int, sites: list[str]) -> list[Kill]:
    """Kills of these kinds (keys of HOW), one after the other, spread over the rounds."""
    rng = random.Random(seed)
    planned = []
    for i, what in enumerate(kinds):
        how = rng.choice(HOW[what])
        lasts = how in ("freeze", "cut", "stall")
        away = rng.uniform(0.5, AWAY_S) if lasts else rng.choice([0.0, rng.uniform(0, PAUSE_S)])
        after = int(0.97 * rounds * (i + rng.random()) / len(kinds))
        planned.append(
            Kill(after, rng.uniform(0, DELAY_S), i > 0 and rng.random() < BURST, what, how, rng.choice(sites), away)
        )
    return planned


@dataclass
class Chaos:
    """A running deployment and what is done to it."""

    server: Service
    clients: dict[str, Service]
    wires: dict[str, Wire]
    say: Callable[[str], None]
    done: list[dict[str, Any]] = field(default_factory=list)
    states: list[tuple[float, int]] = field(default_factory=list)
    """When each state was first told of."""
    wrong: list[str] = field(default_factory=list)
    """What no disturbance explains."""
    _read: int = 0
    _later: list[tuple[float, Callable[[], object]]] = field(default_factory=list)
    down: set[str] = field(default_factory=set)
    """The server and clients that have been struck and are not back yet."""

    def run(self, planned: list[Kill], patience_s: float, look: Callable[[], bool] = lambda: False) -> bool:
        """Disturb until the run is finished, or `look`, which is called all the time, says so; False if it is stuck."""
        begun = time.monotonic()
        waiting, due = list(planned), None
        while True:
            now = time.monotonic()
            self._look()
            for item in [x for x in self._later if x[0] <= now]:
                self._later.remove(item)
                item[1]()
            if self._finished() or look():
                return True
            if waiting:
                kill = waiting[0]
                if due is None and (kill.burst or self._version() >= kill.after):
                    due = now + min(kill.delay, kill.delay / DELAY_S * self._round_s() / 2)
                if due is not None and now >= due:
                    waiting.pop(0)
                    due = None
                    self._disturb(kill, now - begun)
            last = max([t for t, _ in self.states] + [d["at"] + begun + d["away"] for d in self.done] + [begun])
            if now > last + patience_s:
                return False
            time.sleep(0.02)

    def _round_s(self) -> float:
        """Seconds of a round so far; 0 before two states are told of."""
        return (self.states[-1][0] - self.states[0][0]) / (len(self.states) - 1) if len(self.states) > 1 else 0.0

    def _finished(self) -> bool:
        """Whether the server is done; what else has ended by itself is noted as wrong and started again."""
        for name, service in {"server": self.server, **self.clients}.items():
            if name not in self.down and (code := service.code()) is not None:
                if (name, code) == ("server", 0):
                    return True
                said = service.said().strip().splitlines()
                end = said[-1] if said else "nothing said"
                self.wrong.append(f"{name}: ended by itself with exit code {code}: {end}")
                service.start()
        return False

    def _version(self) -> int:
        """The newest state that the server has told of."""
        return self.states[-1][1] if self.states else 0

    def _look(self) -> None:
        """Read what the server has logged since the last look."""
        with open(self.server.log, "rb") as log:
            log.seek(self._read)
            new = log.read()
        new = new[: new.rfind(b"\n") + 1]
        self._read += len(new)
        for version in re.findall(rb"state (\d+)[,;]", new):
            self.states.append((time.monotonic(), int(version)))

    def _disturb(self, kill: Kill, at: float) -> None:
        """Do what the plan says, `at` seconds after the beginning, and have it undone later."""
        what, how, name = kill.what, kill.how, kill.site
        if what == "network":
            wire = self.wires[name]
            wire.cut() if how == "cut" else wire.stall()
            self._in(kill.away, wire.mend)
        else:
            what = "client" if what == "client" else "server"
            name = name if what == "client" else "server"
            if name in self.down:
                how = "(is down already)"
            else:
                self._strike(what, name, how, kill.away)
        target = what if what == "server" else f"{what} {name}"
        self.done.append({"at": at, "states": self._version(), "what": target, "how": how, "away": kill.away})
        self.say(f"{at:6.1f} s  state {self._version():3d}  {target}: {how}, back after {kill.away:.1f} s")

    def _strike(self, what: str, name: str, how: str, away: float) -> None:
        """Kill, stop or freeze the server or a client; it comes back after `away` seconds."""
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

    def _in(self, seconds: float, act: Callable[[], object]) -> None:
        """Have `act` called that many seconds from now."""
        self._later.append((time.monotonic() + seconds, act))
