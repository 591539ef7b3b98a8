"""FedAvg: clients descend from the same x, the server adds the mean of what they changed.

    client   y_k = x - eta sum_s grad L_k(y_k^s)                                        uploads y_k - x
    server   x := x + eta_g sum_k p_k (y_k - x),   p_k = n_k / sum_j n_j over those who answered

With one full-batch step of every client this is gradient descent on all the data; with one client it is local training.
Changes are averaged, never values: they are formed against the x of the round. Upload and download are x each: every
parameter, or the two LoRA factors (which is FedIT).

McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017,
arXiv:1602.05629.
"""

from typing import Literal

from torch import Tensor

from fedft import check
from fedft.aggregation.mean import mean, uniform_mean
from fedft.arithmetic import tensors
from fedft.recipe import Full, LoRA, Recipe, State, Tensors, add


def fedavg(
    *,
    space: Literal["full", "lora"] = "full",
    server_lr: float = 1.0,
    weights: Literal["examples", "uniform"] = "examples",
) -> Recipe:
    """Weighted mean of the clients' changes.

    Args:
        space: all parameters, or the LoRA factors only.
        server_lr: eta_g, factor on the mean change.
        weights: p_k by numbers of examples, or the same for all.
    """
    check.one_of(("full", "lora"), space=space)
    check.one_of(("examples", "uniform"), weights=weights)
    check.above(0, server_lr=server_lr)

    def step(state: State, change: Tensors) -> dict[str, Tensor]:
        return add(state, tensors.scale(change, server_lr))

    by_examples = weights == "examples"
    return Recipe(
        "fedavg",
        Full() if space == "full" else LoRA(),
        aggregate=mean if by_examples else uniform_mean,
        server=add if server_lr == 1 else step,
        linear=by_examples,  # sums elsewhere are by examples
        ring_summable=by_examples,
        averages_changes=True,
        any_kind=space == "lora",
        bases="any" if space == "lora" else "same",
    )
