"""The guard of secure sums whose noise the clients add, a share each: the server opens no sum without it.

    charge     the round's release, durable before anybody is asked to open the sum (in the clear: before it is summed)
    sum        of t clients at least, whose shares are the noise that the charge is for; of more it is a little larger
    mean       over m, how many were asked, whoever answered: as the server's own noise is (`private_sum`)

The ledger is that of `private_sum`, and so is what it calls the key of a release: nothing is drawn from it here, it
tells one release from the next. The same updates again after a kill are the same release; masked in another slot they
are other bytes, with other noise, and are charged once more. What the noise is worth against clients who tell the
server their shares is in each line: `epsilon_colluding`, of `colluding` clients.
"""

import math
from pathlib import Path

from fedft.config import RunConfig
from fedft.errors import RunPaused
from fedft.privacy.secure_sum.context import threshold
from fedft.server.guard import Sum, Summed
from fedft.server.integer_sum import IntegerSum
from fedft.server.private_sum import RECORD, PrivateSum
from fedft.update import MEMBERS


class SharedNoiseSum(PrivateSum):
    """How a run sums integers that have their noise already."""

    def __init__(self, config: RunConfig, folder: Path, integers: IntegerSum) -> None:
        """`folder`: of the run's state. Nothing is read or written."""
        super().__init__(config, folder)
        self._integers, self._clip = integers, config.privacy.clip or 0.0

    def sum(self, of: Sum) -> Summed:
        """The change that the mean of the integers makes. Its charge is durable before.

        Raises RunPaused for fewer clients than the noise was calibrated for, BudgetSpent as `PrivateSum.sum`.
        """
        round, count = of.state.version, len(of.weights)
        n = int(next(iter(of.plans.values())).extra[MEMBERS])
        if count < (t := threshold(n)):
            raise RunPaused(
                f"round {round}: noise is in shares of which any {t} of {n} make it up, there are {count}; resume"
            )
        self.charged(round, of.digests)
        summed = self._integers.sum(of, self.schedule.expected)
        noise = self.noise_multiplier * self._clip * math.sqrt(count / t) / self.schedule.expected
        return summed._replace(record={**summed.record, RECORD: {"clip": self._clip, "noise": noise}})
