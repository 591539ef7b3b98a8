"""An adapter of a pruned model: its pairs without what belongs to pruned groups, and back.

    rows pruned       A as it is,  B[kept, :]        rank (kept rows + in) numbers
    columns pruned    A[:, kept],  B as it is        rank (out + kept columns)

A client sends and gets the cut tensors, the server's state is in full coordinates.
"""

from collections.abc import Mapping

from torch import Tensor

from fedft.arithmetic.named_pairs import A_SUFFIX, B_SUFFIX
from fedft.arithmetic.tensors import Tensors
from fedft.pruning.kept import Kept


def cut(tensors: Tensors, kept: Kept) -> dict[str, Tensor]:
    """Named tensors, those of pruned weights without the rows of B or columns of A of pruned groups; new memory there.

    Tensors that belong to no group are the given ones.
    """
    found = dict(tensors)
    for name, (axis, module) in _cut_factors(kept).items():
        if name in found:
            found[name] = found[name].index_select(axis, kept.places(module).to(found[name].device))
    return found


def scattered(tensors: Tensors, kept: Kept) -> dict[str, Tensor]:
    """Undoes `cut`: named tensors in full coordinates, 0 where a group is pruned."""
    found = dict(tensors)
    for name, (axis, module) in _cut_factors(kept).items():
        if name in found:
            shape = list(found[name].shape)
            shape[axis] = len(kept.lost(module))
            full = found[name].new_zeros(shape)
            found[name] = full.index_copy_(axis, kept.places(module).to(full.device), found[name])
    return found


def cut_shapes(shapes: Mapping[str, tuple[int, ...]], kept: Kept) -> dict[str, tuple[int, ...]]:
    """The shapes that `cut` gives tensors of these shapes, by name."""
    found = dict(shapes)
    for name, (axis, module) in _cut_factors(kept).items():
        if name in found:
            size = len(kept.places(module))
            found[name] = (size, *found[name][1:]) if axis == 0 else (*found[name][:1], size)
    return found


def _cut_factors(kept: Kept) -> dict[str, tuple[int, str]]:
    """By name of a factor: the axis along which it is cut, and its module; in each pair there is one."""
    by_side = {"rows": (B_SUFFIX, 0), "columns": (A_SUFFIX, 1)}
    parts = ((module, *by_side[part.side]) for module, (part, _) in kept.groups.parts.items())
    return {module + suffix: (axis, module) for module, suffix, axis in parts}
