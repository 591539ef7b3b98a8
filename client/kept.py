"""What a client keeps for itself between rounds and never sends: private factors, control variates, what was not sent.

A turn of round t starts from what was kept after the last round before t, and its outcome is on the disk before the
update leaves. So a round that is done again, after whatever crash, starts from the same and gives the same bytes.

    kept-<round>.fedft    SHA-256 of the rest, then a safetensors body: tensors, run, round; the newest three of them
"""

import re
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from fedft import durable
from fedft.tensors import Tensors

GENERATIONS = 3  # a server that lost its newest states goes back as many rounds at most
FILE = re.compile(r"kept-(\d+)\.fedft")


@dataclass
class Kept:
    """One client's own tensors by round, in memory, and in `folder` where there is one."""

    folder: Path | None = None
    _run: str = ""
    _rounds: dict[int, Tensors] = field(default_factory=dict)

    def open(self, run: str) -> None:
        """From now on those of `run`; another run's are forgotten when this one first keeps something."""
        if run == self._run:
            return
        self._run, self._rounds = run, {}
        for number, path in self._files():
            body = durable.verified(path)
            try:
                if body is not None and durable.metadata(body)["run"] == run:
                    self._rounds[number] = load_tensors(body)
            except (SafetensorError, KeyError, ValueError):
                continue  # what does not verify is as if it were not there

    def before(self, number: int) -> Tensors:
        """What was kept after the last round before round `number`; nothing if there was none."""
        earlier = [n for n in self._rounds if n < number]
        return self._rounds[max(earlier)] if earlier else {}

    def after(self, number: int, tensors: Tensors) -> None:
        """Keep the outcome of round `number`, durably. Raises RunPaused where the disk does not take it."""
        if not tensors and not self._rounds:
            return
        self._rounds = {n: x for n, x in self._rounds.items() if n < number} | {number: tensors}
        for old in sorted(self._rounds)[:-GENERATIONS]:
            del self._rounds[old]
        if self.folder is None:
            return
        meta = {"run": self._run, "round": str(number)}
        body = save_tensors({n: x.contiguous() for n, x in tensors.items()}, meta)
        durable.commit(self.folder / f"kept-{number}.fedft", body)
        for found, path in self._files():
            if found not in self._rounds:
                path.unlink(missing_ok=True)

    def _files(self) -> list[tuple[int, Path]]:
        if self.folder is None or not self.folder.is_dir():
            return []
        found = [(FILE.fullmatch(p.name), p) for p in self.folder.iterdir()]
        return sorted((int(m[1]), p) for m, p in found if m)
