"""Seed replay: K random directions at once, against the published loop over seeds.

    axpy      w += sum_j a_j z_j. Published (FedKSeed): per seed manual_seed, torch.normal, w = w - lr (g z + wd w)
    dot       <x, z_j> for all j. Published (Ferret): per seed manual_seed, trunc_normal_, dot
    add       w += eps z. Published: manual_seed, torch.normal, w + eps z
    add into  out = w + eps z, what a perturbed forward pass needs. Published: the same

Of K seeds the published way runs one in each turn and is scaled: every seed costs the same. The limit is one pass over
what must be touched: w += 1, or x read once, or out = w + 1. torch keeps the bits of D between calls (they are made in
the turn that is not counted), compiled kernels make them anew.
"""

import torch
from torch import Tensor

from fedft.benchmarks.ferret import published_direction
from fedft.benchmarks.measure import LIMIT, Act, backends, take_turns, with_kernels
from fedft.benchmarks.results import Result
from fedft.randomness.hadamard import Hadamard

NAME, EPSILON = "w", 1e-3
RATE, DECAY, SLOPE = 1e-3, 1e-2, 0.5  # of the published update; what they are costs nothing


def published_axpy(w: Tensor) -> Tensor:
    """The replay loop of the published code, for one seed."""
    torch.manual_seed(1)
    z = torch.normal(mean=0, std=1, size=w.size(), dtype=w.dtype)
    return w - RATE * (SLOPE * z + DECAY * w)


def published_add(w: Tensor) -> Tensor:
    """One perturbation of the published code."""
    torch.manual_seed(1)
    return w + EPSILON * torch.normal(mean=0, std=1, size=w.size(), dtype=w.dtype)


def bench(*, quick: bool = False, turns: int = 7) -> Result:
    """CPU seconds for ten million parameters and K = 4096."""
    n, k = (200_000 if quick else 10_000_000), 4096
    generator = torch.Generator().manual_seed(0)
    w, x = (0.02 * torch.randn(n, generator=generator) for _ in range(2))
    coefficients, out, z = torch.randn(k, generator=generator), torch.empty_like(w), Hadamard(7, k)
    published = {
        "axpy": Act("axpy", "published", lambda: published_axpy(w), k),
        "dot": Act("dot", "published", lambda: torch.dot(published_direction(1, n), x), k),
        "add": Act("add", "published", lambda: published_add(w)),
        "add into": Act("add into", "published", lambda: published_add(w)),
    }
    ours = {
        "axpy": lambda: z.axpy_(w, NAME, coefficients),
        "dot": lambda: z.dot(x, NAME),
        "add": lambda: z.add_(w, NAME, 5, EPSILON),
        "add into": lambda: z.add_into(out, w, NAME, 5, EPSILON),
    }
    limits = {
        "axpy": lambda: w.add_(1.0),
        "dot": lambda: torch.dot(x, x),
        "add": lambda: w.add_(1.0),
        "add into": lambda: torch.add(w, 1.0, out=out),
    }
    acts = []
    for what, first in published.items():
        acts.append(first)
        acts += [Act(what, f"ours, {b}", with_kernels(b, ours[what])) for b in backends()]
        acts.append(Act(what, LIMIT, limits[what]))
    return Result(
        "replay",
        "the published loop over seeds, and Hadamard directions, all K of a block at once; limit: one pass over memory",
        {"parameters": n, "directions": k, "turns": turns},
        take_turns(acts, turns),
    )
