"""Local optimisers by name: factories (parameters, learning rate, the `[local]` table) -> a fresh torch optimiser.

One whose `elementwise` is true works on every number by itself, and zeros stay zeros: clients may share passes with it.
"""

from collections.abc import Iterable

import torch
from torch import nn

from fedft import registry
from fedft.config import Local


def adamw(parameters: Iterable[nn.Parameter], lr: float, local: Local) -> torch.optim.Optimizer:
    """AdamW with the run's weight decay (Loshchilov and Hutter, ICLR 2019, arXiv:1711.05101)."""
    return torch.optim.AdamW(parameters, lr=lr, weight_decay=local.weight_decay)


def sgd(parameters: Iterable[nn.Parameter], lr: float, local: Local) -> torch.optim.Optimizer:
    """Stochastic gradient descent with the run's momentum and weight decay."""
    return torch.optim.SGD(parameters, lr=lr, momentum=local.momentum, weight_decay=local.weight_decay)


adamw.elementwise = sgd.elementwise = True  # type: ignore[attr-defined]


def optimizer_of(trained: list[nn.Parameter], lr: float, local: Local) -> torch.optim.Optimizer:
    """The run's optimiser (the `[local]` table), fresh. Raises ConfigError for a name that does not exist."""
    found: torch.optim.Optimizer = registry.optimizers.load(local.optimizer)(trained, lr, local)
    return found


def elementwise(local: Local) -> bool:
    """Whether the run's optimiser works on every number by itself."""
    return bool(getattr(registry.optimizers.load(local.optimizer), "elementwise", False))
