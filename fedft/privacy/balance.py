"""Factors of LoRA scaled to equal norms before they are clipped together.

    t = (|B| / |A|)^(1/2), within 1/8 .. 8          of the state that everybody has
    u = (t dA, dB / t)                              undone behind the sum

(A, B) and (t A, B / t) are the same model, and their changes have two norms: without this the larger factor alone
decides what is cut of both.
"""

import math

from fedft.arithmetic import named_pairs
from fedft.arithmetic.named_pairs import A_SUFFIX, B_SUFFIX
from fedft.arithmetic.tensors import Tensors

MOST = 8.0


def scales(state: Tensors) -> dict[str, float]:
    """By name of each factor of a pair in a state: what its change is multiplied with."""
    found: dict[str, float] = {}
    for module, pair in named_pairs.split(state)[0].items():
        a, b = float(pair.A.double().norm()), float(pair.B.double().norm())
        t = min(MOST, max(1 / MOST, math.sqrt(b / a))) if a else MOST
        found |= {module + A_SUFFIX: t, module + B_SUFFIX: 1 / t}
    return found


def scaled(parts: Tensors, by: dict[str, float]) -> Tensors:
    """The tensors, those of these names multiplied; all as they are where there are none."""
    return {n: x * by.get(n, 1.0) for n, x in parts.items()} if by else parts


def undone(parts: Tensors, by: dict[str, float]) -> Tensors:
    """What `scaled` was given."""
    return {n: x / by.get(n, 1.0) for n, x in parts.items()} if by else parts
