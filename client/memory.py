"""What a client keeps between rounds: the state it stands at. A server that is told "behind" sends what is missing."""

from dataclasses import dataclass, field

from fedft import tensors
from fedft.recipe import State
from fedft.tensors import Tensors


@dataclass
class Memory:
    """The held state and its digest.

    Clients of one process share a `pool`, so that a simulation of many clients at the same state holds it once.
    """

    pool: dict[str, State] = field(default_factory=dict)
    everyone: list["Memory"] = field(default_factory=list)
    """The memories that share the pool."""
    held: State | None = None
    digest: str = ""

    def hold(self, version: int, held: Tensors) -> None:
        """Stand at `version` with these tensors."""
        if self.held is not None and self.held.tensors is held and self.held.version == version:
            return
        self.digest = tensors.digest(held)
        key = f"{version}:{self.digest}"
        if key not in self.pool:
            self.pool[key] = State(version, held)
        self.held = self.pool[key]
        used = {f"{m.held.version}:{m.digest}" for m in self.everyone if m.held is not None} | {key}
        for unused in self.pool.keys() - used:
            del self.pool[unused]
