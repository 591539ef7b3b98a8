"""FedIT: federated averaging of the two LoRA factors.

    A^{t+1} = sum_k p_k A_k,   B^{t+1} = sum_k p_k B_k

The product of the means is not the mean of the products: it misses sum_k p_k (B_k - B)(A_k - A). Clients start the next
round from the averaged factors. With `padding="zero"` clients may have unlike ranks: factors are cut to a client's rank
on the way down and padded with zeros on the way up, and values are averaged (the zero-padding baseline of the FLoRA
paper).

Zhang et al., "Towards Building the Federated GPT: Federated Instruction Tuning", ICASSP 2024, arXiv:2305.05644.
"""

from dataclasses import replace
from typing import Literal

from fedft import check
from fedft.aggregation.factor_means import padded_mean
from fedft.recipe import LoRA, Recipe
from fedft.strategies.parts.unlike_ranks import of_unlike_ranks


def fedit(*, padding: Literal["none", "zero"] = "none") -> Recipe:
    """Weighted mean of A and of B.

    Args:
        padding: "zero" allows unlike ranks, whose factors are filled up with zeros; "none": all have one rank.
    """
    check.one_of(("none", "zero"), padding=padding)
    if padding == "zero":
        return replace(of_unlike_ranks("fedit", padded_mean), unlike_modules=True)
    return Recipe("fedit", LoRA(), ring_summable=True, any_kind=True, bases="any", unlike_modules=True)
