"""Local optimisers by name: factories (parameters, learning rate, the `[local]` table) -> a fresh torch optimiser.

A factory with an attribute `elementwise = True` promises that its optimiser works on every number by itself and leaves
a zero with zero gradient at zero: clients may share passes with it (`batched_clients`).
"""

from collections.abc import Iterable

import torch
from torch import nn

from fedft import registry
from fedft.config import Local
from fedft.errors import ConfigError, in_one_line

OF_THE_TABLE = {"lr": "learning_rate", "weight_decay": "weight_decay"}
"""Options of torch's classes that no table of an optimiser may have, and the keys of `[local]` that say them."""


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

    Raises ConfigError for a name that does not exist, or options that it does not take.
    """
    name, options = registry.named(local.optimizer, "optimizer")
    if other := sorted(options.keys() & OF_THE_TABLE.keys()):  # sites bound what the table says
        raise ConfigError(f"[local] optimizer {name!r}: {other[0]} is what [local] {OF_THE_TABLE[other[0]]} says")
    factory = registry.optimizers.load(name)
    try:
        found: torch.optim.Optimizer = factory(trained, lr, local, **options)
    except ConfigError:
        raise
    except Exception as e:  # another package's code, and a run file's options
        raise ConfigError(f"[local] optimizer {name!r}: {in_one_line(e)}") from e
    return found


def check_optimizer(local: Local) -> None:
    """Return None if the optimiser that `[local]` names can be made: its package is there, its options are right.

    Raises ConfigError as `optimizer_of` does.
    """
    optimizer_of([nn.Parameter(torch.zeros(2, 2))], local.learning_rate, local)


def named_in(local: Local) -> str:
    """The name of the optimiser in a `[local]` table."""
    return registry.named(local.optimizer, "optimizer")[0]


def elementwise(local: Local) -> bool:
    """Whether the optimiser that `[local]` names works on every number by itself."""
    return bool(getattr(registry.optimizers.load(named_in(local)), "elementwise", False))
