"""CPU seconds of a seed replay and of its parts: the published way, torch and compiled kernels, in one run.

    python benchmarks/replay.py --parameters 10000000 --directions 4096 --json replay.json

    axpy_      w += sum_j a_j z_j. Published (FedKSeed): per seed manual_seed, torch.normal, w = w - lr (g z + wd w)
    dot        <x, z_j> for all j. Published (Ferret): per seed manual_seed, trunc_normal_, dot
    add_       w += eps z. Published: manual_seed, torch.normal, w = w + eps z
    add_into   out = w + eps z, what a perturbed forward pass needs; with torch alone until now a clone and add_

Of K seeds the published way runs a few and is scaled, each seed costs the same. `pass` is w.add_(1.0), the limit of
anything that writes w. One thread; all take turns, so that a busy machine slows all; medians of CPU time. torch keeps
the bits of D between calls (they are made in the first turn, which is not counted), kernels make them anew. Memory
that was freed is kept (glibc): else fresh pages are most of what the published way takes, three to six times as much.
"""

import ctypes
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

from fedft import hadamard_kernels
from fedft.hadamard import Hadamard

NAME, EPSILON = "w", 1e-3
RATE, DECAY, SLOPE = 1e-3, 1e-2, 0.5  # of the published update; what they are costs nothing


def published_axpy(w: Tensor, seeds: range) -> Tensor:
    """The replay loop of the published code for some seeds."""
    for seed in seeds:
        torch.manual_seed(seed)
        z = torch.normal(mean=0, std=1, size=w.size(), dtype=w.dtype)
        w = w - RATE * (SLOPE * z + DECAY * w)
    return w


def published_dot(x: Tensor, seeds: range) -> Tensor:
    """The products of the published code for some seeds."""
    bound = 1 / math.sqrt(len(x))
    found = []
    for seed in seeds:
        torch.manual_seed(seed)
        found.append(torch.dot(torch.nn.init.trunc_normal_(torch.empty(len(x)), 0.0, 1.0, -bound, bound), x))
    return torch.stack(found)


def published_add(w: Tensor, seed: int) -> Tensor:
    """One perturbation of the published code."""
    torch.manual_seed(seed)
    return w + EPSILON * torch.normal(mean=0, std=1, size=w.size(), dtype=w.dtype)


def keep_memory() -> None:
    """Let malloc neither map large blocks one by one nor give memory back."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if not (mallopt and mallopt(-4, 0) and mallopt(-1, 2**31 - 1)):  # M_MMAP_MAX, M_TRIM_THRESHOLD
        typer.echo("no mallopt here: fresh pages count")


def by(backend: str, act: Callable[[], object]) -> Callable[[], object]:
    """`act` with that backend."""

    def run() -> object:
        os.environ["FEDFT_KERNELS"] = backend
        return act()

    return run


def measured(acts: dict[tuple[str, str], Callable[[], object]], turns: int) -> dict[tuple[str, str], float]:
    """Median CPU seconds of each, taking turns; the first turn warms up."""
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in acts}
    for turn in range(turns + 1):
        for key, act in acts.items():
            began = time.process_time()
            act()
            if turn:
                seconds[key].append(time.process_time() - began)
    return {key: statistics.median(values) for key, values in seconds.items()}


def first_call(backend: str) -> tuple[float, float]:
    """(wall, CPU) seconds to import, compile or load, and try the kernels."""
    wall, cpu = time.perf_counter(), time.process_time()
    os.environ["FEDFT_KERNELS"] = backend
    hadamard_kernels.chosen(torch.zeros(1))
    return time.perf_counter() - wall, time.process_time() - cpu


def main(
    parameters: Annotated[int, typer.Option(help="Size of the tensor.")] = 10_000_000,
    count: Annotated[int, typer.Option("--directions", help="K.")] = 4096,
    turns: Annotated[int, typer.Option(help="Of which the median is taken.")] = 7,
    seeds: Annotated[int, typer.Option(help="Seeds that the published way runs in each turn.")] = 1,
    json_: Annotated[Path | None, typer.Option("--json", help="Write the figures there too.")] = None,
) -> None:
    """Measure, and print a table."""
    keep_memory()
    torch.set_num_threads(1)
    backends = ["torch"]
    try:
        wall, cpu = first_call("numba")
        backends.append("numba")
        typer.echo(f"numba's first call: {wall:.2f} s ({cpu:.2f} core-s)")
    except ImportError:
        typer.echo("numba is not installed")
    generator = torch.Generator().manual_seed(0)
    w, x = (0.02 * torch.randn(parameters, generator=generator) for _ in range(2))
    coefficients, z, out = torch.randn(count, generator=generator), Hadamard(7, count), torch.empty_like(w)
    scale = count / seeds
    acts: dict[tuple[str, str], Callable[[], object]] = {
        ("pass", "torch"): lambda: w.add_(1.0),
        ("axpy_", "published"): lambda: published_axpy(w, range(seeds)),
        ("dot", "published"): lambda: published_dot(x, range(seeds)),
        ("add_", "published"): lambda: published_add(w, 1),
        ("add_into", "published"): lambda: published_add(w, 1),
        ("add_into", "clone, add_"): by("torch", lambda: z.add_(w.clone(), NAME, 5, EPSILON)),
    }
    for b in backends:
        acts["axpy_", b] = by(b, lambda: z.axpy_(w, NAME, coefficients))
        acts["dot", b] = by(b, lambda: z.dot(x, NAME))
        acts["add_", b] = by(b, lambda: z.add_(w, NAME, 5, EPSILON))
        acts["add_into", b] = by(b, lambda: z.add_into(out, w, NAME, 5, EPSILON))
    found = measured(acts, turns)
    one_pass = found["pass", "torch"]
    rows: list[dict[str, Any]] = []
    for (what, way), seconds in sorted(found.items(), key=lambda item: item[0][0]):
        if way == "published" and what in ("axpy_", "dot"):
            seconds *= scale
        published = found.get((what, "published"), math.nan) * (scale if what in ("axpy_", "dot") else 1)
        passes = seconds / one_pass
        rows.append({"what": what, "way": way, "s": seconds, "ratio": published / seconds, "passes": passes})
    typer.echo(
        f"{parameters:,} parameters, K = {count}, one thread, CPU time; the published way ran {seeds} seeds a turn"
    )
    typer.echo(f"{'':10}{'':12}{'ms':>14}{'times faster':>15}{'passes':>12}")
    for row in rows:
        line = f"{row['what']:10}{row['way']:12}{1e3 * row['s']:14,.2f}{row['ratio']:15,.0f}{row['passes']:12,.2f}"
        typer.echo(line.replace("nan", "  -"))
    if json_:
        json_.write_text(json.dumps({"parameters": parameters, "directions": count, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
