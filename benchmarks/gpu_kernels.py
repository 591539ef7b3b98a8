"""Parts of `gpu.py` that are kernels: their bits against the CPU's, their bandwidth, a replay of all seeds at 7B."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from fedft.benchmarks.gpu_machine import Facts, LeftOut, Machine
from fedft.randomness import hadamard_kernels, moved_copies
from fedft.randomness.hadamard import Hadamard
from fedft.randomness.moved_copies import Offset

NAME, K = "w", 4096


@contextmanager
def compiled(machine: Machine) -> Iterator[str]:
    """Inside, the device's compiled kernels work from the first call on; raises LeftOut where there are none."""
    from importlib.util import find_spec

    library = "triton" if machine.device.type == "cuda" else "numba"
    if find_spec(library) is None:
        raise LeftOut(f"needs {library}")
    before = os.environ.get("FEDFT_KERNELS")
    os.environ["FEDFT_KERNELS"] = library
    try:
        yield library
    finally:
        os.environ.pop("FEDFT_KERNELS")
        if before is not None:
            os.environ["FEDFT_KERNELS"] = before


def everything(x: Tensor) -> list[Tensor]:
    """What all four kernels make of a float32 vector: a replay, a step, inner products, a copy in bfloat16."""
    z, coefficients = Hadamard(7, K), torch.linspace(-1, 1, K, dtype=torch.float64)
    summed = x.clone()
    z.axpy_(summed, NAME, coefficients)
    z.add_(summed, NAME, 5, 1e-3)
    half = x.bfloat16()
    moved_copies.fill(copy := torch.empty_like(half), half, NAME, Offset(z, coefficients, 0.99), (z, 9, 1e-3))
    return [summed, z.dot(x, NAME), copy.view(torch.int16)]


def digest(found: list[Tensor]) -> str:
    """Of the bytes of tensors."""
    return hashlib.sha256(b"".join(t.cpu().numpy().tobytes() for t in found)).hexdigest()[:16]


def kernels(machine: Machine, seconds: float) -> Facts:
    """Bits equal to torch's on the CPU, and GB/s of what must be touched at least once."""
    x = torch.randn((1 << 18) + 77, generator=torch.Generator().manual_seed(0))
    os.environ["FEDFT_KERNELS"], before = "torch", os.environ.get("FEDFT_KERNELS")
    try:
        wanted = digest(everything(x))
    finally:
        os.environ.pop("FEDFT_KERNELS")
        if before is not None:
            os.environ["FEDFT_KERNELS"] = before
    with compiled(machine) as library:
        began = time.perf_counter()
        module = hadamard_kernels._loaded(library, machine.device.type)
        right = hadamard_kernels.copies(module, machine.device.type) == hadamard_kernels.KNOWN_COPIES
        facts: Facts = {"first call s": time.perf_counter() - began}
        right &= digest(everything(x.to(machine.device))) == wanted
        n = 1 << 20 if machine.tiny else 1 << 30
        w, z, c = torch.zeros(n, device=machine.device), Hadamard(7, K), torch.ones(K)
        half, at = w.bfloat16(), Offset(z, c.double())
        out = torch.empty_like(half)
        acts: dict[str, tuple[int, Callable[[], object]]] = {
            "replay GB/s": (8, lambda: z.axpy_(w, NAME, c)),
            "step GB/s": (8, lambda: z.add_(w, NAME, 5, 1e-9)),
            "products GB/s": (4, lambda: z.dot(w, NAME)),
            "half copy GB/s": (4, lambda: moved_copies.fill(out, half, NAME, at, (z, 5, 1e-3))),
            "torch add GB/s": (8, lambda: w.add_(1.0)),
        }
        for name, (size, run) in acts.items():
            facts[name] = size * n / machine.seconds(run, seconds / len(acts)) / 1e9
    return {"ok": right, "bits": wanted, **facts}


def replay(machine: Machine, seconds: float) -> Facts:
    """All 4096 seeds added to seven billion float32 weights in tensors of a 7B model, and seen once in bfloat16."""
    size, number = (1 << 16, 3) if machine.tiny else (4096 * 11008, 155)
    with compiled(machine):
        weights = [torch.zeros(size, device=machine.device) for _ in range(number)]
        z, c = Hadamard(7, K), 1e-6 * torch.ones(K)

        def all_of(run: Callable[[Tensor, str], object]) -> None:
            for i, w in enumerate(weights):
                run(w, f"layers.{i}.weight")

        whole = machine.seconds(partial(all_of, lambda w, n: z.axpy_(w, n, c)), seconds / 2)
        halves, at = torch.zeros(size, dtype=torch.bfloat16, device=machine.device), Offset(z, c.double())
        seen = torch.empty_like(halves)
        copies = machine.seconds(
            partial(all_of, lambda _, n: moved_copies.fill(seen, halves, n, at, (z, 1, 1e-3))), seconds / 2
        )
    return {"ok": True, "parameters": size * number, "replay ms": 1e3 * whole, "half copies ms": 1e3 * copies}
