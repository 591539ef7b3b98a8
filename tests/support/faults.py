"""A world in which everything fails, driven by one seed.

    World      one generator of chance, one clock, who is acting, what was injected
    Disk       stands in for `os` in the routines of files: crashes at each call, torn files, a full disk, lost renames

Time is virtual: it passes when somebody sleeps, and jumps to the next event. `faulty` is the network and the sites of
such a world, `witness` judges what comes of them, `scenario` puts a run together.
"""

import contextlib
import errno
import functools
import heapq
import os
import random
import stat
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from fedft import durable, testing
from fedft.client import requests
from fedft.config import RunConfig
from fedft.reports import metric_log
from fedft.server import attempt_numbers, checkpoint, loop
from fedft.server import round as round_

SERVER = "server"
FAULTY_S = 20_000  # of virtual time
EPOCH = 1_700_000_000  # of the virtual clock, for the times of files


class Killed(BaseException):
    """What SIGKILL is to a simulation: nothing catches it."""


@dataclass
class Odds:
    """Probabilities: of the network's faults per message, of the others per call."""

    drop: float = 0.0
    corrupt: float = 0.0
    duplicate: float = 0.0
    cross: float = 0.0
    """A reply is delivered as the answer to somebody else's message."""
    replay: float = 0.0
    """A message seen before is delivered once more, either way."""
    slow: float = 0.0
    """A message takes many seconds."""
    link_lost: float = 0.0
    offline: float = 0.0
    kill_server: float = 0.0
    kill_site: float = 0.0
    kill_server_disk: float = 0.0
    """At each call of the disk, as the next one."""
    kill_site_disk: float = 0.0
    torn: float = 0.0
    """After a crash: a file that was finished is damaged."""
    full_server: float = 0.0
    full_site: float = 0.0

    @staticmethod
    def drawn(rng: random.Random) -> "Odds":
        """About half of the faults, each rare or frequent."""
        most = {"link_lost": 0.02, "offline": 0.02, "kill_server": 0.01, "kill_server_disk": 0.04, "kill_site": 0.05}
        most |= {"kill_site_disk": 0.08, "full_server": 0.01, "full_site": 0.02, "torn": 0.5}
        odds = Odds()
        for f in fields(Odds):
            if rng.random() < 0.55:
                setattr(odds, f.name, most.get(f.name, 0.25) * 10 ** -(1.5 * rng.random()))
        return odds


class World:
    """Chance, time and the count of what went wrong. `calm` ends all faults."""

    def __init__(self, seed: int, odds: Odds | None = None) -> None:
        self.rng = random.Random(seed)
        self.odds = odds or Odds.drawn(self.rng)
        self.now, self.calm, self.actor = 0.0, False, SERVER
        self.counts: Counter[str] = Counter()
        self.kill_at = 0
        """Number of the disk call at which its actor is killed; 0: chance decides."""
        self.disk_calls = 0
        self.tired: Callable[[], None] = lambda: None
        """Called when faults have gone on for FAULTY_S."""
        self.patience = float("inf")
        """When time must have ended."""
        self.full_until: dict[str, float] = {}
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._sequence = 0

    def chance(self, kind: str) -> bool:
        """Whether a fault of this kind happens now."""
        p = getattr(self.odds, kind)
        if self.calm or not p or self.rng.random() >= p:
            return False
        self.counts[kind] += 1
        return True

    def monotonic(self) -> float:
        """The virtual time: this is a `Clock`."""
        return self.now

    def time(self) -> float:
        """The same, as a date."""
        return EPOCH + self.now

    def sleep(self, seconds: float) -> None:
        """Let time pass: at least so much, and up to a second where nothing happens meanwhile."""
        until = self.now + seconds
        if not self._events or self._events[0][0] > until:
            until = min(self._events[0][0] if self._events else self.now + 1, self.now + 1)
        self.live(until)
        if self.now > FAULTY_S and not self.calm:
            self.tired()
        assert self.now < self.patience, "nothing fails any more, yet time goes on and on"
        self.risk()

    def at(self, delay: float, act: Callable[[], None]) -> None:
        """Do something later."""
        self._sequence += 1
        heapq.heappush(self._events, (self.now + delay, self._sequence, act))

    def live(self, until: float) -> None:
        """Everything that happens until then."""
        while self._events and self._events[0][0] <= until:
            self.now, _, act = heapq.heappop(self._events)
            act()
        self.now = max(self.now, until)

    def risk(self) -> None:
        """The server may be killed here."""
        if self.actor == SERVER and self.chance("kill_server"):
            raise Killed

    @contextlib.contextmanager
    def acting(self, name: str) -> Iterator[None]:
        """Inside, it is this process that writes to its disk."""
        before, self.actor = self.actor, name
        try:
            yield
        finally:
            self.actor = before


