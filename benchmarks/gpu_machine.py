"""Where the parts of `gpu.py` run, how time and memory are taken there, and what a part raises that cannot run."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

Facts = dict[str, Any]


class LeftOut(Exception):
    """A part that cannot run here; the message says what it lacks."""


@dataclass(frozen=True)
class Machine:
    """Where it runs, and how large."""

    device: torch.device
    tiny: bool

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, run: Callable[[], object], budget: float) -> float:
        """The shortest of several calls, after one that does not count; about `budget` seconds in all."""
        run()
        self.wait()
        found: list[float] = []
        until = time.perf_counter() + budget
        while not found or (time.perf_counter() < until and len(found) < 20):
            began = time.perf_counter()
            run()
            self.wait()
            found.append(time.perf_counter() - began)
        return min(found)

    def peak(self, run: Callable[[], object], there: Iterable[torch.Tensor]) -> int:
        """Bytes of tensors at the peak of a call, with those `there` before it; on a GPU all that are."""
        self.clear()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            run()
            self.wait()
            return torch.cuda.max_memory_allocated(self.device)
        from fedft.benchmarks.measure import Peak

        with Peak(there) as seen:
            run()
        return seen.most

    def clear(self) -> None:
        """Free what nobody holds."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
