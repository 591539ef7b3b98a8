"""Layers of a model compiled by torch: fewer, fused kernels for the same arithmetic, in another order of roundings.

All layers of one kind share one program, made in the first step and again for another rank of an adapter; lengths of
rows are free in it. What is outside of the layers (embeddings, output, loss) runs as ever.
"""

import os
import shutil
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from torch import nn

from fedft.errors import ConfigError

PROGRAMS = 4  # that a rank needs at most: steps and evaluations, of layers whose input learns and of the first one


def switch_on(model: nn.Module, source: str, ranks: int = 1) -> None:
    """Have a transformers model run its layers compiled from their next pass on.

    Args:
        model: on its device; may get adapters later.
        source: what the message calls it.
        ranks: of adapters that are foreseen. Each has programs of its own, and torch gives up compiling behind a
            number of them, for the whole process: that is raised where more are foreseen.
    Raises:
        ConfigError: there is nothing that compiles for its device, or the model does not say which its layers are.
    """
    check_compiler(next(model.parameters()).device.type)
    known: Any = model
    kinds = set(getattr(known, "_no_split_modules", None) or ())
    layers = [m for m in model.modules() if type(m).__name__ in kinds]
    if not layers:
        raise ConfigError(
            f"[local] compile: {source}, a {type(model).__name__}, does not say which its layers are; leave it out"
        )
    limits: Any = import_module("torch._dynamo.config")  # late: torch's compiler is imported for seconds
    limits.recompile_limit = max(limits.recompile_limit, PROGRAMS * ranks)
    for layer in layers:
        layer.compile(dynamic=True)


def check_compiler(device: str) -> None:
    """Raise ConfigError where torch cannot compile for this type of device: on a CPU it writes C++, on CUDA Triton."""
    if device == "cpu":
        wanted = os.environ.get("CXX") or "g++"
        if not (shutil.which(wanted) or shutil.which("clang++")):
            raise ConfigError(
                f"[local] compile: no C++ compiler {wanted!r} on this machine, which a CPU needs; install one, name it "
                "in the environment as CXX, or leave compile out"
            )
    elif find_spec("triton") is None:
        raise ConfigError(f"[local] compile: {device} needs triton, which is not installed; leave compile out")
