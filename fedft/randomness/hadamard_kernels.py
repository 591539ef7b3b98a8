"""Compiled kernels of `hadamard v1`, where they pay (`fedft.arithmetic.compiled`): numba's on the CPU, Triton's on
CUDA.

They give torch's results bit for bit, which is tried once before they are trusted; if that fails, torch goes on. A
library that the environment asks for (FEDFT_KERNELS) is not excused: its errors come through.
"""

from __future__ import annotations

import hashlib
import importlib
import logging
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from fedft.arithmetic import compiled

log = logging.getLogger(__name__)

KNOWN_ANSWER = "0341f98d69061d56"  # of `answer`, made by torch
KNOWN_COPIES = "59145a5deab6c847"  # of `copies`, likewise


def padded(integers: Tensor, device: torch.device) -> Tensor:
    """Integers in any dtype as kernels take them: int32 [4096] on a device, zeros behind the last."""
    return torch.nn.functional.pad(integers, (0, 4096 - len(integers))).to(device, torch.int32)


def precisions(*tensors: Tensor) -> bool:
    """Whether kernels read and write tensors like these: contiguous float32, bfloat16 or float16."""
    return all(x.dtype in (torch.float32, torch.bfloat16, torch.float16) and x.is_contiguous() for x in tensors)


def chosen(x: Tensor, cost: int = 1) -> ModuleType | None:
    """The module of compiled kernels to work on a tensor like `x` with; None means torch.

    `cost` is what the work on an element takes, in additions: see `compiled.library`.
    """
    if (library := compiled.library(x, cost)) is None:
        return None
    kind = "cuda" if x.is_cuda else "cpu"  # a forward pass asks for every tensor: `x.device.type` takes longer
    return (_loaded if compiled.forced() else _trusted)(library, kind)


@cache
def _trusted(library: str, kind: str) -> ModuleType | None:
    """The module of kernels written with `library`, or None where it is not installed or answers wrongly."""
    try:
        return _loaded(library, kind)
    except ImportError:
        return None
    except Exception as problem:  # a compiler may fail in any way, and torch does the same
        log.warning("kernels compiled by %s do not work here, torch does their work: %s", library, problem)
        return None


@cache
def _loaded(library: str, kind: str) -> ModuleType:
    """The module of kernels written with `library`, tried on a kind of device; RuntimeError for a wrong answer."""
    kernels = importlib.import_module(f"fedft.randomness.hadamard_{library}")
    if (found := answer(kernels, kind)) != KNOWN_ANSWER:
        raise RuntimeError(f"they answer {found} where {KNOWN_ANSWER} is right")
    return kernels


def answer(kernels: ModuleType, kind: str) -> str:
    """What a module of kernels computes on a kind of device, as 16 hexadecimal digits: KNOWN_ANSWER if it is right.

    All three kernels work on one window whose ends lie within blocks.
    """
    x = torch.zeros(9000, device=kind)
    integers = (torch.arange(4096, device=kind) * 7919 % 1001 - 500).to(torch.int32)
    kernels.axpy_(x, 4000, 2**64 - 7, 2**32 - 1, integers, 2.0**-9)
    kernels.add_into(x, x, 4000, 2**64 - 7, 2**32 - 1, 77, 0.3)
    total = kernels.dot(x, 4000, 2**64 - 7, 2**32 - 1, 2.0**12)
    return hashlib.blake2b(total.cpu().numpy().tobytes(), digest_size=8).hexdigest()


def copying(x: Tensor, cost: int = 1) -> ModuleType | None:
    """`chosen`, for its `copy_moved`: compiled and tried by itself, since few runs need it and it takes seconds."""
    kernels = chosen(x, cost)
    if kernels is None or not (_copies_right if compiled.forced() else _copies_trusted)(kernels, x.device.type):
        return None
    return kernels


@cache
def _copies_trusted(kernels: ModuleType, kind: str) -> bool:
    """Whether copies by these kernels are right; said where not."""
    try:
        return _copies_right(kernels, kind)
    except Exception as problem:  # as in `_trusted`
        log.warning("compiled kernels of copies do not work here, torch does their work: %s", problem)
        return False


@cache
def _copies_right(kernels: ModuleType, kind: str) -> bool:
    """True; RuntimeError for a wrong answer."""
    if (found := copies(kernels, kind)) != KNOWN_COPIES:
        raise RuntimeError(f"they answer {found} where {KNOWN_COPIES} is right")
    return True


def copies(kernels: ModuleType, kind: str) -> str:
    """What `copy_moved` of a module of kernels makes on a kind of device, as 16 hexadecimal digits: KNOWN_COPIES.

    In either half precision, of directions that are the offset's and of others.
    """
    integers = (torch.arange(4096, device=kind) * 7919 % 1001 - 500).to(torch.int32)
    old, made = (torch.arange(9000, device=kind) % 1009 - 500) / 64, []
    for dtype, step in ((torch.bfloat16, (2**64 - 7, 77, 0.3)), (torch.float16, (5, 78, 0.4))):
        new = torch.empty_like(old, dtype=dtype)
        kernels.copy_moved(new, old.to(dtype), 2**32 - 1, 0.75, (2**64 - 7, integers, 2.0**-9), step)
        made.append(new.view(torch.int16).cpu().numpy().tobytes())
    return hashlib.blake2b(b"".join(made), digest_size=8).hexdigest()
