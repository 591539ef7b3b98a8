"""Runs of a race one after the other in this process, or several side by side, each in a process of its own.

    for task, outcome in side_by_side.outcomes(tasks, jobs=3, observe=observe): ...

A run is the same bytes in either way: it takes nothing from the process but its code. Its seconds are not, since runs
side by side share the machine; each result says how many there were. Processes end with this one, however it dies.
"""

import logging
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from fedft.reports.observers import Observer
from fedft.simulations import race_run
from fedft.simulations.race_run import Outcome, Stopped, Task


def outcomes(
    tasks: Sequence[Task], jobs: int, observe: Observer, wanted: Callable[[Task], bool] = lambda task: True
) -> Iterator[tuple[Task, Outcome]]:
    """Each task with what came of it, as they end; those that an earlier start has finished are not run again.

    Args:
        tasks: what to do, in the order in which it is begun.
        jobs: how many at a time, at least 1; 1: in this process.
        observe: hears `run`, then `preparing`, `step`, and `ran` or `stopped` of each run, see `race.race`.
        wanted: asked before a run is begun; one that is not is left out.
    """
    left = [(task, race_run.left_by(task)) for task in tasks]
    missing = sum(outcome is None for _, outcome in left)
    if jobs == 1 or missing < 2:
        for task, outcome in left:
            if outcome is None and wanted(task):
                outcome = _observed(task, observe)
            if outcome is not None:
                yield task, outcome
        return
    yield from ((task, outcome) for task, outcome in left if outcome is not None)
    with _Crew(min(jobs, missing), observe) as crew:
        yield from crew.carry_out([task for task, outcome in left if outcome is None], wanted)


def _observed(task: Task, observe: Observer) -> Outcome:
    """What comes of a task that is run in this process, told to `observe` from its beginning to its end."""
    observe("run", task.who)
    outcome = race_run.carry_out(task, lambda kind, info: observe(kind, {**task.who, **info}))
    _tell_end(task, outcome, observe)
    return outcome


def _tell_end(task: Task, outcome: Outcome, observe: Observer) -> None:
    if isinstance(outcome, Stopped):
        observe("stopped", {**task.who, "reason": outcome.reason})
    else:
        observe("ran", {**task.who, "result": outcome})


class _Crew:
    """Processes that each carry out one task at a time; a context that ends them."""

    def __init__(self, size: int, observe: Observer) -> None:
        self._size, self._observe = size, observe
        self._at_work: dict[Connection, tuple[BaseProcess, Task]] = {}
        self._idle: list[tuple[Connection, BaseProcess]] = []

    def __enter__(self) -> "_Crew":
        return self

    def __exit__(self, *_: object) -> None:
        """End all processes, at whatever they are: what a run keeps is on the disk as after any kill."""
        for process in [p for _, p in self._idle] + [p for p, _ in self._at_work.values()]:
            process.kill()
            process.join()

    def carry_out(self, tasks: Sequence[Task], wanted: Callable[[Task], bool]) -> Iterator[tuple[Task, Outcome]]:
        """Each task with its outcome, as they end."""
        waiting = list(tasks)
        while waiting or self._at_work:
            while waiting and len(self._at_work) < self._size:
                if wanted(task := waiting.pop(0)):
                    self._give(task)
            for ready in wait(list(self._at_work), 1.0):
                yield from self._heard(ready)  # type: ignore[arg-type]

    def _give(self, task: Task) -> None:
        ours, process = self._idle.pop() if self._idle else _started(self._size)
        self._at_work[ours] = process, task
        self._observe("run", task.who)
        ours.send(task)

    def _heard(self, ours: Connection) -> Iterator[tuple[Task, Outcome]]:
        """What a process says: an event of its run, which is passed on, or the run's end."""
        process, task = self._at_work[ours]
        try:
            kind, said = ours.recv()
        except (EOFError, OSError):
            process.join()
            kind, said = "ended", Stopped(f"its process ended with exit code {process.exitcode}")
            del self._at_work[ours]
        else:
            if kind == "failed":
                raise RuntimeError(f"{task.label}, seed {task.seed}:\n{said}")
            if kind == "event":
                name, info = said
                self._observe(name, {**task.who, **info})
                return
            del self._at_work[ours]
            self._idle.append((ours, process))
        _tell_end(task, said, self._observe)
        yield task, said


def _started(jobs: int) -> tuple[Connection, BaseProcess]:
    """A process that waits for tasks, and our end of the pipe to it."""
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, jobs, logging.getLogger().getEffectiveLevel()), daemon=True)
    process.start()
    theirs.close()
    return ours, process


def _work(pipe: Connection, jobs: int, level: int) -> None:
    """Carry out the tasks that come through the pipe, until nobody is at its other end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the race, which ends us
    threading.Thread(target=_end_with_parent, daemon=True).start()
    logging.basicConfig(level=level, format="%(levelname)s %(message)s")

    def observe(kind: str, info: Mapping[str, Any]) -> None:
        pipe.send(("event", (kind, dict(info))))

    while True:
        try:
            task = pipe.recv()
        except (EOFError, OSError):
            return
        said: tuple[str, Any]
        try:
            said = ("ended", race_run.carry_out(task, observe, jobs))
        except Exception:
            said = ("failed", traceback.format_exc())
        pipe.send(said)


def _end_with_parent() -> None:
    """End this process, in the middle of a step perhaps, when the one that started it has ended."""
    if (parent := parent_process()) is not None:
        parent.join()
    os._exit(1)
