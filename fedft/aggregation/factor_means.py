"""Means of low-rank uploads: of whole matrices B_k A_k as stacks, or factor by factor where ranks are unlike.

Uploads hold values of factors, `<module>.lora_A` and `<module>.lora_B`; p_k = n_k / sum n_j over those who answered.
What is not a pair, a head, is averaged by p_k.
"""

from collections.abc import Iterable, Iterator

from torch import Tensor

from fedft.arithmetic import lowrank
from fedft.arithmetic.named_pairs import pairs_and_mean, split, to_names
from fedft.arithmetic.stacks import Stack
from fedft.arithmetic.tensors import Tensors, weighted_mean
from fedft.update import Update


def stacked_mean(updates: Iterable[Update]) -> dict[str, Tensor]:
    """sum_k p_k B_k A_k of every module, exactly: the stack of all pairs with p_k on B.

    Factors are written into the stacks as they come: there are the stacks, and one update at a time.
    """
    stacks: dict[str, Stack] = {}

    def stacked(u: Update) -> Tensors:
        pairs, others = split(u.delta)
        for m, d in pairs.items():
            stacks.setdefault(m, Stack(u.cohort)).add(d, u.num_examples)
        return others

    def others() -> Iterator[tuple[Tensors, float]]:
        for u in updates:
            rest, weight = stacked(u), u.num_examples
            del u  # gone before the next one is made
            yield rest, weight

    mean = weighted_mean(others())
    return to_names({m: stacks.pop(m).mean() for m in [*stacks]}) | mean


def padded_mean(updates: Iterable[Update]) -> dict[str, Tensor]:
    """sum_k p_k pad(A_k) and sum_k p_k pad(B_k), every pair padded with zeros to the largest rank that was sent."""
    pairs, rest = pairs_and_mean((u.delta, u.num_examples) for u in updates)
    return to_names({m: lowrank.mean_factors(lowrank.pad_to_largest(ds)) for m, ds in pairs.items()}) | rest
