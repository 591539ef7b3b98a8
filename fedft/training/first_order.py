"""Local steps by back-propagation, with the run's optimiser.

for each step   loss = objective(model, batch);  gradients;  terms change them;  clip to max_grad_norm;  optimiser step
result          trained - received, or the trained values;  then each term may add to it (`fedft.contract.Course`)

A step whose loss or gradient is not finite is left out. Losses stay on the device and are read once, behind the last
step; a step is left out by a flag there where the optimiser's kernels read one (`optimizers.step_if`).
"""

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from fedft.contract import Batch, Course, Data, Handle, Learning, Metrics, Term, Trained, Turn
from fedft.data.micro_batches import InPieces
from fedft.training import optimizer_state, schedules, trainer_turns
from fedft.training.optimizers import optimizer_of, step_if
from fedft.update import Plan

log = logging.getLogger(__name__)
T = TypeVar("T")

Descend = Callable[
    [Handle, Mapping[str, nn.Parameter], Iterator[Any], Turn, Sequence[Course], torch.optim.Optimizer], Metrics
]
"""(model, what learns by name, batches, turn, terms' parts in it, optimiser) -> metrics of the turn's steps."""


@dataclass(frozen=True)
class FirstOrder:
    """Local steps (`fedft.contract.LocalStep`) by back-propagation.

    The optimiser is fresh in every round, or goes on where the client left it if `[local] keep_optimizer` says so.
    """

    send: Literal["delta", "value"] = "delta"
    """What the result is: trained - received, or the trained values (where each client starts from its own draw)."""
    trains: Callable[[Plan], tuple[str, ...]] | None = None
    """Endings of the names that learn and are sent in a round; a head always does. None: every trained tensor."""
    terms: tuple[Term, ...] = ()
    """What changes the gradients of every step (a proximal pull, a control variate), in this order."""

    def with_term(self, term: Term) -> "FirstOrder":
        """The same steps with one more term, after those that there are."""
        return replace(self, terms=(*self.terms, term))

    def __call__(self, handle: Handle, data: Data, turn: Turn) -> Trained:
        """Take `turn.plan.steps` steps on the client's rows from the values in `handle`; the client's result.

        The metrics are `loss`, the mean over steps taken, and `steps`, their number. Raises FloatingPointError if no
        step had a finite loss.
        """
        return self.taken(handle, data.batches(turn), turn, trainer_turns.descend if turn.local.trainer else _descend)

    def taken(self, handle: Handle, batches: Iterator[Any], turn: Turn, descend: Descend) -> Trained:
        """The client's result of steps that `descend` takes on these batches; else as a call."""
        learning, received = self.learning(handle, turn), handle.start()
        courses = [term.begin(learning, turn) for term in self.terms]
        optimizer = optimizer_of([*learning.live.values()], turn.plan.learning_rate, turn.local)
        before = turn.drawer(optimizer_state.OWNER)
        if turn.local.keep_optimizer:
            optimizer_state.restore(optimizer, learning.live, before)
        with frozen(p for n, p in handle.parameters().items() if n not in learning.live):
            metrics = descend(handle, learning.live, batches, turn, courses, optimizer)
        state = optimizer_state.taken(optimizer, learning.live, before) if turn.local.keep_optimizer else None
        del optimizer  # its moments are twice what is trained
        trained = self.result(handle, received, learning.live, metrics, courses)
        return trained if state is None else trained._replace(kept={**trained.kept, optimizer_state.OWNER: state})

    def learns(self, handle: Handle, turn: Turn) -> tuple[str, ...]:
        """Names of the tensors that learn in this turn, in the order of `handle.parameters`; a head always does."""
        shape, head = turn.plan.shape, handle.layout.head
        endings = ("",) if self.trains is None else self.trains(turn.plan)
        return tuple(n for n in handle.parameters() if n in head or (n.endswith(endings) and shape.learns(n)))

    def learning(self, handle: Handle, turn: Turn) -> Learning:
        """The tensors of the live adapter as terms see them: those that learn in this turn, and the others."""
        names = self.learns(handle, turn)
        live = {n: p for n, p in handle.parameters().items() if n in names}
        return Learning(live, {n: p for n, p in handle.adapter().items() if n not in live}, handle.scale)

    def result(
        self, handle: Handle, received: Mapping[str, Tensor], learns: Iterable[str], metrics: Metrics,
        courses: Sequence[Course],
    ) -> Trained:  # fmt: skip
        """The result of a turn whose last values are in `handle`.

        Args:
            handle: the model after the last step.
            received: `handle.start()` or `handle.read()` before the first step.
            learns: names of the tensors that learned.
            metrics: of the steps.
            courses: the terms' parts in this turn; each may add to the result, in order.
        """
        names = set(learns)
        now = {n: x for n, x in handle.read().items() if n in names}
        for n, x in now.items() if self.send == "delta" else ():
            x.sub_(received[n])  # in the memory of what was just read
        trained = Trained(now, metrics)
        for course in courses:
            trained = course.finish(trained, handle)
        return trained


