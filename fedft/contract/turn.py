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
from fedft.privacy.keyed_stream import Stream
from fedft.update import Plan


@dataclass(frozen=True)
class Private:
    """What noise at one client goes by, in one turn."""

    clip: float
    """C, the largest L2 norm that one unit (the client's whole update, or one record's gradient) may have."""
    noise_multiplier: float
    """z: the standard deviation of the noise on a sum is z C."""
    stream: Stream
    """Of the client's own key and of this turn: noise, and who is in a batch. Nobody else can compute it."""
    probability: float = 1.0
    """Of every record being in a step's batch, where batches are drawn so."""
    in_steps: bool = False
    """Whether zeroth-order steps go by it; it may be of what comes behind them."""

    def noise_of_step(self, name: str, count: int) -> Tensor:
        """z C xi, float64 [count]: the noise on the sum of a local step, or of the part of it that `name` says."""
        return self.stream.gaussians("step", name, count).mul_(self.noise_multiplier * self.clip)


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
    private: Private | None = None
    """What a private local step, or noise on the result, goes by; None where the run's mode has none at clients."""

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
