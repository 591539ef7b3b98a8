"""Ferret: an update as its coordinates on K random directions and back, against the published loop over seeds.

    published  per seed, on both sides: torch.manual_seed, trunc_normal_ to +-1/sqrt(d), dot; or times the coordinate
               and added. One seed is run in each turn and scaled: every seed costs the same
    ours       fedft.randomness.sketch on `hadamard` directions with nothing left over from the call before

The update is that many numbers in one block with all K directions. The limit is one pass: x read once, or out += 1.

What the coordinates keep of an update depends on d / K alone, so it is told with fewer of both, where the published
way can run all its seeds. No K numbers that are linear in the update have a cosine above sqrt(K / d) with a random one.
"""

import math

import torch
from torch import Tensor

from fedft.benchmarks.measure import LIMIT, Act, backends, take_turns, with_kernels
from fedft.benchmarks.results import Result, Row
from fedft.randomness import families, sketch

NAME = "w"
FEW = 64  # directions where it is told what is kept


def published_direction(seed: int, d: int) -> Tensor:
    """One v, as the published code draws it."""
    torch.manual_seed(seed)
    bound = 1 / math.sqrt(d)
    return torch.nn.init.trunc_normal_(torch.empty(d), mean=0.0, std=1.0, a=-bound, b=bound)


def published_project(x: Tensor, seeds: range, k: int) -> Tensor:
    """d / K <v, x> for some of the K seeds."""
    return torch.stack([torch.dot(x, published_direction(seed, len(x))) for seed in seeds]) * len(x) / k


def published_rebuild(gamma: Tensor, seeds: range, out: Tensor) -> Tensor:
    """out += the sum over those seeds."""
    for seed, g in zip(seeds, gamma, strict=True):
        out.add_(published_direction(seed, len(out)) * g)
    return out


def project(x: Tensor, k: int) -> Tensor:
    """gamma, K numbers."""
    return sketch.coordinates(families.make("hadamard", 7, k), NAME, x, "projection")


def rebuild(gamma: Tensor, out: Tensor) -> Tensor:
    """out += Z gamma."""
    sketch.rebuild(families.make("hadamard", 7, len(gamma)), NAME, gamma, out)
    return out


def bench(*, quick: bool = False, turns: int = 7) -> Result:
    """CPU seconds for ten million parameters and K = 4096, and what is kept."""
    d, k = (200_000 if quick else 10_000_000), 4096
    x = 1e-3 * torch.randn(d, generator=torch.Generator().manual_seed(1))
    gamma, out, one = project(x, k), torch.zeros(d), range(1)
    acts = [Act("project", "published", lambda: published_project(x, one, k), k)]
    acts += [Act("project", f"ours, {b}", with_kernels(b, lambda: project(x, k))) for b in backends()]
    acts += [Act("project", LIMIT, lambda: torch.dot(x, x))]
    acts += [Act("rebuild", "published", lambda: published_rebuild(gamma[:1], one, out), k)]
    acts += [Act("rebuild", f"ours, {b}", with_kernels(b, lambda: rebuild(gamma, out))) for b in backends()]
    acts += [Act("rebuild", LIMIT, lambda: out.add_(1.0))]
    return Result(
        "ferret",
        "the published loop over seeds, and our projection on Hadamard directions; limit: one pass over memory",
        {"parameters": d, "directions": k, "turns": turns},
        (*take_turns(acts, turns), *kept(d // k)),
    )


def kept(ratio: int) -> tuple[Row, ...]:
    """What either way keeps of a random update with d / K = `ratio`."""
    d = ratio * FEW
    x = 1e-3 * torch.randn(d, generator=torch.Generator().manual_seed(FEW))  # no seed of a direction
    theirs = published_rebuild(published_project(x, range(FEW), FEW), range(FEW), torch.zeros(d))
    ours, best = rebuild(project(x, FEW), torch.zeros(d)), math.sqrt(min(1.0, 1 / ratio))
    what = f"kept at d/K = {ratio}"
    bound = {"error": math.sqrt(1 - best**2), "cosine": best}
    return (
        Row(what, "published", facts=_against(x, theirs)),
        Row(what, "ours", facts=_against(x, ours)),
        Row(what, LIMIT, facts=bound),
    )


def _against(x: Tensor, y: Tensor) -> dict[str, float]:
    x, y = x.double(), y.double()
    return {"error": float((y - x).norm() / x.norm()), "cosine": float(y @ x / (y.norm() * x.norm()))}
