"""fedft: federated fine-tuning of language models. `fedft.simulate(config)` runs one; `fedft --help` is the front door.

Importing this module is cheap on purpose: torch, transformers and Flower come in with the first call that needs them.
"""

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


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'fedft' has no attribute {name!r}")
    module = import_module(_HOME[name])
    return module if name == "strategies" else getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*__all__, "__version__"})