def gradient_steps(local: Any) -> FirstOrder | None:
    """`local` if it is back-propagation, which takes terms and may share passes; None if it is something else."""
    return local if isinstance(local, FirstOrder) else None


def steps_within(local: Any) -> FirstOrder | None:
    """The back-propagation that `local` is, or that it calls and has as `local.steps`; None where there is none.

    What it is itself takes terms and may share passes; what it calls has whatever is done around it.
    """
    return gradient_steps(local) or gradient_steps(getattr(local, "steps", None))


def _descend(
    handle: Handle,
    live: Mapping[str, nn.Parameter],
    batches: Iterator[Batch],
    turn: Turn,
    courses: Sequence[Course],
    optimizer: torch.optim.Optimizer,
) -> Metrics:
    """`plan.steps` optimiser steps on `live`; a step whose loss or gradient is not finite is left out."""
    trained = list(live.values())
    losses = []
    for step in range(turn.plan.steps):
        loss = differentiate(handle, next(batches), trained)
        if courses and bool(_finite(loss, trained)):
            for course in courses:
                course.step()
        set_rate(optimizer, turn, step)
        norm = torch.nn.utils.clip_grad_norm_(trained, turn.local.max_grad_norm or float("inf"))
        fine = torch.isfinite(loss) & torch.isfinite(norm).to(loss.device)
        step_if(optimizer, fine)
        losses.append(torch.where(fine, loss, math.nan))
        optimizer.zero_grad(set_to_none=True)
    settle(optimizer)
    read = torch.stack(losses).tolist() if losses else []  # the device is waited for
    counted = [x for x in read if math.isfinite(x)]
    if not counted:
        raise FloatingPointError("every local step had a non-finite loss; nothing was trained")
    return {"loss": sum(counted) / len(counted), "steps": float(len(counted))}


def settle(optimizer: torch.optim.Optimizer) -> None:
    """Behind the last step: put the parameters at the average of an optimiser that keeps one (schedulefree's)."""
    if average := getattr(optimizer, "eval", None):
        average()


def set_rate(optimizer: torch.optim.Optimizer, turn: Turn, step: int) -> None:
    """Give the optimiser the learning rate of this step, from 0, where the run's schedule moves it within a round."""
    if schedules.moves_in_rounds(turn.local):
        rate = turn.plan.learning_rate * schedules.of_step(turn.local, step, turn.plan.steps)
        for group in optimizer.param_groups:
            group["lr"] = rate


def differentiate(handle: Handle, batch: Batch, trained: Sequence[nn.Parameter]) -> Tensor:
    """Fill `.grad` with the gradients of the loss of a batch; the loss, a scalar without a graph.

    A batch that comes in pieces (`[local] micro_batch`) is differentiated piece by piece. Where the device's memory is
    not enough, and the pieces may get smaller, it is done anew with smaller ones, which stay for the batches to come.
    `trained`: the parameters that get gradients, and have none before.
    """
    if isinstance(batch, InPieces):
        pieces = batch
        return in_memory(pieces, lambda: _in_pieces(handle, pieces, trained), trained)
    loss = handle.loss(batch)
    loss.backward()
    return loss.detach()


def in_memory(batch: InPieces, act: Callable[[], T], trained: Iterable[nn.Parameter] = ()) -> T:
    """What `act` gives of a batch: done anew with smaller pieces where memory is not enough, and they may get smaller.

    `trained`: the parameters whose gradients an attempt that failed leaves behind.
    """
    while True:
        try:
            return act()
        except torch.OutOfMemoryError:
            if not batch.size.halve(len(batch.rows)):
                raise
        for parameter in trained:
            parameter.grad = None
        torch.cuda.empty_cache()
        log.warning("[local] micro_batch: memory is not enough; %d records at a time from now on", batch.size.rows)


def _in_pieces(handle: Handle, batch: InPieces, trained: Sequence[nn.Parameter]) -> Tensor:
    """As `differentiate`; of pieces that several processes share, this one's, and then the sum over all of them."""
    among, found = batch.size.among, []
    pieces = handle.shares(batch)
    for piece, share in pieces if among is None else pieces[among.rank :: among.count]:
        loss = handle.loss(piece) * share
        loss.backward()
        found.append(loss.detach())
    total = sum(found[1:], start=found[0]) if found else torch.zeros_like(trained[0].sum())
    if among is not None:
        for parameter in trained:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        among.add([*(p.grad for p in trained if p.grad is not None), total])
    return total


@contextmanager
def frozen(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Inside, these parameters have `requires_grad=False`; afterwards True."""
    stopped = list(parameters)
    for p in stopped:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in stopped:
            p.requires_grad_(True)


def _finite(loss: Tensor, trained: Iterable[nn.Parameter]) -> Tensor:
    """Whether the loss and every gradient that there is are finite, bool () on the device of the loss."""
    gradients = [p.grad for p in trained if p.grad is not None]
    return torch.stack([torch.isfinite(x).all().to(loss.device) for x in (loss, *gradients)]).all()
