"""Error feedback: what a codec leaves out of an update is kept by the client and added to its next one.

    meant = delta + unsent;    sent = what the server decodes of `meant`;    unsent := meant - sent

So the sum of all that was sent is the sum of all deltas but for the last `unsent`: nothing is lost, only late. It is
kept as what else a client keeps is: on its disk, and as of the last update that counted.

Karimireddy, Rebjock, Stich, Jaggi, "Error Feedback Fixes SignSGD and other Gradient Compression Schemes", ICML 2019,
arXiv:1901.09847.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from fedft.contract import Batch, Handle, LocalStep, Trained, Turn
from fedft.wire import messages

UNSENT = "unsent."


@dataclass(frozen=True)
class Feedback:
    """A local step whose changes travel in the lossy codec `up`."""

    inner: LocalStep
    up: str

    def __call__(self, handle: Handle, batches: Iterator[Batch], turn: Turn) -> Trained:
        """Train; see `LocalStep`."""
        trained = self.inner(handle, batches, turn)
        meant = dict(trained.delta)
        for name, x in trained.delta.items():
            late = turn.kept.get(UNSENT + name)
            if x.is_floating_point() and late is not None and late.shape == x.shape:  # a rank may have changed
                meant[name] = x + late
        sent = messages.roundtrip(meant, self.up, turn.seed)
        unsent = {UNSENT + n: x - sent[n] for n, x in meant.items() if x.is_floating_point()}
        before = {n: x for n, x in turn.kept.items() if n.startswith(UNSENT)}  # of what is not sent in this round
        return Trained(meant, trained.metrics, {**before, **trained.kept, **unsent})
