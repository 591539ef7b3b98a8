"""One client's turn in one round: what its training may depend on, what the training gives, what happens to that on
the way out.
"""

from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple, Protocol, get_args

from torch import Tensor

from fedft.arithmetic.tensors import Tensors
from fedft.config import Local
from fedft.contract.model import Handle, Metrics
from fedft.contract.state import NOTHING, Drawers
from fedft.update import Plan


@dataclass(frozen=True)
class Turn:
    """One client's turn in one round: all that its training may depend on besides the model and its data."""

    plan: Plan
    """What the server asks of this client in this round."""
    held: Tensors
    """The shared tensors of the state, as this client holds them."""
    held_digest: str
    """`tensors.digest` of `held`: the key of anything derived from it."""
    local: Local
    """The run's `[local]` table."""
    run_seed: int
    """The same on every machine: shared directions, frozen factors."""
    seed: int
    """This client's own in this round: order of batches, draws nobody else needs."""
    kept: Drawers = field(default_factory=dict)
    """What this client kept, by owner, in the last round in which its update counted; nothing before that."""

    def drawer(self, owner: str) -> Tensors:
        """The tensors that `owner` kept on this client; none before it keeps something."""
        return self.kept.get(owner, NOTHING)


class Trained(NamedTuple):
    """What local steps, or a transform of their result, give."""

    delta: dict[str, Tensor]
    """What is sent, as `Update.delta`: float32, in unit scale, trained minus received."""
    metrics: Metrics
    """Of the local steps: loss, steps."""
    kept: Drawers = NOTHING
    """What stays with this client and never travels, by owner. Its next turn has it if this update counted."""


Stage = Literal["clip", "noise", "code", "mask"]
STAGES: tuple[Stage, ...] = get_args(Stage)
"""In the order in which they run: clipping, noise, what the codec leaves out, masks of a guarded sum."""


class Transform(Protocol):
    """Something that happens to a client's result on its way out. `apply` runs in order of `stage`, then as listed."""

    stage: ClassVar[Stage]
    keeps: bool
    """Whether the transform keeps something on the client between rounds, under its own name in `Trained.kept`."""

    def apply(self, trained: Trained, turn: Turn, handle: Handle) -> Trained:
        """The client's result as it goes on. `handle` stands where the local steps ended."""
