"""The most memory that a piece of work takes, beside what its process has; each in a process of its own. Linux only.

    found = peak_memory.in_process("fedft.benchmarks.memory", "fedit")      starts one; its JSON

    peak_memory.begin()                                                     in that process
    small()                                                                 libraries and compiled kernels come in
    result, bytes = peak_memory.beside(work)

malloc maps each large block by itself there, as it does those of real models.
"""

import gc
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from ctypes import CDLL
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers.utils import logging

T = TypeVar("T")


def in_process(module: str, *words: str) -> Any:
    """What `python -m module words...` prints, JSON. Raises CalledProcessError where it fails."""
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, "-m", module, *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return json.loads(done.stdout)


def begin() -> None:
    """Make this process one that measures itself: one thread, and nothing on the terminal but its result."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable_progress_bar()


def beside(work: Callable[[], T]) -> tuple[T, int]:
    """(what the work gives, by how many bytes the resident memory of this process grows at its peak)."""
    gc.collect()
    CDLL(None).malloc_trim(0)
    before = _kilobytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins here
    return work(), 1024 * (_kilobytes("VmHWM") - before)


def _kilobytes(what: str) -> int:
    """Kilobytes of this process, as Linux says: "VmRSS" now, "VmHWM" at the peak since `clear_refs` was told 5."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what + ":"))
