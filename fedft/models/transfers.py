"""Many tensors between a device and the CPU in one copy: they lie one behind the other in a buffer, and are its views.

    to the CPU      tensors -> a buffer on their device -> one copy -> views of a buffer on the CPU
    to the device   values -> a buffer on the CPU -> one copy -> views of a buffer there -> the tensors

On an accelerator each copy costs a wait, or a launch, whatever its size; from a CUDA device it goes through pinned
memory. Large tensors go alone, in memory of their own: nothing is gained by a buffer, and who lets go of one of them
gets its memory back. A model on the CPU has no buffers, and one call that copies all.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

ALONE = 2**23
"""Bytes from which a tensor is copied by itself: what a copy costs beside its bytes is little then."""
MOST = 2**28
"""Bytes of a buffer; what is more goes in several."""
STRIDE = 16
"""Entries to whose multiples views begin: 64 bytes, as torch allocates. Some kernels round differently elsewhere."""


def to_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of named tensors: float32 on the CPU, contiguous, in their order; no memory is shared with the tensors.

    Those that come from an accelerator and are small share a buffer with each other.
    """
    if all(_is_cpu(x.device) for x in tensors.values()):
        own = [torch.empty(x.shape, dtype=torch.float32) for x in tensors.values()]
        if own:
            torch._foreach_copy_(own, list(tensors.values()))
        return dict(zip(tensors, own, strict=True))
    found: dict[str, Tensor] = {}
    for names in _groups(tensors):
        xs = [tensors[n] for n in names]
        device = xs[0].device
        if len(xs) == 1:
            found[names[0]] = _empty(xs[0].numel(), device).view(xs[0].shape).copy_(xs[0])
            continue
        total, places = _laid_out(xs)
        buffer = torch.empty(total, dtype=torch.float32, device=device)
        torch._foreach_copy_(_views(buffer, xs, places), xs)
        found |= zip(names, _views(_empty(total, device).copy_(buffer), xs, places), strict=True)
    return {n: found[n] for n in tensors}


def to_device(values: Sequence[Tensor], targets: Sequence[Tensor]) -> None:
    """Set each target to the value of its place, in the target's dtype. Values are on the CPU, and not modified.

    Raises RuntimeError for a shape that cannot be the target's.
    """
    if not targets:
        return
    here, device = list(values), targets[0].device
    if not _is_cpu(device):
        for at in _groups({str(k): x for k, x in enumerate(here)}):
            some = [int(k) for k in at]
            xs = [here[k] for k in some]
            total, places = _laid_out(xs)
            buffer = _empty(total, device)
            torch._foreach_copy_(_views(buffer, xs, places), xs)
            there = _views(buffer.to(device, non_blocking=True), xs, places)
            for k, x in zip(some, there, strict=True):
                here[k] = x
    torch._foreach_copy_(list(targets), here)


def sent(x: Tensor, device: torch.device) -> Tensor:
    """The tensor on this device; to a CUDA device it goes through pinned memory, and nobody waits for its arrival."""
    if device.type == "cuda" and x.device.type == "cpu":
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)


def _groups(tensors: Mapping[str, Tensor]) -> list[list[str]]:
    """The names of tensors that travel in one copy: of one device, at most `MOST` bytes, or one by itself."""
    found: list[list[str]] = []
    open_groups: dict[torch.device, tuple[list[str], int]] = {}
    for n, x in tensors.items():
        size = 4 * x.numel()
        group, bytes_in = open_groups.get(x.device, ([], MOST))
        if size >= ALONE:
            found.append([n])
            continue
        if bytes_in + size > MOST:
            group, bytes_in = [], 0
            found.append(group)
        group.append(n)
        open_groups[x.device] = group, bytes_in + size
    return found


def _laid_out(tensors: Sequence[Tensor]) -> tuple[int, list[int]]:
    """(entries of the buffer, where each tensor begins in it)."""
    places, total = [], 0
    for x in tensors:
        places.append(total)
        total += -(-x.numel() // STRIDE) * STRIDE
    return total, places


def _views(buffer: Tensor, tensors: Sequence[Tensor], places: Sequence[int]) -> list[Tensor]:
    """The pieces of a buffer in the shapes of the tensors."""
    return [buffer[at : at + x.numel()].view(x.shape) for x, at in zip(tensors, places, strict=True)]


def _is_cpu(device: torch.device) -> bool:
    """Whether tensors of this device are at home on the CPU, and need no second buffer."""
    return device.type == "cpu"


def _empty(size: int, device: torch.device) -> Tensor:
    """float32 [size] on the CPU, for a copy from or to this device."""
    return torch.empty(size, dtype=torch.float32, pin_memory=device.type == "cuda")
