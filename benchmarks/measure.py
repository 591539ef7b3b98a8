"""How everything here is measured: CPU seconds of one thread, ways that take turns within one process, medians.

A machine that others use slows all ways alike when they take turns, and time that a process does not get is no CPU
time. Memory that was freed is kept meanwhile (glibc): else fresh pages are most of what ways with large temporaries
take, three to six times as much.
"""

import ctypes
import os
import statistics
import sys
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fedft.benchmarks.results import Row

LIMIT = "limit"  # the way that nothing can be faster than
SHORT = 5e-3  # seconds: what takes less is run several times in each turn
MOST = 200  # times
MMAP_THRESHOLD, MMAP_MAX, TRIM_THRESHOLD = -3, -4, -1  # options of glibc's mallopt


@dataclass(frozen=True)
class Act:
    """Something to time."""

    what: str
    """Group of rows that are compared with each other, e.g. "axpy" or "256 tokens"."""
    way: str
    """Which way of doing it: "published", "plain", "ours", "ours, torch", "limit"."""
    run: Callable[[], object]
    """Called in every turn, also several times; must cost the same each time."""
    times: float = 1.0
    """What is run is 1/times of the whole (4 of 4096 seeds: 1024); its seconds are multiplied by that."""


def take_turns(acts: Sequence[Act], turns: int = 7) -> tuple[Row, ...]:
    """A row for each act, in their order: every turn runs all of them, each turn begins with another one.

    The first turn warms up (imports, compilers, caches) and is not counted. What takes less than 5 ms is run several
    times within a turn.
    """
    if turns < 1:
        raise ValueError(f"expected turns >= 1, got {turns}")
    spent: list[list[float]] = [[] for _ in acts]
    last = [SHORT] * len(acts)
    with alone(), _progress((turns + 1) * len(acts)) as advance:
        for turn in range(turns + 1):
            for i in ((turn + k) % len(acts) for k in range(len(acts))):
                advance(f"{acts[i].what}, {acts[i].way}")
                again = max(1, min(MOST, int(SHORT / last[i])))
                began = time.process_time()
                for _ in range(again):
                    acts[i].run()
                last[i] = max((time.process_time() - began) / again, 1e-9)
                if turn:
                    spent[i].append(last[i] * acts[i].times)
    seconds = [statistics.median(values) for values in spent]
    return tuple(
        Row(act.what, act.way, own, spread(values), *_compared(act, own, acts, seconds))
        for act, own, values in zip(acts, seconds, spent, strict=True)
    )


def tree_seconds() -> float:
    """CPU seconds of this process and of all below it that live, to a hundredth of a second; on Linux only."""
    tick, waiting, found = os.sysconf("SC_CLK_TCK"), [os.getpid()], 0.0
    while waiting:
        pid = waiting.pop()
        try:
            # behind the name, which may hold blanks: 11 fields, then the ticks in the program and in the system
            fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
            waiting += [int(x) for task in Path(f"/proc/{pid}/task").iterdir() for x in _children(task)]
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended meanwhile
        found += (int(fields[11]) + int(fields[12])) / tick
    return found


def _children(task: Path) -> list[str]:
    return (task / "children").read_text(encoding="utf-8").split()


def spread(values: Sequence[float]) -> float:
    """The distance between the quartiles of some figures over their median; 0 of less than two."""
    if len(values) < 2:
        return 0.0
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return (high - low) / middle


def _compared(act: Act, own: float, acts: Sequence[Act], seconds: Sequence[float]) -> tuple[float | None, float | None]:
    """(ratio, of_limit) of an act that took `own` seconds."""
    alike = [(a.way, s) for a, s in zip(acts, seconds, strict=True) if a.what == act.what]
    first = next((s for way, s in alike if way != LIMIT), None)
    limit = next((s for way, s in alike if way == LIMIT), None)
    return None if first is None else first / own, None if limit is None else own / limit


@contextmanager
def alone() -> Iterator[None]:
    """One torch thread; malloc maps no large block by itself and gives no memory back. Both end with it."""
    threads = torch.get_num_threads()
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    torch.set_num_threads(1)
    if mallopt:
        mallopt(MMAP_MAX, 0)
        mallopt(TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        if mallopt:  # what glibc arrives at by itself in a process that frees large blocks
            mallopt(MMAP_MAX, 65536)
            mallopt(MMAP_THRESHOLD, 2**25)
            mallopt(TRIM_THRESHOLD, 2**26)


class Peak(TorchDispatchMode):
    """Inside, `most` is the largest number of bytes of tensors alive at once: those given, and all that torch makes."""

    def __init__(self, there: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: set[int] = set()
        for x in there:
            self._add(x)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {id(x.untyped_storage()) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        for x in tree_leaves(out):
            if isinstance(x, Tensor) and id(x.untyped_storage()) not in given:
                self._add(x)
        return out

    def _add(self, x: Tensor) -> None:
        storage = x.untyped_storage()
        if id(storage) not in self._known:  # torch keeps one object for one piece of memory
            self._known.add(id(storage))
            weakref.finalize(storage, self._drop, id(storage), storage.nbytes())
            self.now += storage.nbytes()
            self.most = max(self.most, self.now)

    def _drop(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def backends() -> tuple[str, ...]:
    """What computes shared directions on this machine's CPU: torch, and numba where it is installed."""
    return ("torch", "numba") if find_spec("numba") else ("torch",)


def with_kernels(backend: str, run: Callable[[], Any]) -> Callable[[], Any]:
    """`run` where FEDFT_KERNELS is `backend`: kernels otherwise load only after a second of work in torch."""

    def wrapped() -> Any:
        before = os.environ.get("FEDFT_KERNELS")
        os.environ["FEDFT_KERNELS"] = backend
        try:
            return run()
        finally:
            if before is None:
                del os.environ["FEDFT_KERNELS"]
            else:
                os.environ["FEDFT_KERNELS"] = before

    return wrapped


@contextmanager
def _progress(total: int) -> Iterator[Callable[[str], None]]:
    """Call with what comes next; a bar on a terminal, nothing elsewhere. Drawn between acts only: it takes CPU time."""
    console = Console(stderr=True, markup=False, emoji=False)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(bar_width=20), TimeElapsedColumn())
    shown = console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=not shown, auto_refresh=False) as bar:
        task, seen = bar.add_task("", total=total), iter(range(total))
        yield lambda what: bar.update(task, description=what, completed=next(seen), refresh=True)
