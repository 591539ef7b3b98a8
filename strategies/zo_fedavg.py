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

from typing import Literal

from fedft.arithmetic import tensors
from fedft.randomness.independent import Table
from fedft.randomness.source import Source
from fedft.recipe import Data, Handle, Recipe, Trained, Turn
from fedft.strategies.parts.fresh_walks import Fresh
from fedft.strategies.parts.spaces import Space, kind_of
from fedft.strategies.parts.zeroth_options import takes_walk
from fedft.training.zeroth_rules import Walk


@takes_walk()
def zo_fedavg(how: Walk, *, space: Space = "lora", family: str = "hadamard", table: Table | None = None) -> Recipe:
    """Federated averaging of zeroth-order local steps.

    Args:
        space: all parameters, or the LoRA factors only.
        family: of directions: `hadamard` (default), `rademacher` or `gaussian`.
        table: directions of the steps of every turn, the first one first, in place of the generator's
            (`independent.Table`), to check numbers by hand.
    """
    fresh = Fresh(how, Source(family, table))

    def local(handle: Handle, data: Data, turn: Turn) -> Trained:
        """The turn's steps; uploads the change of every tensor that is trained."""
        received = handle.read()
        metrics = fresh.walk(handle, data, turn).metrics
        return Trained(tensors.sub(handle.read(), received), metrics)

    lora = space == "lora"
    bases: Literal["same", "any"] = "any" if lora else "same"
    return Recipe(
        "zo_fedavg",
        kind_of(space),
        local=local,
        check=fresh.check,
        reach=fresh.reach,
        ring_summable=True,
        any_kind=lora,
        bases=bases,
    )
