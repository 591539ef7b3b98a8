"""Error feedback: what a lossy way of sending leaves out of an update is kept by the client and added to its next one.

    meant = delta + unsent;    sent = what the server reads of `meant`;    unsent := meant - sent

So the sum of all that was sent is the sum of all deltas but for the last `unsent`: nothing is lost, only late. It is
kept as what else a client keeps is: on its disk, and as of the last update that counted.

Karimireddy, Rebjock, Stich, Jaggi, "Error Feedback Fixes SignSGD and other Gradient Compression Schemes", ICML 2019,
arXiv:1901.09847.
"""

from dataclasses import dataclass
from typing import ClassVar, Protocol

from torch import Tensor

from fedft.arithmetic.tensors import Tensors
from fedft.contract import Handle, Stage, Trained, Turn
from fedft.wire import messages

OWNER = "error_feedback"


class Lossy(Protocol):
    """A way of sending a client's changes that leaves something out."""

    def send(self, changes: Tensors, turn: Turn, handle: Handle) -> Trained:
        """What a client sends of its changes, and metrics of the sending; nothing is kept here."""

    def read(self, sent: Tensors, changes: Tensors, turn: Turn) -> dict[str, Tensor]:
        """The changes as the server reads them from `sent`: the names and shapes of `changes`, floats only."""


@dataclass(frozen=True)
class Sent:
    """A lossy way of sending, as it is: what is left out is lost."""

    way: Lossy
    stage: ClassVar[Stage] = "code"
    keeps = False

    def apply(self, trained: Trained, turn: Turn, handle: Handle) -> Trained:
        """The client's result as it is sent: its changes after `lossy.send`, its metrics and those of the sending."""
        sent = self.way.send(trained.delta, turn, handle)
        return Trained(sent.delta, {**trained.metrics, **sent.metrics}, trained.kept)


@dataclass(frozen=True)
class ErrorFeedback:
    """A lossy way of sending whose losses are added to the client's next result."""

    way: Lossy
    stage: ClassVar[Stage] = "code"
    keeps = True

    def apply(self, trained: Trained, turn: Turn, handle: Handle) -> Trained:
        """The client's result as it is sent, with what earlier rounds left out; what is left out now is kept."""
        late, meant = turn.drawer(OWNER), dict(trained.delta)
        for name, x in trained.delta.items():
            if x.is_floating_point() and name in late and late[name].shape == x.shape:  # a rank may have changed
                meant[name] = x + late[name]
        sent = self.way.send(meant, turn, handle)
        read = self.way.read(sent.delta, meant, turn)
        unsent = {n: x - read[n] for n, x in meant.items() if x.is_floating_point()}
        # what is not sent in this round (one factor of an alternating method) waits on
        kept = {**trained.kept, OWNER: {**late, **unsent}}
        return Trained(sent.delta, {**trained.metrics, **sent.metrics}, kept)


@dataclass(frozen=True)
class ByCodec:
    """The codec of uploads, which rounds when the message is made: `send` gives what it is given."""

    up: str

    def send(self, changes: Tensors, turn: Turn, handle: Handle) -> Trained:
        """The changes themselves: the codec rounds them when the message is made."""
        return Trained(dict(changes), {})

    def read(self, sent: Tensors, changes: Tensors, turn: Turn) -> dict[str, Tensor]:
        """The changes as the server decodes them: the same random choices, since they come from the turn's seed."""
        return messages.roundtrip(sent, self.up, turn.seed)
