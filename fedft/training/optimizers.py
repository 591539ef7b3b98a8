"""Local optimisers by name: factories (parameters, learning rate, the `[local]` table) -> a fresh torch optimiser.

A factory with an attribute `elementwise = True` promises that its optimiser works on every number by itself and leaves
a zero with zero gradient at zero: clients may share passes with it (`batched_clients`).
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from fedft import registry
from fedft.config import Local
from fedft.errors import ConfigError, in_one_line

OF_THE_TABLE = {"lr": "learning_rate", "weight_decay": "weight_decay"}
"""Options of torch's classes that no table of an optimiser may have, and the keys of `[local]` that say them."""


def adamw(parameters: Iterable[nn.Parameter], lr: float, local: Local) -> torch.optim.Optimizer:
    """AdamW with the run's weight decay and torch's other defaults.

    Loshchilov and Hutter, "Decoupled Weight Decay Regularization", ICLR 2019, arXiv:1711.05101.
    """
    trained = list(parameters)
    return torch.optim.AdamW(trained, lr=lr, weight_decay=local.weight_decay, fused=_on_cuda(trained) or None)


def sgd(parameters: Iterable[nn.Parameter], lr: float, local: Local) -> torch.optim.Optimizer:
    """Stochastic gradient descent with the run's momentum and weight decay."""
    trained = list(parameters)
    fused = _on_cuda(trained) and not local.momentum  # fused kernels lose a momentum whose first step is left out
    return torch.optim.SGD(
        trained, lr=lr, momentum=local.momentum, weight_decay=local.weight_decay, fused=fused or None
    )


def _on_cuda(trained: Iterable[nn.Parameter]) -> bool:
    """Whether one kernel can take the step of all of them: other bits than several, on a CPU and elsewhere."""
    return all(p.device.type == "cuda" for p in trained)


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


def step_if(optimizer: torch.optim.Optimizer, fine: Tensor) -> None:
    """Take a step if `fine` holds, bool () on the parameters' device; else parameters and optimiser stay as they are.

    Fused kernels read the flag themselves, as they do for `torch.amp.GradScaler`; for others the device is waited for.
    """
    fused = getattr(optimizer, "_step_supports_amp_scaling", False)
    if fused and not any(group.get("momentum") for group in optimizer.param_groups):
        optimizer.grad_scale, optimizer.found_inf = None, (~fine).float()  # type: ignore[attr-defined]
        optimizer.step()
    elif fine:
        optimizer.step()


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
