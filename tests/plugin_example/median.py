"""Coordinate-wise median of what clients changed in their LoRA factors: a minority of bad updates moves it little.

    A^{t+1} = A^t + med_k dA_k,   B^{t+1} = B^t + med_k dB_k                              every client counts once

Yin et al., "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates", ICML 2018, arXiv:1803.01498.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from fedft.recipe import LoRA, Recipe
from fedft.update import Update


def median() -> Recipe:
    """Plain LoRA in all but the server's mean; not linear, so the server holds all updates of a round."""
    return Recipe("median", LoRA(), aggregate=median_of, linear=False)


def median_of(updates: Iterable[Update]) -> dict[str, Tensor]:
    """med_k delta_k, entry by entry; of an even number the mean of the middle two."""
    deltas = [u.delta for u in updates]
    if not deltas:
        raise ValueError("expected at least one update, got none")
    lower, upper = (len(deltas) - 1) // 2, len(deltas) // 2
    ranked = {name: torch.stack([d[name] for d in deltas]).sort(dim=0).values for name in deltas[0]}
    return {name: (x[lower] + x[upper]) / 2 for name, x in ranked.items()}
