"""Local steps by back-propagation.

for each step   loss = objective(model, batch);  gradients;  terms change them;  clip;  optimiser step
result          trained - received, or the trained values;  terms add what is theirs
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fedft.arithmetic import tensors
from fedft.contract import Batch, Course, Data, Handle, Learning, Metrics, Term, Trained, Turn
from fedft.training.optimizers import optimizer_of
from fedft.update import Plan


@dataclass(frozen=True)
class FirstOrder:
    """Back-propagation with the run's optimiser, fresh in every round."""

    send: Literal["delta", "value"] = "delta"
    """Upload trained - received, or the trained tensors themselves: for clients that start from a draw of their own."""
    trains: Callable[[Plan], tuple[str, ...]] | None = None
    """Endings of the names that learn, and are sent, in a round (a head always does); None: all that is trained."""
    terms: tuple[Term, ...] = ()
    """What takes part in every gradient step, in this order."""

    def with_term(self, term: Term) -> "FirstOrder":
        """These steps with one more term, behind those they have."""
        return replace(self, terms=(*self.terms, term))

    def __call__(self, handle: Handle, data: Data, turn: Turn) -> Trained:
        """Take `turn.plan.steps` steps; see `fedft.contract.LocalStep`.

        Raises FloatingPointError if no step had a finite loss.
        """
        learning, received = self.learning(handle, turn), handle.read()
        courses = [term.begin(learning, turn) for term in self.terms]
        metrics = _descend(handle, learning.live, data.batches(turn), turn, courses)
        return self.result(handle, received, learning.live, metrics, courses)

    def learns(self, handle: Handle, turn: Turn) -> tuple[str, ...]:
        """Names of the tensors that learn in this turn."""
        if self.trains is None:
            return tuple(handle.parameters())
        endings, head = self.trains(turn.plan), handle.layout.head
        return tuple(n for n in handle.parameters() if n.endswith(endings) or n in head)

    def learning(self, handle: Handle, turn: Turn) -> Learning:
        """The adapter as it stands, for terms."""
        names = self.learns(handle, turn)
        live = {n: p for n, p in handle.parameters().items() if n in names}
        return Learning(live, {n: p for n, p in handle.adapter().items() if n not in live}, handle.scale)

    def result(
        self, handle: Handle, received: Mapping[str, Tensor], learns: Iterable[str], metrics: Metrics,
        courses: Sequence[Course],
    ) -> Trained:  # fmt: skip
        """What is sent of a turn at whose end `handle` stands."""
        names = set(learns)
        now = {n: x for n, x in handle.read().items() if n in names}
        sent = now if self.send == "value" else tensors.sub(now, {n: received[n] for n in now})
        trained = Trained(sent, metrics)
        for course in courses:
            trained = course.finish(trained, handle)
        return trained


def gradient_steps(local: Any) -> FirstOrder | None:
    """A local step as steps by back-propagation, which take terms and share passes; None if it is something else."""
    return local if isinstance(local, FirstOrder) else None


def _descend(
    handle: Handle,
    live: Mapping[str, nn.Parameter],
    batches: Iterator[Batch],
    turn: Turn,
    courses: Sequence[Course],
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
            if courses and torch.isfinite(loss) and _finite(trained):
                for course in courses:
                    course.step()
            norm = torch.nn.utils.clip_grad_norm_(trained, turn.local.max_grad_norm or float("inf"))
            if torch.isfinite(loss) and torch.isfinite(norm):
                optimizer.step()
                losses.append(float(loss.detach()))
            optimizer.zero_grad(set_to_none=True)
    if not losses:
        raise FloatingPointError("every local step had a non-finite loss; nothing was trained")
    return {"loss": sum(losses) / len(losses), "steps": float(len(losses))}


@contextmanager
def frozen(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Inside, these parameters have no gradient."""
    stopped = list(parameters)
    for p in stopped:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in stopped:
            p.requires_grad_(True)


def _finite(trained: Iterable[nn.Parameter]) -> bool:
    return all(bool(torch.isfinite(p.grad).all()) for p in trained if p.grad is not None)
