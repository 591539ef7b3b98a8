"""fedft: federated fine-tuning of language models. `fedft.simulate(config)` runs one; `fedft --help` is the front door.

Importing this module is cheap on purpose: torch, transformers and Flower come in with the first call that needs them.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

# In a clone the rooms (server/, client/, strategies/, simulations/) stand beside this folder, in a wheel inside it.
_checkout = Path(__file__).resolve().parents[1]
if (_checkout / "pyproject.toml").is_file() and (_checkout / "strategies").is_dir():
    __path__.append(str(_checkout))

__version__ = "0.1.0"

if TYPE_CHECKING:
    from fedft import strategies as strategies
    from fedft.models.sliced_folder import load_sliced as load_sliced
    from fedft.recipe import Recipe as Recipe
    from fedft.recipe import State as State
    from fedft.reports.observers import observe as observe
    from fedft.simulations.python_run import Run as Run
    from fedft.simulations.python_run import load as load
    from fedft.simulations.run import simulate as simulate
    from fedft.update import Plan as Plan
    from fedft.update import Update as Update

_HOME = {
    "Plan": "fedft.update",
    "Recipe": "fedft.recipe",
    "Run": "fedft.simulations.python_run",
    "State": "fedft.recipe",
    "Update": "fedft.update",
    "load": "fedft.simulations.python_run",
    "load_sliced": "fedft.models.sliced_folder",
    "observe": "fedft.reports.observers",
    "simulate": "fedft.simulations.run",
    "strategies": "fedft.strategies",
}
__all__ = [
    "Plan", "Recipe", "Run", "State", "Update", "load", "load_sliced", "observe", "simulate", "strategies",
]  # fmt: skip


_SELDOM = 1000
"""Looks for garbage among young objects between two among all of them, where Python has 10."""


def starting() -> None:
    """Let Python look for garbage among all objects a hundred times less often, until `started`.

    Torch, transformers and peft come in with half a million objects, none of them garbage; to look through them again
    and again was a sixth of the CPU seconds of a start. For a process that is ours, as a command's.
    """
    gc.set_threshold(*gc.get_threshold()[:2], _SELDOM)


@contextmanager
def started() -> Iterator[None]:
    """Inside, what is there now is not looked through for garbage again, if it was `starting` until now.

    What somebody else has frozen stays as it is.
    """
    often = gc.get_threshold()
    if often[2] != _SELDOM:
        yield
        return
    gc.set_threshold(*often[:2], 10)
    if gc.get_freeze_count():
        yield
        return
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def reading_libraries() -> Iterator[None]:
    """Inside it is `starting`, in a process that may be somebody else's; behind it all is as before."""
    before = gc.get_threshold()
    starting()
    try:
        yield
    finally:
        gc.set_threshold(*before)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'fedft' has no attribute {name!r}")
    with reading_libraries():
        module = import_module(_HOME[name])
    return module if name == "strategies" else getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*__all__, "__version__"})
