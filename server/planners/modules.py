"""The modules that a state's tensors belong to, and how far each has moved, as planners choose among them."""

import math
from collections import defaultdict

from fedft.arithmetic.named_pairs import split
from fedft.contract import State


def modules_of(state: State) -> tuple[str, ...]:
    """Names of the modules whose tensors the state has, bytewise: a tensor is called `<module>.<part>`."""
    return tuple(sorted({name.rpartition(".")[0] for name in state.tensors}, key=str.encode))


def moved(state: State) -> dict[str, float]:
    """How far the run has moved each of `modules_of`: the Frobenius norm |B A| of a pair, the L2 norm of other tensors.

    All are zero at version 0 of an adapter that leaves the model as it is.
    """
    pairs, rest = split(state.tensors)
    squares: dict[str, float] = defaultdict(float, {m: d.norm() ** 2 for m, d in pairs.items()})
    for name, x in rest.items():
        squares[name.rpartition(".")[0]] += float(x.double().square().sum())
    return {m: math.sqrt(squares[m]) for m in modules_of(state)}
