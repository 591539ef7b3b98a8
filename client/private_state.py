"""What a client keeps for itself between rounds and never sends: private factors, control variates, what was not sent.

A plan says in which round this client's update last counted; the turn starts from what was kept then. So an update that
was lost on the way, or a round that is done again after whatever crash, changes nothing: what clients keep is a
function of the rounds that counted, as the server's state is. It is on the disk before the update leaves.

    kept-<round>.fedft    SHA-256 of the rest, then a safetensors body: tensors as "<owner>/<name>", run
"""

import logging
import re
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors

from fedft import durable
from fedft.arithmetic import tensor_file, tensors
from fedft.contract import Drawers

log = logging.getLogger(__name__)

COUNTED = 2  # kept for rounds that counted: a server that lost its newest state goes back by one
FILE = re.compile(r"kept-(\d+)\.fedft")


@dataclass
class Kept:
    """The tensors that one client keeps for itself, by the round after which they were kept.

    They are in memory, and durable in `folder` unless that is None.
    """

    folder: Path | None = None
    _run: str = ""
    _rounds: dict[int, Drawers] = field(default_factory=dict)

    def open(self, run: str) -> None:
        """Turn to `run`: read what `folder` holds of it. Another run's files go when this run first keeps something."""
        if run == self._run:
            return
        self._run, self._rounds = run, {}
        for number, path in self._files():
            body = durable.verified(path)
            try:
                if body is None:
                    raise ValueError("torn or altered")
                if durable.metadata(body)["run"] == run:
                    self._rounds[number] = tensors.drawers_of(load_tensors(body))
            except (SafetensorError, KeyError, ValueError) as e:
                log.warning("%s cannot be read, and counts as lost: %s", path, e)

    def after(self, counted: int | None) -> Drawers:
        """What was kept after round `counted`; nothing for a client whose updates have not counted yet."""
        if counted is None:
            return {}
        if self.has_lost(counted):
            log.warning("what was kept after round %d is lost; this client begins anew and tells the server", counted)
        return self._rounds.get(counted, {})

    def has_lost(self, counted: int | None) -> bool:
        """Whether nothing is here of round `counted`, in which an update of this client counted."""
        return counted is not None and counted not in self._rounds

    def keep(self, number: int, kept: Drawers, counted: int | None) -> None:
        """Keep the outcome of a turn of round `number`, durably. Raises RunPaused where the disk does not take it.

        `counted`: the round that the turn began from; it and the one before stay, what never counted goes.
        """
        stay = sorted(n for n in self._rounds if counted is not None and n <= counted)[-COUNTED:]
        self._rounds = {n: self._rounds[n] for n in stay} | {number: kept}
        if self.folder is None:
            return
        body = tensor_file.parts(tensors.in_one(kept), {"run": self._run})
        durable.commit(self.folder / f"kept-{number}.fedft", *body)
        for found, path in self._files():
            if found not in self._rounds:
                path.unlink(missing_ok=True)

    def _files(self) -> list[tuple[int, Path]]:
        if self.folder is None or not self.folder.is_dir():
            return []
        found = [(FILE.fullmatch(p.name), p) for p in self.folder.iterdir()]
        return sorted((int(m[1]), p) for m, p in found if m)
