"""What a client keeps between rounds: the state it stands at. A server that is told "behind" sends what is missing.

A site of a deployment keeps it on its disk, beside the answer it sent last, for each run:

    state-<run>.fedft     or two others, see `state_files`
    answer-<run>.fedft    SHA-256 of the rest, then a line of JSON (what was asked, what work it took) and the answer's
                          bytes
"""

from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, field, replace
from weakref import WeakValueDictionary, ref

from fedft.arithmetic import tensors
from fedft.arithmetic.tensors import Apart, Tensors
from fedft.contract import NOTHING, State
from fedft.update import Plan


@dataclass
class CohortCache:
    """What the clients of one process share: states they hold, the plan read last, the state made of it.

    Most of a cohort stand at one state and are sent the same bytes; these are read, added and hashed once.
    """

    states: MutableMapping[str, State] = field(default_factory=WeakValueDictionary)
    """The states that some client holds, by version and digest: one goes with the last client that holds it."""
    members: list["Memory"] = field(default_factory=list)
    """The memory of every client of the process; a client alone shares nothing."""
    _read: tuple[tuple[int, int], Plan] | None = None
    """(length and hash of the bytes, plan) read last: the bytes themselves may be as large as the state."""
    _received: tuple[ref[State] | None, Plan, Tensors] | None = None
    """(state before, plan, tensors after it) received last; who held the state before may let it go."""

    def plan(self, payload: bytes, read: Callable[[bytes], Plan], shared: Tensors = NOTHING) -> Plan:
        """The plan in `payload`, found by `read`, or without it where these bytes were read last.

        Where its tensors are those of `shared`, which others hold too, it has these. Nothing is kept for a client that
        is alone in its process.
        """
        if len(self.members) < 2:
            return _sharing(read(payload), shared)
        key = len(payload), hash(payload)  # found once for bytes that all of a cohort are given
        if self._read is None or self._read[0] != key:
            self._read = None  # before another is read
            self._read = key, _sharing(read(payload), shared)
        return self._read[1]

    def received(self, had: State | None, plan: Plan, receive: Callable[[State | None, Plan], Tensors]) -> Tensors:
        """The tensors that a client holds after a plan: `receive(had, plan)`, computed once for the whole cohort.

        `had` is the state that the client held before, None for none.
        """
        if len(self.members) < 2:
            return receive(had, plan)
        if self._received is not None and self._received[1] is plan:
            before = self._received[0]
            if (before() if before else None) is had and (before is None) == (had is None):
                return self._received[2]
        self._received = None
        held = receive(had, plan)
        self._received = ref(had) if had is not None else None, plan, held
        return held

    def state(self, version: int, held: Tensors) -> State:
        """The state of `version` with the tensors `held`: one object for all clients that hold equal ones."""
        found = next((s for s in self.states.values() if s.tensors is held and s.version == version), None)
        found = found or State(version, held)
        return self.states.setdefault(f"{version}:{found.digest}", found)


def _sharing(plan: Plan, shared: Tensors) -> Plan:
    """The plan with tensors that are not in memory, `Apart`, in the place of its own, if they are the same to the bit.

    Those of small states stay as they came.
    """
    own = plan.tensors
    same = isinstance(shared, Apart) and own.keys() == shared.keys()
    if same and all(tensors.same_bits(x, shared[n]) for n, x in own.items()):
        return replace(plan, tensors=shared)
    return plan


@dataclass
class Memory:
    """The state that one client holds between rounds."""

    cache: CohortCache = field(default_factory=CohortCache)
    """Shared with the other clients of the process, so that many at the same state hold it once."""
    held: State | None = None
    """None before the first plan."""
    label: str = ""
    """The server's name for the held state, beside its version."""

    def hold(self, version: int, label: str, held: Tensors) -> None:
        """Hold the tensors `held` as the state of `version`, which the server calls `label`."""
        self.label = label
        if self.held is None or self.held.tensors is not held or self.held.version != version:
            self.held = None  # it may be the last to hold that
            self.held = self.cache.state(version, held)
