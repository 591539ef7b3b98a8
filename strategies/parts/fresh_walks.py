"""Zeroth-order turns along directions of their own: a seed per client and round, `samples` directions per step."""

from dataclasses import dataclass

from fedft.config import RunConfig
from fedft.randomness import families, philox
from fedft.randomness.directions import Directions
from fedft.randomness.hadamard import BLOCK
from fedft.recipe import Data, Handle, Turn
from fedft.training import zeroth_order
from fedft.training.zeroth_rules import Walk


@dataclass(frozen=True)
class Fresh:
    """The walks of clients whose directions nobody else has."""

    how: Walk
    family: str

    def directions(self, seed: int, count: int, run_seed: int) -> Directions:
        """Those of one turn."""
        z = families.make(self.family, seed, count)
        return z if self.how.resample else self.how.masked(z, run_seed)

    def walk(self, handle: Handle, data: Data, turn: Turn) -> zeroth_order.Walked:
        """The turn's steps, along direction 0, 1, 2, ... of `seed(turn)`."""
        count = turn.plan.steps * self.how.samples
        z = self.directions(self.seed(turn), count, turn.run_seed)
        return zeroth_order.walk(handle, data, turn, self.how, z, range(count))

    def seed(self, turn: Turn) -> int:
        """The seed of the turn's directions: of the run, the client and the round."""
        return philox.derive(turn.seed, "zo")

    def check(self, config: RunConfig) -> None:
        """Raise ValueError where a round has more steps than one block of `hadamard` holds directions."""
        count = config.local.steps * self.how.samples
        if self.family == "hadamard" and count > BLOCK:
            raise ValueError(f"[local] steps x samples = {count}; family 'hadamard' has {BLOCK} directions per round")
