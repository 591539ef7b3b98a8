"""Local steps by back-propagation."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch

from fedft.arithmetic import tensors
from fedft.contract import Batch, Handle, Metrics, Trained, Turn
from fedft.update import Plan

Live = Mapping[str, torch.nn.Parameter]

Adjust = Callable[[Live, Turn], Callable[[], None]]
"""(the parameters that learn, turn) at the start of a turn -> what is done to their `.grad` in every step, before it is
clipped. In the adapter's own scale: B = unit-scale B x rank / alpha."""


def everything_trained(plan: Plan) -> tuple[str, ...]:
    """Endings of all names."""
    return ("",)


@dataclass(frozen=True)
class FirstOrder:
    """Back-propagation with the run's optimiser, fresh in every round.

    `send` = "delta" uploads trained - received; "value" uploads the trained tensors themselves, for strategies whose
    clients start from a draw of their own. `adjust` changes gradients (a proximal pull, a control variate); `trains`
    says which of the space's trained names learn, and are sent, in a round (endings; a head always does).
    """

    send: Literal["delta", "value"] = "delta"
    adjust: Adjust | None = None
    trains: Callable[[Plan], tuple[str, ...]] = everything_trained

    def __call__(self, handle: Handle, batches: Iterator[Batch], turn: Turn) -> Trained:
        endings, head = self.trains(turn.plan), handle.layout.head
        live = {n: p for n, p in handle.parameters().items() if n.endswith(endings) or n in head}
        received = handle.read()
        metrics = _descend(handle, live, batches, turn, self.adjust(live, turn) if self.adjust else None)
        now = {n: x for n, x in handle.read().items() if n in live}
        sent = now if self.send == "value" else tensors.sub(now, {n: received[n] for n in now})
        return Trained(sent, metrics)


def _descend(
    handle: Handle, live: Live, batches: Iterator[Batch], turn: Turn, adjust: Callable[[], None] | None
) -> Metrics:
    """`plan.steps` optimiser steps on `live`; a step whose loss or gradient is not finite is left out."""
    trained = list(live.values())
    others = [p for n, p in handle.parameters().items() if n not in live]
    optimizer = optimizer_of(trained, turn.plan.learning_rate, turn.local)
    losses = []
    with frozen(others):
        for _ in range(turn.plan.steps):
            loss = handle.loss(next(batches))
            loss.backward()
            if adjust is not None and torch.isfinite(loss) and _finite(trained):
                adjust()
            norm = torch.nn.utils.clip_grad_norm_(trained, turn.local.max_grad_norm or float("inf"))
            if torch.isfinite(loss) and torch.isfinite(norm):
                optimizer.step()
                losses.append(float(loss.detach()))
            optimizer.zero_grad(set_to_none=True)
    if not losses:
        raise FloatingPointError("every local step had a non-finite loss; nothing was trained")
    return {"loss": sum(losses) / len(losses), "steps": float(len(losses))}


@contextmanager
def frozen(parameters: Iterable[torch.nn.Parameter]) -> Iterator[None]:
    """Inside, these parameters have no gradient."""
    stopped = list(parameters)
    for p in stopped:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in stopped:
            p.requires_grad_(True)


def _finite(trained: Iterable[torch.nn.Parameter]) -> bool:
    return all(bool(torch.isfinite(p.grad).all()) for p in trained if p.grad is not None)


def optimizer_of(trained: list[torch.nn.Parameter], lr: float, local: Any) -> torch.optim.Optimizer:
    """The run's optimiser (the `[local]` table), fresh."""
    if local.optimizer == "sgd":
        return torch.optim.SGD(trained, lr=lr, momentum=local.momentum, weight_decay=local.weight_decay)
    return torch.optim.AdamW(trained, lr=lr, weight_decay=local.weight_decay)
