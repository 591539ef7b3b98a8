"""Optimisers of torch, bitsandbytes and schedulefree under the names that people know them by.

Each factory takes (parameters, learning rate, the `[local]` table) as those in `optimizers` do, and the options of the
class behind it as keyword arguments: { name = "adafactor", beta2_decay = -0.7 }. Learning rate and weight decay are the
table's.
"""

from collections.abc import Callable, Iterable
from importlib import import_module
from typing import Any

import torch
from torch import nn

from fedft.config import Local
from fedft.errors import ConfigError

Factory = Callable[..., torch.optim.Optimizer]


def _of(module: str, name: str, *, elementwise: bool = False, package: str = "", **fixed: Any) -> Factory:
    """The factory of one class, which is imported when it is first used."""

    def factory(parameters: Iterable[nn.Parameter], lr: float, local: Local, **options: Any) -> torch.optim.Optimizer:
        try:
            made = getattr(import_module(module), name)
        except (ImportError, AttributeError) as e:
            there = f"pip install {package}" if package else f"it needs another version of {module.partition('.')[0]}"
            raise ConfigError(f"[local] optimizer: {module} has no {name} here; {there}") from e
        given = {"lr": lr, "weight_decay": local.weight_decay, **fixed, **options}
        found: torch.optim.Optimizer = made(list(parameters), **given)
        if begin := getattr(found, "train", None):
            begin()  # schedulefree's has to be told
        return found

    factory.__doc__ = f"{name} of {module.partition('.')[0]}, with its own options."
    factory.elementwise = elementwise  # type: ignore[attr-defined]
    return factory


def _of_bitsandbytes(name: str, **fixed: Any) -> Factory:
    return _of("bitsandbytes.optim", name, package="bitsandbytes", **fixed)


adafactor = _of("torch.optim", "Adafactor")
adagrad = _of("torch.optim", "Adagrad", elementwise=True)
adam = _of("torch.optim", "Adam", elementwise=True)
adamax = _of("torch.optim", "Adamax", elementwise=True)
nadam = _of("torch.optim", "NAdam", elementwise=True)
radam = _of("torch.optim", "RAdam", elementwise=True)
rmsprop = _of("torch.optim", "RMSprop", elementwise=True)
adamw_8bit = _of_bitsandbytes("AdamW8bit")
paged_adamw = _of_bitsandbytes("PagedAdamW")
paged_adamw_8bit = _of_bitsandbytes("PagedAdamW8bit")
lion_8bit = _of_bitsandbytes("Lion8bit")
paged_lion_8bit = _of_bitsandbytes("PagedLion8bit")
schedule_free_adamw = _of("schedulefree", "AdamWScheduleFree", package="schedulefree")
schedule_free_sgd = _of("schedulefree", "SGDScheduleFree", package="schedulefree")


def muon(parameters: Iterable[nn.Parameter], lr: float, local: Local, **options: Any) -> torch.optim.Optimizer:
    """Muon for matrices, at the learning rate that AdamW would have, and AdamW for whatever is none.

    Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024; the scale is that of Liu et al.,
    "Muon is Scalable for LLM Training", arXiv:2502.16982.
    """
    every = list(parameters)
    matrices, others = [p for p in every if p.ndim == 2], [p for p in every if p.ndim != 2]
    parts: list[torch.optim.Optimizer] = []
    if matrices:
        how = {"adjust_lr_fn": "match_rms_adamw", **options}
        parts.append(_of("torch.optim", "Muon")(matrices, lr, local, **how))
    if others:
        parts.append(torch.optim.AdamW(others, lr=lr, weight_decay=local.weight_decay))
    return parts[0] if len(parts) == 1 else _Several(parts)


class _Several(torch.optim.Optimizer):
    """Optimisers of different tensors as one: groups are theirs, and what all remember is in one place."""

    def __init__(self, parts: list[torch.optim.Optimizer]) -> None:
        self._parts = parts
        super().__init__([p for part in parts for group in part.param_groups for p in group["params"]], {})
        self.param_groups = [group for part in parts for group in part.param_groups]
        for part in parts:
            part.state = self.state

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step of each."""
        for part in self._parts:
            part.step()
