"""FedIT: federated averaging of the two LoRA factors.

    A^{t+1} = sum_k p_k A_k,   B^{t+1} = sum_k p_k B_k

The product of the means is not the mean of the products: it misses sum_k p_k (B_k - B)(A_k - A). Clients start the next
round from the averaged factors. With `padding="zero"` clients may have unlike ranks: factors are cut to a client's rank
on the way down and padded with zeros on the way up, and values are averaged (the zero-padding baseline of the FLoRA
paper).

Zhang et al., "Towards Building the Federated GPT: Federated Instruction Tuning", ICASSP 2024, arXiv:2305.05644.
"""

from collections.abc import Iterable
from typing import Literal

from torch import Tensor

from fedft.adapters.lora import LoRA
from fedft.arithmetic import lowrank, named_pairs
from fedft.arithmetic.tensors import Tensors
from fedft.contract import State
from fedft.recipe import Recipe, cut_to_rank
from fedft.training.first_order import FirstOrder
from fedft.update import Update


def fedit(*, padding: Literal["none", "zero"] = "none") -> Recipe:
    """Weighted mean of A and of B; `padding="zero"` allows unlike ranks."""
    if padding not in ("none", "zero"):
        raise ValueError(f"padding is {padding!r}, wanted 'none' or 'zero'")
    if padding == "none":
        return Recipe("fedit", LoRA(), ring_summable=True, any_kind=True)
    return Recipe(
        "fedit",
        LoRA(),
        aggregate=padded_mean,
        local=FirstOrder(send="value"),
        server=keep_largest_rank,
        downlink=cut_to_rank,
        linear=False,  # values of unlike shapes, not changes that add up
        unlike_ranks=True,
        upload_kind="values",
    )


def padded_mean(updates: Iterable[Update]) -> dict[str, Tensor]:
    """sum_k p_k pad(x_k), every pair padded with zeros to the largest rank seen; x_k are values, not deltas."""
    pairs, rest = named_pairs.pairs_and_mean((u.delta, u.num_examples) for u in updates)
    return named_pairs.to_names({m: lowrank.mean_factors(lowrank.pad_to_largest(ds)) for m, ds in pairs.items()}) | rest


def keep_largest_rank(state: State, change: Tensors) -> Tensors:
    """Values replace the state's; ranks that nobody of this cohort holds stay: zero in both factors they were dead."""
    return named_pairs.replace_pairs(state.tensors, change)