class Disk:
    """`os` for the routines that put files on disk. What was renamed and not yet fsynced may come undone."""

    def __init__(self, world: World, torn: Callable[[str, Path], None]) -> None:
        """`torn` hears of files that were finished and are about to be damaged; PermissionError forbids it."""
        self._world, self._torn = world, torn
        self._last: dict[str, deque[Path]] = {}
        self._history: Path | None = None
        """A history that is being added to."""
        self._added_to: dict[str, Path] = {}
        """The history of each actor, whose last round may be torn however long ago it came."""
        self._undo: tuple[Path, bytes | None] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def call(self, what: str, spoil: Callable[[float], None] = lambda share: None) -> None:
        """A call that may be this process's last, or find the disk full; `spoil` keeps a share of what was written."""
        w = self._world
        w.disk_calls += 1
        side = "server" if w.actor == SERVER else "site"
        if w.disk_calls == w.kill_at or (not w.kill_at and w.chance(f"kill_{side}_disk")):
            w.counts[f"crash at {what}"] += 1
            spoil(w.rng.random())
            raise Killed
        if w.chance(f"full_{side}"):
            w.full_until[w.actor] = w.now + 20 * w.rng.random()
        if self.full(w.actor) and what not in ("removal", "mkdir"):
            w.counts[f"full at {what}"] += 1
            spoil(w.rng.random())
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def full(self, actor: str) -> bool:
        return not self._world.calm and self._world.now < self._world.full_until.get(actor, 0.0)

    def open(self, name: Any, flags: int, mode: int = 0o777) -> int:
        if flags != os.O_RDONLY:
            self.call("open")
        if flags & os.O_APPEND and Path(name).name.startswith("history"):
            self._history = Path(name)
        return os.open(name, flags, mode)

    def fsync(self, fd: int) -> None:
        """Of a file: what is in it may be cut. Of a folder: the rename before may be lost."""
        about = os.fstat(fd)
        if stat.S_ISDIR(about.st_mode):
            self.call("fsync of the folder", self._rename_lost)
            self._undo = None
        else:
            kept = max(0, about.st_size - 60)  # a line that is appended is longer: those before it stay
            history, self._history = self._history, None
            self.call("fsync", lambda share: os.ftruncate(fd, max(int(about.st_size * share), kept)))
            if history is not None:
                self._added_to[self._world.actor] = history

    def _rename_lost(self, share: float) -> None:
        undo, self._undo = self._undo, None
        if undo is not None and share < 0.5:
            path, before = undo
            os.unlink(path)
            if before is not None:
                path.write_bytes(before)
                os.utime(path, (EPOCH + self._world.now,) * 2)

    def replace(self, aside: Path, path: Path) -> None:
        self.call("rename")
        before = path.read_bytes() if path.exists() else None
        os.replace(aside, path)
        os.utime(path, (EPOCH + self._world.now,) * 2)
        self._undo = path, before
        self._last.setdefault(self._world.actor, deque(maxlen=3)).append(path)

    def crashed(self, actor: str) -> None:
        """After a crash a file written lately may be torn, though it was finished."""
        self._undo = None
        rng, last = self._world.rng, self._last.get(actor)
        if not last or not self._world.chance("torn"):
            return
        path = rng.choice([*last, *([self._added_to[actor]] if actor in self._added_to else [])])
        with contextlib.suppress(FileNotFoundError, PermissionError):
            raw, age = path.read_bytes(), path.stat().st_mtime
            self._torn(actor, path)
            cut = rng.randrange(max(0, len(raw) - 60) if path.name.startswith("history") else 0, len(raw)) if raw else 0
            gone = (
                raw[:cut] if path.name.startswith("history") else b""
            )  # of a record that is longer: those before it stay
            path.write_bytes(rng.choice([raw[:cut], raw[:cut] + bytes(len(raw) - cut), gone]))
            os.utime(path, (age, age))
            self._world.counts[f"torn {path.name.split('-')[0].split('.')[0]}"] += 1


@contextlib.contextmanager
def installed(world: World, disk: Disk) -> Iterator[None]:
    """Inside, files and clocks are the world's."""
    paths = {name: getattr(Path, name) for name in ("mkdir", "unlink", "rmdir", "rename")}

    def risky(name: str, what: str) -> Callable[..., Any]:
        def call(self: Path, *args: Any, **kw: Any) -> Any:
            if name != "mkdir" or not self.exists():
                disk.call(what)
            return paths[name](self, *args, **kw)

        return call

    tables: dict[int, dict[str, Any]] = {}
    to_dict = RunConfig.to_dict

    def remembered(config: RunConfig) -> dict[str, Any]:
        if id(config) not in tables:
            tables[id(config)] = to_dict(config)
        return tables[id(config)]

    usage = SimpleNamespace(disk_usage=lambda p: SimpleNamespace(free=0 if disk.full(SERVER) else 2**40))
    with contextlib.ExitStack() as stack:
        for module in (durable, metric_log):
            stack.enter_context(mock.patch.object(module, "os", disk))
        for module in (loop, round_, requests, attempt_numbers):
            stack.enter_context(mock.patch.object(module, "time", world))
        stack.enter_context(mock.patch.object(checkpoint, "shutil", usage))
        stack.enter_context(mock.patch.object(RunConfig, "to_dict", remembered))
        stack.enter_context(mock.patch.object(testing, "data_of", functools.cache(testing.data_of)))
        for name, what in (("unlink", "removal"), ("rmdir", "removal"), ("rename", "removal"), ("mkdir", "mkdir")):
            stack.enter_context(mock.patch.object(Path, name, risky(name, what)))
        yield
