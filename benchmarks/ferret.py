"""CPU seconds to project an update on K directions and to rebuild it: ours against the published way, in one run.

    python benchmarks/ferret.py --parameters 10000000 --directions 4096 --json ferret.json

The update is that many numbers in one block with all K directions: what they cost, and what they keep of it.

    ours       fedft.sketch on `hadamard` directions, all K of them, with nothing left over from the call before
    published  per seed, on both sides: torch.manual_seed, trunc_normal_ to +-1/sqrt(d), dot; or times the coordinate
               and added. A stated part of the K seeds is run and scaled: every seed costs the same

One thread; the two take turns, so that a busy machine slows both; medians of CPU time.
"""

import json
import math
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from fedft import directions, sketch

NAME = "w"


def ours_project(x: Tensor, seed: int, k: int) -> Tensor:
    """gamma, K numbers."""
    return sketch.coordinates(directions.make("hadamard", seed, k), NAME, x, "projection")


def ours_rebuild(gamma: Tensor, seed: int, k: int, d: int) -> Tensor:
    """Z gamma."""
    sketch.rebuild(directions.make("hadamard", seed, k), NAME, gamma, out := torch.zeros(d))
    return out


def published_direction(seed: int, d: int) -> Tensor:
    """One v, as the published code draws it."""
    torch.manual_seed(seed)
    bound = 1 / math.sqrt(d)
    return torch.nn.init.trunc_normal_(torch.empty(d), mean=0.0, std=1.0, a=-bound, b=bound)


def published_project(x: Tensor, seeds: range, k: int) -> Tensor:
    """d / K <v, x> for some of the K seeds."""
    return torch.stack([torch.dot(x, published_direction(seed, len(x))) for seed in seeds]) * len(x) / k


def published_rebuild(gamma: Tensor, seeds: range, d: int) -> Tensor:
    """The sum over those seeds."""
    out = torch.zeros(d)
    for seed, g in zip(seeds, gamma, strict=True):
        out.add_(published_direction(seed, d) * g)
    return out


def measure(d: int, k: int, part: int, repeats: int) -> dict[str, Any]:
    """All figures of one size."""
    x = 1e-3 * torch.randn(d, generator=torch.Generator().manual_seed(1))
    spent: dict[str, list[float]] = {}

    def note(name: str, work: Callable[[], Tensor]) -> Tensor:
        start = time.process_time()
        found = work()
        seconds = time.process_time() - start
        spent.setdefault(name, []).append(seconds * (k / part if name.startswith("published") else 1))
        return found

    ours_project(x[: sketch.MOST], 0, k)  # what is loaded on first use
    load = os.getloadavg()[0]
    gamma = rebuilt = torch.empty(0)
    for turn in range(repeats):
        seeds = range(turn * part, (turn + 1) * part)
        gamma = note("project", lambda turn=turn: ours_project(x, turn, k))
        theirs = note("published_project", lambda seeds=seeds: published_project(x, seeds, k))
        rebuilt = note("rebuild", lambda turn=turn, gamma=gamma: ours_rebuild(gamma, turn, k, d))
        note("published_rebuild", lambda seeds=seeds, theirs=theirs: published_rebuild(theirs, seeds, d))
    cost = {n: statistics.median(s) for n, s in spent.items()}
    x64, y64 = x.double(), rebuilt.double()
    unbiased = y64 * max(d, k) / k
    return {
        "parameters": d,
        "directions": k,
        "published_seeds_run": part,
        "repeats": repeats,
        "cpu_s": cost,
        "ratio": {
            "project": cost["published_project"] / cost["project"],
            "rebuild": cost["published_rebuild"] / cost["rebuild"],
        },
        "bytes": 4 * len(gamma),
        "relative_error": {
            "projection": float((y64 - x64).norm() / x64.norm()),
            "unbiased": float((unbiased - x64).norm() / x64.norm()),
        },
        "cosine": float(y64 @ x64 / (y64.norm() * x64.norm())),
        "cosine_of_the_law": math.sqrt(min(1.0, k / d)),
        "load": [load, os.getloadavg()[0]],
    }


def main(
    parameters: Annotated[list[int], typer.Option(help="Size of the update; may be given again.")] = [10_000_000],  # noqa: B006
    directions_: Annotated[int, typer.Option("--directions", help="K, at most 4096.")] = 4096,
    part: Annotated[int, typer.Option(help="Seeds of the published way that are run and scaled to K.")] = 4,
    repeats: Annotated[int, typer.Option(help="Turns of each; medians are reported.")] = 5,
    json_: Annotated[Path | None, typer.Option("--json", help="File for all figures.")] = None,
) -> None:
    """CPU seconds to project and to rebuild, and what the coordinates keep."""
    torch.set_num_threads(1)
    found = []
    for d in parameters:
        found.append(r := measure(d, directions_, part, repeats))
        show(r)
        if json_:
            json_.write_text(json.dumps(found, indent=1) + "\n")


def show(r: dict[str, Any]) -> None:
    """One size, for people."""
    cpu, ratio, error = r["cpu_s"], r["ratio"], r["relative_error"]
    typer.echo(
        f"{r['parameters']} parameters, K = {r['directions']}, load {r['load'][0]:.1f} to {r['load'][1]:.1f}\n"
        f"  project  {1e3 * cpu['project']:.1f} ms of CPU, published {cpu['published_project']:.0f} s "
        f"(from {r['published_seeds_run']} seeds): {ratio['project']:,.0f} times\n"
        f"  rebuild  {1e3 * cpu['rebuild']:.1f} ms of CPU, published {cpu['published_rebuild']:.0f} s: "
        f"{ratio['rebuild']:,.0f} times\n"
        f"  kept     {r['bytes']} bytes, cosine {r['cosine']:.4f} (law {r['cosine_of_the_law']:.4f}), relative error "
        f"{error['projection']:.4f} as projection, {error['unbiased']:.2f} unbiased"
    )


if __name__ == "__main__":
    typer.run(main)
