"""Local optimisers by name: factories (parameters, learning rate, the `[local]` table) -> a fresh torch optimiser.

A factory with an attribute `elementwise = True` promises that its optimiser works on every number by itself and leaves
a zero with zero gradient at zero: clients may share passes with it (`batched_clients`).
"""

from collections.abc import Iterable

import torch
from torch import nn

from fedft import registry
from fedft.config import Local


def adamw(parameters: Iterable[nn.Parameter], lr: float, local: Local) -> torch.optim.Optimizer:
    """AdamW with the run's weight decay and torch's other defaults.

    Loshchilov and Hutter, "Decoupled Weight Decay Regularization", ICLR 2019, arXiv:1711.05101.
    """
    return torch.optim.AdamW(parameters, lr=lr, weight_decay=local.weight_decay)


def sgd(parameters: Iterable[nn.Parameter], lr: float, local: Local) -> torch.optim.Optimizer:
    """Stochastic gradient descent with the run's momentum and weight decay."""
    return torch.optim.SGD(parameters, lr=lr, momentum=local.momentum, weight_decay=local.weight_decay)


adamw.elementwise = sgd.elementwise = True  # type: ignore[attr-defined]


def optimizer_of(trained: list[nn.Parameter], lr: float, local: Local) -> torch.optim.Optimizer:
    """A fresh optimiser of these parameters, as the run's `[local]` table names it; `lr` is its learning rate.

    Raises ConfigError for a name that does not exist.
    """
    found: torch.optim.Optimizer = registry.optimizers.load(local.optimizer)(trained, lr, local)
    return found


def elementwise(local: Local) -> bool:
    """Whether the optimiser that `[local]` names works on every number by itself."""
    return bool(getattr(registry.optimizers.load(local.optimizer), "elementwise", False))
