"""Everything that needs a GPU, in at most nine minutes.

    python -m fedft.benchmarks.gpu [--tiny] [--out FILE] [PART]...

Each part has a share of the time and says what it found, and whether that is what was wanted; a part that needs what
is not there is left out by name. Needs torch, transformers and peft, on a GPU Triton. `--tiny` runs all of it on the
CPU with a model of two layers: whether it works, not how fast.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fedft.benchmarks.gpu_machine import Facts, LeftOut, Machine

MINUTES = 9.0


@dataclass(frozen=True)
class Part:
    """Something to find out."""

    name: str
    share: float
    """Of the time; they sum to 1."""
    run: Callable[[Machine, float], Facts]
    """Given the machine and so many seconds; "ok" among its facts says whether it found what was wanted."""


def parts() -> tuple[Part, ...]:
    """All of them, in their order."""
    from fedft.benchmarks import gpu_kernels, gpu_models, gpu_rounds

    return (
        Part("kernels", 0.10, gpu_kernels.kernels),
        Part("replay 7B", 0.08, gpu_kernels.replay),
        Part("step 1B", 0.10, partial(gpu_models.step, "1B", None)),
        Part("step 8B", 0.13, partial(gpu_models.step, "8B", None)),
        Part("step 8B, 4 bits", 0.15, partial(gpu_models.step, "8B", 4)),
        Part("memory 1B", 0.06, gpu_models.memory),
        Part("zeroth order 8B", 0.12, gpu_models.zeroth_order),
        Part("FLoRA merge 8B", 0.08, gpu_models.merge),
        Part("round of 8 clients 1B", 0.10, gpu_rounds.whole_round),
        Part("fleet of two workers", 0.08, gpu_rounds.fleet),
    )


def measured(part: Part, machine: Machine, left: float, total: float) -> Facts:
    """What a part found, or why it is left out or failed: never an exception."""
    budget = part.share * total
    if left < budget / 2:
        return {"left out": f"no time: {left:.0f} s left of {total:.0f}"}
    began = time.perf_counter()
    try:
        # a third measures, two thirds make models and compile; tiny is not about speed, and measures once
        found = part.run(machine, 0.0 if machine.tiny else budget / 3)
    except LeftOut as e:
        return {"left out": str(e)}
    except ImportError as e:
        return {"left out": f"needs {e.name or e}"}
    except Exception as e:  # one part must not cost the others their turn
        found = {"ok": False, "failed": f"{type(e).__name__}: {str(e).splitlines()[0] if str(e) else ''}"}
    machine.clear()
    return {**found, "seconds": round(time.perf_counter() - began, 2)}


def table(found: dict[str, Facts]) -> str:
    """A line for each part, readable without colours."""

    def said(value: Any) -> str:
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    lines = [f"{name:<24}{', '.join(f'{k} {said(v)}' for k, v in facts.items())}" for name, facts in found.items()]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """0, or 1 where a part failed or did not find what was wanted."""
    reader = argparse.ArgumentParser(prog="fedft.benchmarks.gpu", description=(__doc__ or "").split("\n\n")[0])
    reader.add_argument("names", nargs="*", metavar="PART")
    reader.add_argument("--tiny", action="store_true", help="on the CPU, two layers: whether it runs")
    reader.add_argument("--out", type=Path, default=Path("fedft-runs/gpu.json"))
    given = reader.parse_args(arguments)
    if not given.tiny and not torch.cuda.is_available():
        reader.error("there is no CUDA device; --tiny runs on the CPU")
    machine = Machine(torch.device("cpu" if given.tiny else "cuda"), given.tiny)
    every = parts()
    if unknown := set(given.names) - {p.name for p in every}:
        reader.error(f"no part {sorted(unknown)}; there are {[p.name for p in every]}")
    total = 60 * MINUTES
    until, found = time.perf_counter() + total, dict[str, Facts]()
    named = torch.cuda.get_device_name() if machine.device.type == "cuda" else "cpu"
    given.out.parent.mkdir(parents=True, exist_ok=True)
    for part in [p for p in every if not given.names or p.name in given.names]:
        found[part.name] = measured(part, machine, until - time.perf_counter(), total)
        sys.stdout.write(table({part.name: found[part.name]}) + "\n")
        sys.stdout.flush()
        about = {"device": named, "torch": torch.__version__, "tiny": given.tiny, "parts": found}
        given.out.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    return int(any(facts.get("ok") is False for facts in found.values()))


if __name__ == "__main__":
    sys.exit(main())
