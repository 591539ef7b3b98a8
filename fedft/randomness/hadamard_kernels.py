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


def chosen(x: Tensor, cost: int = 1) -> ModuleType | None:
    """The module of compiled kernels to work on a tensor like `x` with; None means torch.

    `cost` is what the work on an element takes, in additions: see `compiled.library`.
    """
    if (library := compiled.library(x, cost)) is None:
        return None
    return (_loaded if compiled.forced() else _trusted)(library, x.device.type)


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
