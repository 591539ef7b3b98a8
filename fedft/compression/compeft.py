"""compeft:DENSITY,SCALE: ComPEFT as published, all tensors of a message as one vector u of d entries.

    keep      the floor(DENSITY d) + 1 largest |u|, and all that equal the smallest of them; of nothing but zeros none
    sent      SCALE std(u) sign(u) where kept, 0 elsewhere: one magnitude for all tensors; each is written as `ternary`
              writes it, the magnitude in bf16

std is that of all d entries, with d - 1 for d. SCALE left out is 1. In the paper both numbers are tuned on held-out
rows, SCALE from 0.5 to 10; `fedft eval DIR --compeft` does so for what a run learned. For Gaussian u the mean of what
is kept, which `ternary` sends, is about 2 std at a DENSITY of 0.1.

Tensors of small entries, as the A of a pair beside its B may be, can lose all of theirs: `ternary:DENSITY` ranks each
tensor by itself. A tensor that is packed outside a message is written as it is.

Yadav, Choshen, Raffel, Bansal, "ComPEFT: Compression for Communicating Parameter Efficient Updates via Sparsification
and Quantization", 2023, arXiv:2311.13171.
"""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from fedft.arithmetic.tensors import Tensors
from fedft.compression import entropy_coder
from fedft.compression.codec import Codec, number
from fedft.compression.ternary import TERNARY


def compeft(arguments: str) -> Codec:
    """The codec of "DENSITY" or "DENSITY,SCALE". Raises ValueError in one line."""
    density, comma, scale = (part.strip() for part in arguments.partition(","))
    q, c = number(density), number(scale if comma else "1")
    if not (0 < q <= 1 and 0 < c <= 1e3):
        raise ValueError(
            f"codec is 'compeft:{arguments}': wanted compeft:DENSITY,SCALE with 0 < DENSITY <= 1 and 0 < SCALE <= 1000"
        )
    return replace(
        TERNARY,
        name=f"compeft:{q:g},{c:g}",
        bits_per_parameter=entropy_coder.bits_per_place(q) + q,
        across=lambda tensors: across(tensors, Fraction(f"{q:g}"), c),
        idempotent=False,  # what is left has another standard deviation
        behind_selection=None,
    )


def across(tensors: Tensors, density: Fraction, scale: float) -> dict[str, Tensor]:
    """The tensors of a message by name, floats as the other side is to see them but for the magnitude's rounding.

    Integers come back as they are, and all of it where an entry is not finite, which is for the receiver to refuse.

    >>> sent = across({"a": torch.tensor([3.0, -1.0]), "b": torch.tensor([0.0, -2.0])}, Fraction("0.25"), 1.0)
    >>> [(n, x.sign().tolist()) for n, x in sent.items()]  # two of four entries
    [('a', [1.0, 0.0]), ('b', [0.0, -1.0])]
    """
    floats = {n: x.detach().cpu().float() for n, x in tensors.items() if x.is_floating_point() and x.numel()}
    if not floats:
        return dict(tensors)
    u = torch.cat([x.reshape(-1) for x in floats.values()])
    d = len(u)
    magnitude = scale * float(u.double().std(correction=min(1, d - 1)))
    if not bool(torch.isfinite(u).all()):
        return dict(tensors)
    kept = min(d, int(density * d) + 1)
    size = u.abs().numpy()
    least = float(np.partition(size, d - kept)[d - kept])
    sent = {n: torch.where(x.abs() >= least, magnitude * x.sign(), 0.0) for n, x in floats.items()}
    return {**tensors, **sent}
