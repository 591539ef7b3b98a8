"""The state that a site holds in a run, on its disk: whole, or of a state that only grows what came last.

    state-<run>.fedft      SHA-256 of the rest, then a safetensors body: tensors; run, version, label, the plan's
                           numbers
    growing-<run>.fedft    the same without tensors, and how much of the history they are; in place of the other
    history-<run>.fedft    the rounds of such a state, see `fedft.histories.history_file`

All of them may be lost at any time: the server then sends the state again.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors

from fedft import durable
from fedft.arithmetic import tensor_file
from fedft.arithmetic.tensors import Tensors
from fedft.contract import State
from fedft.histories.history_file import HistoryFile, Mark
from fedft.histories.rounds import History

WHOLE, GROWING = "state", "growing"


@dataclass
class StateFiles:
    """The states of a site in `folder`, by run. One thread of one process writes."""

    folder: Path
    _histories: dict[str, HistoryFile] = field(default_factory=dict)

    def keep(self, run: str, meta: Mapping[str, str], state: State) -> None:
        """Make the state of a run durable, with what else its file is to say. RunPaused where the disk refuses."""
        mark, name, other = None, WHOLE, GROWING
        if isinstance(state.tensors, History):
            file = self._history(run)
            if (mark := file.add(state.tensors)) is None:  # of another past: nothing here is of use any more
                self._path(GROWING, run).unlink(missing_ok=True)
                file = self._histories[run] = HistoryFile(self._path("history", run))
                mark = file.add(state.tensors)
        if mark is None:
            parts = tensor_file.parts(state.tensors, meta)
        else:
            name, other = GROWING, WHOLE
            parts = tensor_file.parts({}, {**meta, "history": json.dumps(mark.said)})
        durable.commit(self._path(name, run), *parts)
        if mark is not None:
            file.keep(mark)
        self._path(other, run).unlink(missing_ok=True)

    def read(self, run: str) -> tuple[str, State] | None:
        """(the server's label, state) of a run; None if there is none that can be read."""
        both = (read_file(self._path(name, run)) for name in (GROWING, WHOLE))
        mine = [x for x in both if x is not None and x[0].get("run") == run and "label" in x[0]]
        if not mine:
            return None
        meta, state, mark = max(mine, key=lambda x: x[1].version)  # a crash may have left the earlier one, too
        if mark is not None:
            self._history(run).keep(mark)
        return meta["label"], state

    def _history(self, run: str) -> HistoryFile:
        return self._histories.setdefault(run, HistoryFile(self._path("history", run)))

    def _path(self, name: str, run: str) -> Path:
        return self.folder / f"{name}-{run}.fedft"


def read_file(path: Path) -> tuple[dict[str, str], State, Mark | None] | None:
    """(what the file says, the state, how far its history goes) of one file; None if it cannot be read."""
    body = durable.verified(path)
    try:
        if body is None:
            return None
        meta = durable.metadata(body)
        held: tuple[Tensors, Mark | None] | None = load_tensors(body), None
        if "history" in meta:
            file = HistoryFile(path.with_name(path.name.replace(GROWING, "history", 1)))
            held = file.read(json.loads(meta["history"]))
        return None if held is None else (meta, State(int(meta["version"]), held[0]), held[1])
    except (SafetensorError, KeyError, ValueError):
        return None
