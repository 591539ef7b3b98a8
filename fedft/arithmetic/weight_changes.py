"""Changes of a weight in the shorter of two forms: as factors B A of R rows, or multiplied out.

factors   R (o + i) numbers, while that is no more than o i: `<module>.lora_A` [R, i] and `<module>.lora_B` [o, R]
dense     o i numbers, beyond: `<module>.lora_BA` [o, i]

Recompressed to min(o, i) rows, factors would be up to twice as long as the dense form and less exact, and found in
O(min(o, i)^3) instead of O(o i) for a row more. Dense sums run in float64 and are rounded once.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fedft.arithmetic import named_pairs
from fedft.arithmetic.lowrank import LowRank
from fedft.arithmetic.norms import BLOCK
from fedft.arithmetic.tensors import Tensors

Change = LowRank | Tensor
"""Of one weight [o, i]: factors, or the matrix itself."""
DENSE_SUFFIX = ".lora_BA"


def plus(x: Change, y: Change) -> Change:
    """The sum of two changes of one weight: factors side by side where both are factored, else dense [o, i]."""
    return x + y if isinstance(x, LowRank) and isinstance(y, LowRank) else _summed((x, y))


def shorter(d: Change) -> Change:
    """The same change in the shorter form: factors of R rows become dense where R (o + i) > o i; no way back."""
    if isinstance(d, Tensor):
        return d
    o, i = d.shape
    return _summed((d,)) if d.rank * (o + i) > o * i else d


def factored(d: Change) -> LowRank:
    """The same matrix as factors; a dense one [o, i] beside the identity, exactly, as min(o, i) rows."""
    if isinstance(d, LowRank):
        return d
    o, i = d.shape
    return LowRank(torch.eye(i, dtype=d.dtype), d) if i <= o else LowRank(d, torch.eye(o, dtype=d.dtype))


def split(tensors: Tensors) -> tuple[dict[str, Change], dict[str, Tensor]]:
    """Named tensors parted in two: changes by module, in whichever form, and everything else by name."""
    pairs, rest = named_pairs.split(tensors)
    dense = {n.removesuffix(DENSE_SUFFIX): x for n, x in rest.items() if n.endswith(DENSE_SUFFIX)}
    return {**pairs, **dense}, {n: x for n, x in rest.items() if not n.endswith(DENSE_SUFFIX)}


def to_names(changes: Mapping[str, Change]) -> dict[str, Tensor]:
    """The changes (by module) as named tensors: undoes `split`."""
    pairs = {m: d for m, d in changes.items() if isinstance(d, LowRank)}
    dense = {m + DENSE_SUFFIX: d for m, d in changes.items() if isinstance(d, Tensor)}
    return {**named_pairs.to_names(pairs), **dense}


def _summed(terms: Sequence[Change]) -> Tensor:
    """The sum of changes of one weight, [o, i] in the first one's dtype; some rows at a time in float64."""
    parts = [(d.B, d.A.double()) if isinstance(d, LowRank) else (d, None) for d in terms]
    (o, i), kind = terms[0].shape, parts[0][0].dtype
    total, rows = torch.empty(o, i, dtype=kind), max(1, BLOCK // max(1, i))
    for at in range(0, o, rows):
        here = slice(at, at + rows)
        exact = torch.zeros(len(total[here]), i, dtype=torch.float64)
        for left, right in parts:
            exact += left[here].double() if right is None else left[here].double() @ right
        total[here] = exact
    return total
