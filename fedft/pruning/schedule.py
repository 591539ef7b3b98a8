"""Which groups go next: a little at a time, the least important first, never all of a layer's.

    while pruned < ratio:    kept = next_kept(kept, importance, ratio);    train some steps

Ratios are shares of the weights in all groups, see `Kept.ratio`.
"""

import math

import torch
from torch import Tensor

from fedft import check
from fedft.pruning.groups import Groups
from fedft.pruning.kept import Kept

SLICE = 0.02
CAP = 0.75


def next_kept(kept: Kept, importance: Tensor, ratio: float, *, share: float = SLICE, cap: float = CAP) -> Kept:
    """What is kept after one more step of pruning: of equally important groups the first go first.

    Args:
        kept: so far.
        importance: of every group, float [groups]; those that are pruned already do not count.
        ratio: the aim; at or above it nothing is pruned, and the last group may lie on both sides of it.
        share: of the weights in all groups, at most, that this step prunes; one group in any case.
        cap: of the groups of each structure, at most, that are ever pruned; one stays in any case.
    Returns:
        A part of `kept`; `kept` itself where nothing may be pruned any more.
    Raises:
        ValueError: an importance that is no number, or is not of all groups.
    """
    check.between(0, 1, ratio=ratio, share=share, cap=cap)
    if importance.shape != kept.bits.shape:
        raise ValueError(f"expected {len(kept.bits)} numbers, got {list(importance.shape)}")
    if bool(importance.isnan().any()):
        raise ValueError("the importance of a group is no number")
    of, structures = _structure_of(kept.groups), kept.groups.structures
    room = [left - fewest(s.size, cap) for left, s in zip(kept.counts().values(), structures, strict=True)]
    total = int(kept.groups.weights.sum())
    pruned, most = int(kept.groups.weights[~kept.bits].sum()), share * total
    gone, so_far = list[int](), 0
    for group in importance.masked_fill(~kept.bits, torch.inf).argsort(stable=True).tolist():
        if (pruned + so_far) / total >= ratio or (gone and so_far >= most):
            break
        weights = structures[of[group]].weights
        if not kept.bits[group] or not room[of[group]] or (gone and so_far + weights > most):
            continue
        room[of[group]] -= 1
        gone.append(group)
        so_far += weights
    if not gone:
        return kept
    bits = kept.bits.clone()
    bits[gone] = False
    return Kept(kept.groups, bits)


def fewest(count: int, cap: float) -> int:
    """How many of a structure's `count` groups stay for ever.

    >>> fewest(4, 0.75), fewest(2, 0.75), fewest(1, 0.75)
    (1, 1, 1)
    """
    return max(1, count - math.floor(count * cap))


def largest_ratio(groups: Groups, cap: float = CAP) -> float:
    """The ratio of the smallest model that `next_kept` ever leaves: no aim above it is reached."""
    stays = sum(fewest(s.size, cap) * s.weights for s in groups.structures)
    return 1 - stays / int(groups.weights.sum())


def _structure_of(groups: Groups) -> list[int]:
    """The number of the structure that each group is in."""
    return [n for n, s in enumerate(groups.structures) for _ in range(s.size)]
