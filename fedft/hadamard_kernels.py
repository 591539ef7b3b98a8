"""Which compiled kernels do the arithmetic of `hadamard v1`, if any: numba's for the CPU, Triton's for CUDA.

They are used where their library is installed (numba: `pip install 'fedft[kernels]'`), and only when the process has
spent about as long in torch as loading and compiling them takes, so that small runs never wait for a compiler. They
give torch's results bit for bit, which is tried once before they are trusted; if that fails, torch goes on.

FEDFT_KERNELS=torch, numba or triton in the environment chooses one from the first call on, and lets errors through.
"""

from __future__ import annotations

import hashlib
import importlib
import logging
import os
from collections import Counter
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from fedft import check

log = logging.getLogger(__name__)

LIBRARIES = {"cpu": "numba", "cuda": "triton"}  # by kind of device
_NAMES = ("torch", *LIBRARIES.values())
PAYS = 1 << 31  # elements of `add_` that torch does first: a second and more on one core
CALL = 1 << 17  # elements in whose time torch only begins and ends a call
KNOWN_ANSWER = "0341f98d69061d56"  # of `answer`, made by torch

_done: Counter[str] = Counter()  # elements that torch did, by kind of device


def chosen(x: Tensor, cost: int = 1) -> ModuleType | None:
    """The kernels to use on `x`; None means torch, and counts `cost` for each element."""
    kind, wanted = x.device.type, os.environ.get("FEDFT_KERNELS", "")
    if wanted:
        if wanted not in _NAMES:
            check.one_of(_NAMES, FEDFT_KERNELS=wanted)
        return None if wanted == "torch" or not x.numel() else _loaded(wanted, kind)
    if kind not in LIBRARIES or not x.numel():
        return None
    if _done[kind] < PAYS:
        _done[kind] += cost * (x.numel() + CALL)
        return None
    return _trusted(LIBRARIES[kind], kind)


@cache
def _trusted(library: str, kind: str) -> ModuleType | None:
    """The kernels written with `library`, or None if they cannot be had."""
    try:
        return _loaded(library, kind)
    except ImportError:
        return None
    except Exception as problem:  # a compiler may fail in any way, and torch does the same
        log.warning("kernels compiled by %s do not work here, torch does their work: %s", library, problem)
        return None


@cache
def _loaded(library: str, kind: str) -> ModuleType:
    """The kernels written with `library`, tried on that kind of device."""
    kernels = importlib.import_module(f"fedft.hadamard_{library}")
    if (found := answer(kernels, kind)) != KNOWN_ANSWER:
        raise RuntimeError(f"they answer {found} where {KNOWN_ANSWER} is right")
    return kernels


def answer(kernels: ModuleType, kind: str) -> str:
    """Digest of all three kernels at work on a window with ragged ends."""
    x = torch.zeros(9000, device=kind)
    integers = (torch.arange(4096, device=kind) * 7919 % 1001 - 500).to(torch.int32)
    kernels.axpy_(x, 4000, 2**64 - 7, 2**32 - 1, integers, 2.0**-9)
    kernels.add_into(x, x, 4000, 2**64 - 7, 2**32 - 1, 77, 0.3)
    total = kernels.dot(x, 4000, 2**64 - 7, 2**32 - 1, 2.0**12)
    return hashlib.blake2b(total.cpu().numpy().tobytes(), digest_size=8).hexdigest()
