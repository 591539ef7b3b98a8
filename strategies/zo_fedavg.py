"""ZO-FedAvg (FedZO): FedAvg whose local steps need forward passes only.

    client   w_k = w_t;   g = (L(w_k + eps z) - L(w_k - eps z)) / (2 eps);   w_k -= eta g z          z fresh every time
             delta_k = w_k - w_t                                                                     dense, uploaded
    server   w_{t+1} = w_t + sum_k p_k delta_k

Training takes the memory of inference, and beside it what the rule remembers; what travels is what travels in FedAvg.
Since the whole change is sent, every member of the zeroth-order family can be used: Adam and sign on averaged or normal
directions, one slope per transformer layer, masks drawn anew, the last layers by back-propagation (`first_order_from`).

Directions come from the run's seed, the client and the round, so a turn can be repeated; all rules take the same ones.
Masks of `sparsity` are the same for all clients and the whole run, unless `resample` draws the client new ones.

Fang, Yu, Jiang, Shi, Jones, Zhou, "Communication-Efficient Stochastic Zeroth-Order Optimization for Federated
Learning", IEEE Transactions on Signal Processing 2022, arXiv:2201.09531. Rules: Zhang et al., "Revisiting Zeroth-Order
Optimization for Memory-Efficient LLM Fine-Tuning: A Benchmark", ICML 2024, arXiv:2402.11592.
"""

from dataclasses import dataclass
from typing import Literal

from fedft import check
from fedft.adapters.full import Full
from fedft.adapters.lora import LoRA
from fedft.arithmetic import tensors
from fedft.config import RunConfig
from fedft.contract import Data, Handle, Trained, Turn
from fedft.randomness import directions, families, philox
from fedft.randomness.hadamard import BLOCK
from fedft.recipe import Recipe
from fedft.training import zeroth_order
from fedft.training.zeroth_rules import Estimate, Objective, Rule, Variant, Walk


def zo_fedavg(
    *,
    space: Literal["full", "lora"] = "lora",
    family: str = "hadamard",
    epsilon: float = 1e-3,
    rule: Rule = "sgd",
    estimate: Estimate = "two_sided",
    objective: Objective = "loss",
    samples: int = 1,
    momentum: float = 0.9,
    beta2: float = 0.999,
    sparsity: float = 0.0,
    resample: int = 0,
    blocks: bool = False,
    coordinate: bool = False,
    first_order_from: int | None = None,
    first_order_factor: float = 1.0,
    scalar_clip: float = 1000.0,
    variant: Variant = "exact",
) -> Recipe:
    """Federated averaging of zeroth-order local steps.

    Args:
        space: all parameters, or the LoRA factors only.
        family: of directions: `hadamard` (default), `rademacher` or `gaussian`.
        epsilon: distance of the probes, in units of the weights.
        rule: `sgd`, `momentum`, `adam`, `sign` or `conservative` (never raises the loss of the batch).
        estimate: `two_sided`, `one_sided` (half the passes, biased) or `forward` (forward-mode, exact).
        objective: what is minimised: `loss`, or 1 - `accuracy` or 1 - `f1` of the batch.
        samples: directions per step, whose slopes are averaged.
        momentum: mu of the rules momentum and adam.
        beta2: decay of adam's second moment.
        sparsity: share of the entries of all directions that are zero.
        resample: steps after which other entries are zero; 0: the same ones for the whole run.
        blocks: one slope per transformer layer, and one for all that is in none: 2 passes each, less variance.
        coordinate: move a block before the next one is probed.
        first_order_from: number of the first layer that is trained by back-propagation, with the run's optimiser.
        first_order_factor: learning rate of those layers in units of the plan's.
        scalar_clip: bound on |g| of one probe.
        variant: `reference` for the published code's sign (of the slope only) and mask (zeroes the share
            Phi(sparsity)).
    """
    check.one_of(("full", "lora"), space=space)
    families.make(family, 0, 1)  # refuses what there is not
    how = Walk(
        rule=rule,
        estimate=estimate,
        objective=objective,
        epsilon=epsilon,
        samples=samples,
        momentum=momentum,
        beta2=beta2,
        sparsity=sparsity,
        resample=resample,
        blocks=blocks,
        coordinate=coordinate,
        first_order_from=first_order_from,
        first_order_factor=first_order_factor,
        scalar_clip=scalar_clip,
        variant=variant,
    )
    fresh = Fresh(how, family)
    kind = Full() if space == "full" else LoRA()
    return Recipe("zo_fedavg", kind, local=fresh.change, check=fresh.check, any_kind=space == "lora")


@dataclass(frozen=True)
class Fresh:
    """Walks along directions of their own: a seed per client and round, `samples` numbers per step."""

    how: Walk
    family: str

    def directions(self, seed: int, count: int, run_seed: int) -> directions.Directions:
        """Those of one turn."""
        z = families.make(self.family, seed, count)
        return z if self.how.resample else self.how.masked(z, run_seed)

    def walk(self, handle: Handle, data: Data, turn: Turn) -> zeroth_order.Walked:
        """The turn's steps, along direction 0, 1, 2, ... of `seed(turn)`."""
        count = turn.plan.steps * self.how.samples
        z = self.directions(self.seed(turn), count, turn.run_seed)
        return zeroth_order.walk(handle, data, turn, self.how, z, range(count))

    def seed(self, turn: Turn) -> int:
        """Of the turn's directions; the turn's own seed is of the run, the client and the round."""
        return philox.derive(turn.seed, "zo")

    def change(self, handle: Handle, data: Data, turn: Turn) -> Trained:
        """Walk; uploads what moved by how much."""
        received = handle.read()
        metrics = self.walk(handle, data, turn).metrics
        return Trained(tensors.sub(handle.read(), received), metrics)

    def check(self, config: RunConfig) -> None:
        """One block of `hadamard` holds 4096 directions."""
        count = config.local.steps * self.how.samples
        if self.family == "hadamard" and count > BLOCK:
            raise ValueError(f"[local] steps x samples = {count}; family 'hadamard' has {BLOCK} directions per round")
