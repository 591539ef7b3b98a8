"""A race on the terminal: a bar for each run at work, a line for each that is done."""

from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from fedft.reports.quantities import size


class RaceProgress:
    """The context in which a race is shown, on stderr; its `observe` is an observer of the race.

    On a terminal there is a bar for each run at work; everywhere a plain line for each run that is done.
    """

    def __init__(self) -> None:
        self._out = Console(stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False)
        self._bar = Bar(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[note]}", markup=False),
            TimeElapsedColumn(),
            TextColumn("left", style="dim"),
            TimeRemainingColumn(),
            console=self._out,
            transient=True,
            disable=not self._out.is_terminal,
            speed_estimate_period=600,
        )
        self._tasks: dict[int, tuple[str, Any]] = {}
        """By a run's number what it is called, and its bar."""

    def __enter__(self) -> "RaceProgress":
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self._bar.stop()

    def observe(self, kind: str, info: Mapping[str, Any]) -> None:
        """Show one event of the race; see `fedft.simulations.race.race`."""
        if kind == "note":
            self._out.print(info["text"])
        elif kind == "run":
            what = f"tuning {info['setting']}" if info["setting"] else f"seed {info['seed']}"
            name = f"[{info['number']}/{info['of']}] {info['contender']}, {what}"
            self._tasks[info["number"]] = name, self._bar.add_task(name, total=1.0, note="loading")
            self._bar.start()
            if not self._out.is_terminal:
                self._out.print(name)
        elif kind == "preparing":
            self._bar.stop()  # the base model may be built now, with a bar of its own
        elif kind == "step":
            self._bar.start()
            self._bar.update(self._tasks[info["number"]][1], completed=info["share"], note=info["note"])
        elif kind in ("stopped", "ran"):
            name, task = self._tasks.pop(info["number"])
            self._bar.stop()
            self._bar.remove_task(task)
            self._out.print(f"{name}: {_end(kind, info)}")
            if self._tasks:
                self._bar.start()


def _end(kind: str, info: Mapping[str, Any]) -> str:
    """What a run came to."""
    if kind == "stopped":
        return f"stopped: {info['reason']}"
    r = info["result"]
    return (
        f"loss {r['before']:.4f} -> {r['after']:.4f}, {round(r['rounds'])} rounds, {size(round(r['bytes']))}, "
        f"{r['seconds']:.1f} s"
    )
