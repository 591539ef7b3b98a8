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
CALL = 1 << 17  # elements in whose time torch only begins and ends a call

_done: Counter[str] = Counter()  # elements that torch did, by kind of device


def forced() -> str:
    """The library that the environment asks for; "" where it does not. Raises ValueError for one that is unknown."""
    wanted = os.environ.get("FEDFT_KERNELS", "")
    if wanted and wanted not in NAMES:
        check.one_of(NAMES, FEDFT_KERNELS=wanted)
    return wanted


def library(x: Tensor, cost: int = 1) -> str | None:
    """The library whose compiled code pays on tensors like `x` by now; None means torch.

    Args:
        x: what is worked on; its device and number of elements count.
        cost: of one element, in additions: counted where torch does it.
    """
    kind, wanted = x.device.type, forced()
    if wanted:
        return None if wanted == "torch" or not x.numel() else wanted
    if kind not in LIBRARIES or not x.numel():
        return None
    if _done[kind] < PAYS:
        _done[kind] += cost * (x.numel() + CALL)
        return None
    return LIBRARIES[kind]


def compiled(function: Callable[..., Any], to: Callable[..., Any] | None = None) -> Any:
    """`function`, compiled by numba at its first call; kept for other processes where there is a place to write.

    Without fastmath, so that the bits are those of IEEE arithmetic. `to`: numba's decorator, `njit` if left out.
    """
    import numba

    to = to or partial(numba.njit, nogil=True)
    try:
        return to(cache=True, error_model="numpy")(function)
    except RuntimeError:  # no such place
        return to(error_model="numpy")(function)
