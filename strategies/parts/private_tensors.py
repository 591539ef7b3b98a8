"""Trained tensors that stay with their client, which keeps their values from turn to turn; the others are shared.

start    shared tensors as they came; private ones as this client left them, else as the state has them, else zero
upload   changes of the shared tensors; with `sends` also values of the private ones
server   shared tensors move by the mean change; private ones that came are replaced by the mean of values

What a client kept does not change while it takes no part; of another rank, it is forgotten.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fedft.arithmetic.tensors import Tensors
from fedft.recipe import Course, Handle, Kind, Layout, Learning, State, Trained, Turn
from fedft.update import Download, Plan, Spec


@dataclass(frozen=True)
class PrivateTensors:
    """A term that parts what is private from what is sent at the end of a turn, and the recipe's parts that fit it."""

    owner: str
    """The drawer on the client."""
    space: Kind
    shared: tuple[str, ...]
    """Endings of the names of what is shared."""
    sends: bool = False
    """Values of the private tensors travel as well."""
    adapt: Callable[[Tensors, Tensors, Tensors], Tensors] | None = None
    """(private tensors as kept, all that was trained when they were, what came) -> the private ones to start from."""

    def travels(self, name: str) -> bool:
        """Whether a trained tensor leaves its client."""
        return self.sends or name.endswith(self.shared)

    def initial(self, layout: Layout, rank: int, seed: int) -> dict[str, Tensor]:
        """What travels, at version 0."""
        return {n: x for n, x in self.space.initial(layout, rank, seed).items() if self.travels(n)}

    def upload(self, layout: Layout, plan: Plan) -> Spec:
        """What travels, in the shapes of this client."""
        return {n: t for n, t in self.space.spec(layout, plan.shape).items() if self.travels(n)}

    def download(self, layout: Layout, plan: Plan) -> Download:
        """The same: what travels comes down whole."""
        return self.upload(layout, plan).get

    def start(self, handle: Handle, turn: Turn) -> None:
        """Put the model at what came and what this client kept."""
        spec, kept = self.space.spec(handle.layout, turn.plan.shape), turn.drawer(self.owner)
        shapes = {n: t.shape for n, t in spec.items() if not n.endswith(self.shared)}
        own: Tensors = {n: x for n, x in kept.items() if n in shapes}
        if {n: tuple(x.shape) for n, x in own.items()} != shapes:  # nothing yet, or of another rank
            own = {}
        elif self.adapt:
            own = self.adapt(own, kept, turn.held)
        handle.write({**{n: torch.zeros(shape) for n, shape in shapes.items()}, **turn.held, **own})

    def begin(self, learning: Learning, turn: Turn) -> Course:
        """Ordinary training of all that learns."""
        return _Parting(self)

    def server(self, state: State, change: Tensors) -> Tensors:
        """Shared tensors plus their change; the values of the others."""
        return {n: x + change[n] if n.endswith(self.shared) else change[n] for n, x in state.tensors.items()}


class _Parting(Course):
    def __init__(self, private: PrivateTensors) -> None:
        self._private = private

    def finish(self, trained: Trained, handle: Handle) -> Trained:
        """Send what travels, keep what is private; all that was trained, if the next turn adapts to it."""
        now, private = handle.read(), self._private
        kept = {n: x for n, x in now.items() if private.adapt or not n.endswith(private.shared)}
        sent = {n: x if n.endswith(private.shared) else now[n] for n, x in trained.delta.items() if private.travels(n)}
        return Trained(sent, trained.metrics, {**trained.kept, private.owner: kept})
