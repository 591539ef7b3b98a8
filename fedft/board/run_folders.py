"""A folder as one run, or as many: a race, or any folder with run folders in it, up to two deep.

The status of many runs has `form`, `name`, `runs` and `left_out`, how many runs more there are than MAX_RUNS. A run
among `runs` has name, its path below the folder, and state, strategy, round, rounds, loss, first_loss, bytes_up,
bytes_down and left_s as the status of the run (`run_status`) has them. Runs of a queue stand in the queue's order;
those that have no folder yet have the state that the queue says of them, such as "waiting".
"""

import json
from pathlib import Path
from typing import Any

from fedft.board.run_status import RunReader, shown_state
from fedft.errors import ConfigError

MAX_RUNS = 200
SHOWN = ("state", "strategy", "round", "rounds", "loss", "first_loss", "bytes_up", "bytes_down", "left_s")


class FolderReader:
    """Reads one folder of runs, as often as asked. Used by one thread at a time."""

    def __init__(self, folder: Path) -> None:
        """`folder`: a run folder, or one with run folders in it; what it is, is asked anew each time."""
        self.folder = folder
        self._readers: dict[str, RunReader] = {}

    def status(self, name: str = "") -> dict[str, Any]:
        """The status of the folder, or of the run `name` in it.

        `name` is looked up among the names of the runs found, so it leads nowhere else. Raises ConfigError, in one
        line, where there is no run, or none of this name.
        """
        if not name and (self.folder / "config.toml").exists():
            return self._reader("").status()
        names = self.names()
        if name:
            if name not in names:
                raise ConfigError(f"{self.folder}: has no run {name!r:.100}")
            return {**self._reader(name).status(), "name": name}
        if not names:
            what = "no such folder" if not self.folder.is_dir() else "holds no run (no config.toml) and no race"
            raise ConfigError(
                f"{self.folder}: {what}; wanted the folder of a run, as --out names it, or HOST:PORT of a board"
            )
        runs = [found for n in names[:MAX_RUNS] if (found := self._short(n)) is not None]
        name = self.folder.resolve().name
        return {"form": 1, "name": name, "runs": runs, "left_out": max(0, len(names) - MAX_RUNS)}

    def names(self) -> list[str]:
        """Names of the runs below the folder, in order; those of a race's baselines, which have a result only, too."""
        marks = ("*/config.toml", "*/*/config.toml", "*/*/result.json")
        found = {p.parent.relative_to(self.folder).as_posix() for m in marks for p in self.folder.glob(m)}
        queued = list(self._queue())
        return [*queued, *sorted(found - set(queued))]

    def adapter(self, name: str = "") -> Path | None:
        """The folder model/ of the run (`name` as in `status`), where it is there."""
        found = self.folder / name / "model"
        return found if found.is_dir() and (not name or name in self.names()) else None

    def _queue(self) -> dict[str, str]:
        """State by name of the runs of a queue, in its order, from the queue's own file; none where there is no queue.

        Names that are no single part of a path are left out.
        """
        try:
            said = json.loads((self.folder / "queue.json").read_text(encoding="utf-8"))["runs"]
            found = {r["name"]: r["state"] for r in said if isinstance(r["name"], str) and isinstance(r["state"], str)}
        except (OSError, ValueError, KeyError, TypeError):
            return {}
        return {name: state for name, state in found.items() if name == Path(name).name != ".."}

    def _reader(self, name: str) -> RunReader:
        return self._readers.setdefault(name, RunReader(self.folder / name))

    def _short(self, name: str) -> dict[str, Any] | None:
        """The line of one run among others; None for one that cannot be read."""
        if (self.folder / name / "config.toml").exists():
            try:
                found = self._reader(name).status()
            except ConfigError:
                return {"name": name, "state": "unreadable", **dict.fromkeys(SHOWN[1:])}
            return {"name": name, **{k: found[k] for k in SHOWN}, "state": shown_state(found)}
        try:
            found = json.loads((self.folder / name / "result.json").read_text(encoding="utf-8"))
            rounds = round(found["rounds"])
            return {
                "name": name, "state": "finished", "strategy": name.partition("/")[0], "round": rounds,
                "rounds": rounds, "loss": found["after"], "first_loss": found["before"],
                "bytes_up": found["bytes"], "bytes_down": 0, "left_s": None,
            }  # fmt: skip
        except (OSError, ValueError, KeyError, TypeError):
            state = self._queue().get(name)
            return {"name": name, "state": state, **dict.fromkeys(SHOWN[1:])} if state is not None else None
