"""What torch leaves to a device: how exactly products of float32 are made, and in which order numbers are summed.

a CPU                        one order, in float32: the same run gives the same bytes
a CUDA device                products of float32 in TF32 (10 bits of the fraction, many times as fast); some sums in
                             whichever order threads end, so two runs may differ in last bits
`[local] deterministic`      one order on every device; the same bytes on devices of one kind
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from fedft.config import Local
from fedft.errors import ConfigError, first_line

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
"""Variable that cuBLAS reads once in a process; with the value below its sums have one order."""


def prepare(device: str, local: Local) -> None:
    """Set what holds for a whole process, before a model is put on `device`; on a CPU nothing is."""
    if device.partition(":")[0] == "cuda":
        torch.set_float32_matmul_precision("high")
        if local.deterministic:
            os.environ.setdefault(WORKSPACE, ":4096:8")


@contextmanager
def in_one_order(local: Local) -> Iterator[None]:
    """Inside, every sum has one order if `[local] deterministic` says so; what torch was set to before is so again.

    Raises ConfigError for an operation that has no such form on its device.
    """
    if not local.deterministic:
        yield
        return
    settings: Any = torch.utils.deterministic
    before, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    fills, settings.fill_uninitialized_memory = settings.fill_uninitialized_memory, False
    torch.use_deterministic_algorithms(True)
    try:
        yield
    except RuntimeError as e:
        if "deterministic" not in str(e):
            raise
        why = first_line(e).split(". ")[0]
        raise ConfigError(f"[local] deterministic: {why}; another [model] attention may have one, as 'eager'") from e
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warns)
        settings.fill_uninitialized_memory = fills


def rounding(weight: Tensor) -> float:
    """Largest relative difference of two losses of the same rows whose sums were rounded in another order.

    `weight`: one of the model's; its dtype and device say how products are made.
    """
    tf32 = weight.is_cuda and weight.dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest"
    return 1e-4 if weight.dtype in (torch.float32, torch.float64) and not tf32 else 2e-2


def depends(device: str, local: Local) -> list[str]:
    """What the bytes of a run depend on beside its run file and rows, each in a few words; nothing on a plain CPU."""
    found = []
    if device.partition(":")[0] != "cpu":
        order = "one order of sums" if local.deterministic else "any order of sums"
        found.append(f"{device} ({'TF32, ' if device.startswith('cuda') else ''}{order})")
    if local.compile:
        found.append("compiled layers")
    return found
