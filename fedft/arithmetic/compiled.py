"""Which compiled library does arithmetic in the place of torch, if any: numba on the CPU, Triton on CUDA.

They are used where they are installed (numba: `pip install 'fedft[kernels]'`), and only when the process has spent
about as long in torch as loading and compiling them takes, so that small runs never wait for a compiler.

FEDFT_KERNELS=torch, numba or triton in the environment chooses one from the first call on.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

from numpy.typing import NDArray
from torch import Tensor

from fedft import check

Array = NDArray[Any]
LIBRARIES = {"cpu": "numba", "cuda": "triton"}  # by kind of device
NAMES = ("torch", *LIBRARIES.values())
PAYS = 1 << 31  # elements of an addition that torch does first: a second and more on one core
SOONER = {"cpu": 1, "cuda": 16}  # times: torch's launches and integer transforms on a GPU waste more of it, see below
CALL = 1 << 17  # elements in whose time torch only begins and ends a call

_done: Counter[str] = Counter()  # elements that torch did, by kind of device


def forced() -> str:
    """The library that FEDFT_KERNELS names: "torch", "numba" or "triton"; "" where the variable is empty or not set.

    Raises ValueError for any other name.
    """
    wanted = os.environ.get("FEDFT_KERNELS", "")
    if wanted and wanted not in NAMES:
        check.one_of(NAMES, FEDFT_KERNELS=wanted)
    return wanted


def library(x: Tensor, cost: int = 1) -> str | None:
    """The library whose compiled code pays for work on a tensor like `x`, "numba" or "triton"; None means torch.

    Every call that is answered with None counts as work that torch does now; once torch has done PAYS additions on a
    CPU in this process, that device's library is answered instead. On a GPU a 16th of them is enough: one pass over a
    billion weights is beyond it, tests and tiny models are not; torch needs some 40 launches there for every 2^18
    weights, and Triton keeps what it compiled on the disk. FEDFT_KERNELS decides where it is set.

    Args:
        x: the tensor to be worked on, of any dtype; only its device and its number of elements matter.
        cost: additions that take as long as the work on one element.
    """
    if wanted := forced():
        return None if wanted == "torch" or not x.numel() else wanted
    kind = x.device.type
    if kind not in LIBRARIES or not x.numel():
        return None
    if _done[kind] < PAYS:
        _done[kind] += SOONER[kind] * cost * (x.numel() + CALL)
        return None
    return LIBRARIES[kind]


def compiled(function: Callable[..., Any], to: Callable[..., Any] | None = None) -> Any:
    """A version of `function` that numba compiles at its first call; needs numba installed.

    The machine code is kept on disk for other processes where numba has a folder to write to. Compiled without
    fastmath, so that every result has the bits of IEEE arithmetic.

    Args:
        function: plain Python over numbers and NumPy arrays.
        to: the decorator of numba to compile with, such as `numba.cfunc` with a signature; None is `numba.njit`
            without the interpreter's lock.
    """
    import numba

    to = to or partial(numba.njit, nogil=True)
    try:
        return to(cache=True, error_model="numpy")(function)
    except RuntimeError:  # no such place
        return to(error_model="numpy")(function)
