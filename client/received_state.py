"""What a client keeps between rounds: the state it stands at. A server that is told "behind" sends what is missing.

A site of a deployment keeps it on its disk, beside the answer it sent last:

    state.fedft     SHA-256 of the rest, then a safetensors body: tensors, run, version
    answer.fedft    SHA-256 of the rest, then a line of JSON (what was asked, what work it took) and the answer's bytes
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from fedft.arithmetic.tensors import Tensors
from fedft.contract import State
from fedft.update import Plan


@dataclass
class Pool:
    """What the clients of one process have in common: states, and what their messages lead to.

    Most of a cohort stand at one state and are sent the same bytes; these are read, added and hashed once.
    """

    states: dict[str, State] = field(default_factory=dict)
    members: list["Memory"] = field(default_factory=list)
    _read: tuple[bytes, Plan] | None = None
    _received: tuple[State | None, Plan, Tensors] | None = None

    def plan(self, payload: bytes, read: Callable[[bytes], Plan]) -> Plan:
        """What `read` finds in the bytes; for a client alone nothing is kept."""
        if self._read is None or self._read[0] != payload:
            plan = read(payload)
            self._read = (payload, plan) if len(self.members) > 1 else None
            return plan
        return self._read[1]

    def received(self, had: State | None, plan: Plan, receive: Callable[[State | None, Plan], Tensors]) -> Tensors:
        """What `receive` makes of what was held and the plan."""
        if self._received is None or self._received[0] is not had or self._received[1] is not plan:
            held = receive(had, plan)
            self._received = (had, plan, held) if len(self.members) > 1 else None
            return held
        return self._received[2]

    def state(self, version: int, held: Tensors) -> State:
        """These tensors at that version, the same ones for all who hold them; what nobody holds is forgotten."""
        found = next((s for s in self.states.values() if s.tensors is held and s.version == version), None)
        found = found or State(version, held)
        found = self.states.setdefault(_key(found), found)
        used = {_key(m.held) for m in self.members if m.held is not None} | {_key(found)}
        for unused in self.states.keys() - used:
            del self.states[unused]
        return found


def _key(state: State) -> str:
    return f"{state.version}:{state.digest}"


@dataclass
class Memory:
    """The held state."""

    pool: Pool = field(default_factory=Pool)
    """What it shares with the other clients of its process: a simulation of many at the same state holds it once."""
    held: State | None = None
    label: str = ""
    """What the server calls the state that is held, beside its version."""

    def hold(self, version: int, label: str, held: Tensors) -> None:
        """Stand at `version`, so labelled, with these tensors."""
        self.label = label
        if self.held is None or self.held.tensors is not held or self.held.version != version:
            self.held = None  # it may be the last to hold that
            self.held = self.pool.state(version, held)
