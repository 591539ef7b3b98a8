"""Top-k of a whole adapter, both ways: only the largest entries travel, chosen afresh in every round.

All trained tensors are one vector of P entries, names in canonical order (`tensors.flat`). What travels is exactly
ceil(q P) values, or floor(q P), and P bits that say where (`fedft.compression.sparse_vector`). The server has the whole
vector; clients start from the entries that they are sent and zero elsewhere.
"""

import math
from dataclasses import dataclass

from torch import Tensor

from fedft.arithmetic import tensors
from fedft.arithmetic.tensors import Tensors
from fedft.compression import sparse_vector
from fedft.errors import RejectedUpdate
from fedft.recipe import Handle, Layout, LoRA, State, Trained, Turn
from fedft.update import Download, Plan, Spec, TensorSpec


@dataclass(frozen=True)
class LargestEntries:
    """What travels of the tensors that `space` trains, and how the model starts from it."""

    space: LoRA
    down: float
    """Share of the entries that a client receives."""
    up: float
    """Share of the entries of its change that a client sends."""
    normalised: bool
    """Entries are ranked by their magnitude over the root mean square of their tensor, not by magnitude alone."""
    floor: bool = False
    """Shares of the entries are rounded down to a whole number, not up."""

    def initial(self, layout: Layout, rank: int, seed: int) -> dict[str, Tensor]:
        """The trained tensors of version 0, dense."""
        return {n: x for n, x in self.space.initial(layout, rank, seed).items() if n in self.space.spec(layout, rank)}

    def downlink(self, state: State, have: int | None, plan: Plan) -> Tensors:
        """The largest entries of the state; all of them to a client that only evaluates (a plan of no steps)."""
        return {} if have == state.version else self._packed(state.tensors, self.down if plan.steps else 1.0)

    def start(self, handle: Handle, turn: Turn) -> None:
        """The model at the entries that came, and zero elsewhere; a frozen A as the run's seed draws it."""
        shapes = {n: t.shape for n, t in self.space.spec(handle.layout, turn.plan.shape).items()}
        fixed = self.space.initial(handle.layout, turn.plan.shape, turn.run_seed)
        handle.write({**{n: fixed[n] for n in fixed.keys() - shapes}, **_unpacked(turn.held, shapes)})

    def upload(self, layout: Layout, plan: Plan) -> Spec:
        """Exactly ceil(q P), or floor(q P), values and one bit for each of the P positions."""
        return self._spec(layout, plan, self.up)

    def download(self, layout: Layout, plan: Plan) -> Download:
        """What `downlink` sends: so many values, and one bit for each position."""
        return self._spec(layout, plan, self.down if plan.steps else 1.0).get

    def _spec(self, layout: Layout, plan: Plan, density: float) -> Spec:
        entries = sum(math.prod(t.shape) for t in self.space.spec(layout, plan.shape).values())
        values = TensorSpec((sparse_vector.count(density, entries, self.floor),))
        return {"values": values, "support": TensorSpec((sparse_vector.words(entries),), "int32")}

    def admit(self, delta: Tensors, plan: Plan) -> None:
        """Raise RejectedUpdate unless there are as many positions as values. Bits behind entry P place nothing."""
        if (bits := int(sparse_vector.positions(delta["support"]).sum())) != len(delta["values"]):
            raise RejectedUpdate("spec_mismatch", f"support has {bits} positions for {len(delta['values'])} values")

    def send(self, changes: Tensors, turn: Turn, handle: Handle) -> Trained:
        """The largest entries of the changes, and where they are."""
        return Trained(self._packed(changes, self.up), {})

    def read(self, sent: Tensors, changes: Tensors, turn: Turn) -> dict[str, Tensor]:
        """The entries that were sent, in the shapes of the changes, and zeros."""
        return _unpacked(sent, {n: tuple(x.shape) for n, x in changes.items()})

    def _packed(self, x: Tensors, density: float) -> dict[str, Tensor]:
        scores = {n: t.abs() for n, t in x.items()}
        if self.normalised:
            rms = {n: t.double().square().mean().sqrt() for n, t in x.items()}
            scores = {n: t / rms[n] if rms[n] > 0 else t for n, t in scores.items()}
        return sparse_vector.packed(tensors.flat(x), sparse_vector.largest(tensors.flat(scores), density, self.floor))


def _unpacked(sent: Tensors, shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    entries = sum(map(math.prod, shapes.values()))
    return tensors.shaped(sparse_vector.unpacked(sent)[:entries].float(), shapes)
