"""Zeroth-order turns along directions of their own: a seed per client and round, `samples` directions per step.

upload    `scalar` float32 [steps x samples], the walk being w -= sum_s c_s z_s; `seed` of its z_s (`seeded_rows`)
"""

from dataclasses import dataclass

from torch import Tensor

from fedft.arithmetic.tensors import Tensors
from fedft.config import RunConfig
from fedft.randomness import philox
from fedft.randomness.directions import Directions
from fedft.randomness.hadamard_bits import BLOCK
from fedft.randomness.source import Source
from fedft.recipe import Data, Handle, Layout, Trained, Turn
from fedft.strategies.parts import growing_history, seeded_rows
from fedft.strategies.parts.scalar_bound import check_scalars
from fedft.training import zeroth_order
from fedft.training.zeroth_rules import Walk
from fedft.update import Download, Plan, TensorSpec
from fedft.wire.body import MAX_ENTRIES


@dataclass(frozen=True)
class Fresh:
    """The walks of clients whose directions nobody else has, unless they are given."""

    how: Walk
    source: Source

    def directions(self, seed: int, count: int, run_seed: int) -> Directions:
        """The `count` directions of one turn, by its seed; masks that stay for the run are the run seed's."""
        z = self.source.directions(seed, count)
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
        """Raise ValueError where a round has more steps than a table or one block of `hadamard` holds directions."""
        count = config.local.steps * self.how.samples
        self.source.check_count(count)
        if self.source.table is None and self.source.family == "hadamard" and count > BLOCK:
            raise ValueError(f"[local] steps x samples = {count}; family 'hadamard' has {BLOCK} directions per round")

    def reach(self, config: RunConfig, name: str) -> float:
        """How far steps by the rule can move a number of a tensor, along signs as directions.

        Raises ValueError for other directions, and for steps that are no sums of them.
        """
        if self.source.family == "gaussian" or self.how.needs_moments(True) or self.how.first_order_from is not None:
            raise ValueError("how far these steps move a number is not known: range has to say it")
        return config.local.steps * self.how.largest_step() * config.local.learning_rate

    def send(self, handle: Handle, data: Data, turn: Turn) -> Trained:
        """The turn's steps as an upload of scalars and their seed, in place of what moved."""
        walked = self.walk(handle, data, turn)
        sent = {"scalar": walked.moved.float(), seeded_rows.SEED: philox.key_as_words(self.seed(turn))}
        return Trained(sent, walked.metrics)

    def spec(self, layout: Layout, plan: Plan) -> dict[str, TensorSpec]:
        """Names, shapes and dtypes of that upload: 4 bytes per direction, and 8."""
        return {"scalar": TensorSpec((plan.steps * self.how.samples,)), seeded_rows.SEED: seeded_rows.SPEC}

    def download(self, layout: Layout, plan: Plan) -> Download:
        """Rounds of scalars, of however many clients; a round may have had more steps than this one."""
        return growing_history.download(seeded_rows.spec_of_round("scalar", MAX_ENTRIES), plan)

    def admit(self, delta: Tensors, plan: Plan) -> None:
        """Raise RejectedUpdate for scalars beyond what clipped steps can reach."""
        check_scalars(delta["scalar"], self.how, plan, plan.learning_rate)

    def replay(self, change: dict[str, Tensor], told: Tensors, run_seed: int) -> None:
        """Add what the scalars of a round (`seeded_rows.rows`) amount to, in place: -sum_k p_k sum_s c_s z_s."""
        for seed, c in seeded_rows.each(told, "scalar"):
            z = self.directions(seed, len(c), run_seed)
            for name, x in change.items():
                z.axpy_(x, name, -c)
