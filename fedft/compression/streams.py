"""Symbols of given frequencies as 32-bit words and back, the `stream` of `entropy_coder.py`: by package `constriction`,
and once a process has enough to do by what numba compiles (`rans_numba.py`), with the same words and symbols.
"""

import logging
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedft.arithmetic import compiled

Frequencies = NDArray[np.int64]
log = logging.getLogger(__name__)
SYMBOL, WORD = 10, 80  # additions that take as long as a symbol that is written, and a word of symbols that is read


def put(symbols: NDArray[np.int32], frequencies: Frequencies) -> NDArray[np.uint32]:
    """The words of symbols 0 .. a - 1, of which `frequencies` [a] say how many of 2^24 places each has, 1 or more."""
    if kernels := _chosen(symbols, SYMBOL):
        words: NDArray[np.uint32] = kernels.put(symbols, frequencies)
        return words
    return _put(symbols, frequencies)


def get(words: NDArray[np.uint32], n: int, frequencies: Frequencies) -> NDArray[np.int32]:
    """The n symbols of a stream. Raises ValueError where its last word is 0, or it does not end with them."""
    if kernels := _chosen(words, WORD):
        symbols: NDArray[np.int32] = kernels.get(words, n, frequencies)
        return symbols
    return _get(words, n, frequencies)


def _put(symbols: NDArray[np.int32], frequencies: Frequencies) -> NDArray[np.uint32]:
    import constriction  # late: who sends plain numbers needs none of it

    coder = constriction.stream.stack.AnsCoder()
    coder.encode_reverse(symbols, _model(frequencies))
    words: NDArray[np.uint32] = coder.get_compressed()
    return words


def _get(words: NDArray[np.uint32], n: int, frequencies: Frequencies) -> NDArray[np.int32]:
    import constriction

    coder = constriction.stream.stack.AnsCoder(words)  # raises ValueError if the last word is 0
    out: NDArray[np.int32] = coder.decode(_model(frequencies), n)
    if not coder.is_empty():  # what is left when all symbols are out is where the encoder began: nothing
        raise ValueError("a stream does not end where its symbols do")
    return out


def _model(frequencies: Frequencies) -> Any:
    import constriction

    # float64 holds the integers, and their sum, exactly
    return constriction.stream.model.Categorical(frequencies.astype(np.float64) - 1, perfect=False)


def _chosen(numbers: NDArray[np.int32] | NDArray[np.uint32], cost: int) -> ModuleType | None:
    """The compiled streams, where they pay; see `compiled.library`."""
    if compiled.library(torch.from_numpy(numbers), cost) != "numba":
        return None
    return (_loaded if compiled.forced() else _trusted)()


@cache
def _trusted() -> ModuleType | None:
    """The compiled streams, or None where numba is not installed or they are wrong, which is said."""
    try:
        return _loaded()
    except ImportError:
        return None
    except Exception as problem:  # a compiler may fail in any way, and constriction does the same
        log.warning("streams compiled by numba do not work here, constriction does their work: %s", problem)
        return None


@cache
def _loaded() -> ModuleType:
    """The compiled streams, tried on some symbols; RuntimeError where they are not those of constriction."""
    kernels = import_module("fedft.compression.rans_numba")
    symbols = (np.arange(3000) * 7919 % 1009 % 5).astype(np.int32)
    for first in (1, 1 << 23):  # of a symbol that is rare, or more than half of all
        f = np.array([first, 1, 40000, 1 << 20, (1 << 24) - first - 40001 - (1 << 20)], np.int64)
        words = _put(symbols, f)
        if not (
            np.array_equal(kernels.put(symbols, f), words) and np.array_equal(kernels.get(words, 3000, f), symbols)
        ):
            raise RuntimeError("they write other words than constriction, or read others")
    return kernels
