"""Which groups go next: a little at a time, the least important first, never all of a layer's.

    while pruned < ratio:    kept = next_kept(kept, importance, ratio);    train some steps

Ratios are shares of the weights in all groups, see `Kept.ratio`.
"""

import math
from collections.abc import Iterator

from torch import Tensor

from fedft import check
from fedft.pruning.groups import Groups, Structure
from fedft.pruning.kept import Kept

SLICE = 0.02
CAP = 0.75


def next_kept(
    kept: Kept, importance: Tensor, ratio: float, *, share: float = SLICE, cap: float = CAP, uniform: bool = False
) -> Kept:
    """What is kept after one more step of pruning: of equally important groups the first go first.

    Args:
        kept: so far.
        importance: of every group, float [groups]; those that are pruned already do not count.
        ratio: the aim; at or above it nothing is pruned, and the last group may lie on both sides of it.
        share: of the weights in all groups, at most, that this step prunes; one group in any case.
        cap: of the groups of each structure, at most, that are ever pruned; one stays in any case.
        uniform: whether all layers keep as many heads as each other, and as many channels: what goes is the least
            important group of each layer, where these are the least important on average. A step prunes one of each
            layer in any case.
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
    total = int(kept.groups.weights.sum())
    pruned, most = int(kept.groups.weights[~kept.bits].sum()), share * total
    gone, so_far = list[int](), 0
    for _, weights, together in sorted(_goes_together(kept, importance, cap, uniform), key=lambda item: item[0]):
        if (pruned + so_far) / total >= ratio or (gone and so_far >= most):
            break
        if not gone or so_far + weights <= most:
            gone += together
            so_far += weights
    if not gone:
        return kept
    bits = kept.bits.clone()
    bits[gone] = False
    return Kept(kept.groups, bits)


def _goes_together(kept: Kept, importance: Tensor, cap: float, uniform: bool) -> Iterator[tuple[float, int, list[int]]]:
    """(mean importance, weights, groups) of all that may go; of each structure the least important first."""
    families: dict[str, list[tuple[Structure, list[int]]]] = {}
    for s, place in kept.groups.each():
        left = kept.bits[place].nonzero().flatten() + place.start
        order = left[importance[left].argsort(stable=True)].tolist()
        name = s.name.rpartition(".")[2] if uniform else s.name
        families.setdefault(name, []).append((s, order[: max(0, len(left) - fewest(s.size, cap))]))
    worth = importance.tolist()
    for family in families.values():
        weights = sum(s.weights for s, _ in family)
        for together in zip(*(order for _, order in family), strict=False):  # as far as the smallest of them goes
            yield sum(worth[g] for g in together) / len(together), weights, [*together]


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
