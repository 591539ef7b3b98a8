"""Memory that is free on a device, and what a training pass of a model is measured to keep until its gradients."""

from pathlib import Path

import torch
from torch import Tensor

from fedft.contract import Batch
from fedft.models.handle import ModelHandle

CGROUP = Path("/sys/fs/cgroup")


def free_bytes(device: torch.device) -> int | None:
    """Bytes that this process may still take on a device: of a CPU those of the machine or its container, whichever
    are fewer. None where nobody says.
    """
    return min(limits(device).values(), default=None)


def limits(device: torch.device) -> dict[str, int]:
    """Bytes that this process may still take on a device, by whose limit it is; nothing where nobody says."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return {f"free on {device}": int(torch.cuda.mem_get_info(device)[0]) + cached}
    if device.type != "cpu":
        return {}
    found = {"free on this machine": _of_machine(), "left in this container": _of_container()}
    return {whose: n for whose, n in found.items() if n is not None}


def _of_machine() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return None


def _of_container() -> int | None:
    """What the limit of this process's container, if it has one, leaves (version 2 of control groups)."""
    try:
        return int((CGROUP / "memory.max").read_text()) - int((CGROUP / "memory.current").read_text())
    except (OSError, ValueError):  # "max": none
        return None


def peak_bytes(device: torch.device) -> int | None:
    """The most bytes that this process has had on a device since it began, of a CPU resident; None: nobody says."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration, ValueError):
        return None


def kept_bytes(handle: ModelHandle, batch: Batch) -> int:
    """Bytes of the tensors that a training pass on this batch keeps for its gradients, weights not among them.

    The pass is made, and nothing is changed by it. What it takes for a moment beside these is not counted.
    """
    weights = {p.untyped_storage().data_ptr() for p in handle.model.parameters()}
    kept: dict[int, int] = {}

    def keep(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        loss = handle.loss(batch)
    del loss
    return sum(kept.values())
