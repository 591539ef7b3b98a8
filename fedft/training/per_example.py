"""Gradients of single records in one pass, for layers that are linear: LoRA's factors and heads of classifiers.

    a layer of inputs X [T, in] and output gradients G [T, out] of record i, of the sum of all records' losses:
        weight    g_i = G^T X   [out, in]          bias    g_i = sum_t G_t   [out]
    clipped sum   sum_i g_i min(1, C / |g_i|)      |g_i| over all trained tensors together, in the adapter's own scale

Hooks see X and G; the sum over records that back-propagation would make is never formed. With a factor of rank r this
costs what that sum costs, and r < T keeps g_i small: rows x numbers that are trained. Nothing here knows of noise.

What couples records, or is no linear layer, is refused: its g_i would be something else, silently. `self_test` compares
with one pass for each record, on the model and the device at hand.

Abadi et al., "Deep Learning with Differential Privacy", CCS 2016, arXiv:1607.00133; Li et al., "Large Language Models
Can Be Strong Differentially Private Learners", ICLR 2022, arXiv:2110.05679.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from fedft.contract import Batch, Data, Handle
from fedft.errors import ConfigError, PlanRefused
from fedft.training.first_order import frozen
from fedft.training.linear_owners import linear_owners, unfit
from fedft.training.objectives import widened

log = logging.getLogger(__name__)

ROOM = 1 - 2.0**-20
"""A clipped gradient is scaled to this part of C, so that rounding to float32 brings none beyond C."""
Gradients = dict[str, Tensor]
"""By canonical name: [rows, *shape of the parameter], float32."""


def clipped_sum(gradients: Gradients, clip: float) -> Gradients:
    """sum_i g_i min(1, C / |g_i|), by name and of the parameters' shapes; a row whose g_i is not finite counts as 0.

    Args:
        gradients: of each row; not modified.
        clip: C > 0, in the adapter's own scale.
    """
    size = norms(gradients)
    fine = torch.isfinite(size)
    factors = torch.where(fine, (clip * ROOM / size).clamp(max=1.0), 0.0)
    whole = bool(fine.all())
    found = {}
    for name, g in gradients.items():
        rows = g.flatten(1) if whole else torch.where(fine[:, None], g.flatten(1), 0.0)
        found[name] = (factors.to(rows) @ rows).view(g.shape[1:])
    return found


def norms(gradients: Gradients) -> Tensor:
    """|g_i| of each row over all tensors together, float64 [rows]; not finite where a number of it is not."""
    return torch.stack(
        [torch.linalg.vector_norm(g.flatten(1), dim=1, dtype=torch.float64) for g in gradients.values()]
    ).norm(dim=0)


class Watch:
    """Hooks on the linear layers that own what is trained; a context manager, which takes them off at its end."""

    def __init__(self, handle: Handle, live: Mapping[str, nn.Parameter]) -> None:
        """Watch the layers of the parameters `live`, by canonical name. Raises ConfigError as `linear_owners` does."""
        self._handle, self._live = handle, live
        self._owners = linear_owners(handle, live)
        self._sequences = 0
        """Of the batch at hand: the length of the first dimension of its tensors. 0: passes are not looked at."""
        self._found: Gradients = {}
        self._hooks: list[Any] = []

    def __enter__(self) -> "Watch":
        self._hooks = [m.register_forward_hook(self._ran) for m in self._owners]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def gradients(self, batch: Batch, *, dropout: bool = True) -> Gradients:
        """The gradients of each row's loss (`Handle.losses`) with respect to the watched parameters, in their order.

        Parameters get no `.grad`. Raises ConfigError for a layer that does not see the batch row by row, or not at all.
        """
        sequences = self._sequences = len(next(iter(batch.values())))
        self._found = {}
        try:
            with frozen(self._live.values()), torch.enable_grad():
                losses = self._handle.losses(batch, dropout=dropout)
                if losses.requires_grad:
                    losses.sum().backward()
        finally:
            self._sequences = 0
        if lost := [n for n in self._live if n not in self._found]:
            raise unfit(lost[0], "no pass uses it")
        rows = len(losses)
        several = sequences // rows  # of pairs: the first sequences of all rows, then the second ones
        return {n: self._found[n].unflatten(0, (several, rows)).sum(0) for n in self._live}

    def _ran(self, module: nn.Module, given: tuple[Any, ...], out: Tensor) -> None:
        """Behind a watched layer: have its gradients made when those of its output are there."""
        if not (self._sequences and torch.is_grad_enabled()):  # without gradients: a reference model's pass
            return
        x = given[0].detach()
        if len(x) != self._sequences:
            raise unfit(next(iter(self._owners[module].values())), "its layer does not see a batch row by row")
        if not out.requires_grad:
            out.requires_grad_(True)  # nothing before it learns
        out.register_hook(lambda g: self._add(module, x, g))

    def _add(self, module: nn.Module, x: Tensor, g: Tensor) -> None:
        """Add what one call of a layer gives: inputs [rows, ..., in], gradients of outputs [rows, ..., out]."""
        x, g = (widened(t).reshape(len(t), -1, t.shape[-1]) for t in (x, g))
        for slot, name in self._owners[module].items():
            own = torch.bmm(g.mT, x.to(g)) if slot == "weight" else g.sum(1)
            self._found[name] = own if name not in self._found else self._found[name] + own


def self_test(handle: Any, rows: Sequence[Any], data: Data) -> None:
    """Return None if gradients of single records are right on this model and device: to be asked before any training.

    Of four rows: each one's loss and gradient beside others are those that it has alone, to 1e-4 (1e-2 where the base
    or its arithmetic is in half precision); and five steps without noise, clipped at 1e9, end where plain gradient
    descent on the mean does. Dropout is off, so no random number is drawn. What is trained is moved meanwhile, and put
    back bit for bit.

    Args:
        handle: at the state that is trained from.
        rows: the client's; the first four are taken.
        data: makes batches of them.
    Raises:
        PlanRefused: `dp_selftest`, one of these is not so, or what is trained is refused by `linear_owners` or
            `Watch.gradients`. The text has nothing of a row.
    """
    live: dict[str, nn.Parameter] = dict(handle.parameters())
    before = {n: p.detach().clone() for n, p in live.items()}
    draws, rows = torch.Generator().manual_seed(0), rows[:4]
    with torch.no_grad():
        for p in live.values():  # a factor that is 0 would hide the gradient of the other
            p.add_(0.02 * torch.randn(p.shape, generator=draws).to(p))
    try:
        with Watch(handle, live) as watch:
            batch = data.batch(rows)
            _judge(handle, "a record's loss", _losses_apart(handle, batch, rows, data))
            found = watch.gradients(batch, dropout=False)
            _judge(handle, "a record's gradient", _gradients_apart(handle, found, rows, data))
            _judge(handle, "the end of five steps without clip and noise", _steps_apart(watch, handle, batch))
    except ConfigError as e:
        raise PlanRefused("dp_selftest", str(e)) from e
    finally:
        with torch.no_grad():
            for n, p in live.items():
                p.copy_(before[n])


def losses_test(handle: Any, rows: Sequence[Any], data: Data) -> None:
    """Return None if four rows have beside each other the losses that each has alone; arguments as of `self_test`.

    Raises PlanRefused, `dp_selftest`, where they have others, as models have them whose records see each other.
    """
    rows = rows[:4]
    _judge(handle, "a record's loss", _losses_apart(handle, data.batch(rows), rows, data))


def once(
    tested: "WeakSet[nn.Module]", test: Callable[[Any, Sequence[Any], Data], None], handle: Any, data: Data
) -> None:
    """Ask for a test unless the handle's model is among those that have passed it, and add it to them."""
    if handle.model not in tested:
        test(handle, data.rows, data)
        tested.add(handle.model)


def _judge(handle: Any, what: str, error: float) -> None:
    """Raise PlanRefused where an error is more than roundings of the model's precision make.

    By how much is for the log here alone: a refusal travels.
    """
    half = any(p.dtype in (torch.float16, torch.bfloat16) for p in handle.model.parameters())
    tolerance = 1e-2 if half or isinstance(handle.casting(), torch.autocast) else 1e-4
    if not error <= tolerance:
        log.error("[privacy] mode: %s is off by %.1e, at most %g is allowed", what, error, tolerance)
        raise PlanRefused(
            "dp_selftest",
            f"[privacy] mode: {what} is another than by itself on this model and device; noise would hide no record",
        )


def _losses_apart(handle: Any, batch: Batch, rows: Sequence[Any], data: Data) -> float:
    """By how much losses of rows beside others differ from those alone, relative to the largest."""
    with torch.no_grad():
        found = handle.losses(batch).double().cpu()
        alone = torch.stack([handle.loss(data.batch([row])).double().cpu() for row in rows])
    alone = torch.where(alone.isnan() & (found == 0), found, alone)  # of a row that learns nothing there is no mean
    return float((found - alone).abs().max() / alone.abs().max().clamp(min=1e-30))


def _gradients_apart(handle: Any, found: Gradients, rows: Sequence[Any], data: Data) -> float:
    """By how much gradients of rows beside others differ from those alone, relative to the largest."""
    off, sizes = [], []
    for i, row in enumerate(rows):
        own = _mean_gradient(handle, data.batch([row]))
        off.append(norms({n: (found[n][i] - g)[None] for n, g in own.items()}))
        sizes.append(norms({n: g[None] for n, g in own.items()}))
    return float(torch.cat(off).max() / torch.cat(sizes).max().clamp(min=1e-30))


def _steps_apart(watch: Watch, handle: Any, batch: Batch) -> float:
    """By how much five steps of clipped sums end elsewhere than gradient descent, relative to the way."""
    live: Mapping[str, nn.Parameter] = handle.parameters()
    start = {n: p.detach().clone() for n, p in live.items()}
    first = _mean_gradient(handle, batch)
    rate = 0.01 * _length(start) / max(_length(first), 1e-30)

    def ended(gradient: Callable[[], Gradients]) -> Gradients:
        for _ in range(5):
            moves = gradient()
            with torch.no_grad():
                for n, p in live.items():
                    p.sub_(rate * moves[n].to(p))
        there = {n: p.detach().clone() for n, p in live.items()}
        with torch.no_grad():
            for n, p in live.items():
                p.copy_(start[n])
        return there

    def clipped() -> Gradients:
        found = watch.gradients(batch, dropout=False)
        return {n: x / len(found[n]) for n, x in clipped_sum(found, 1e9).items()}

    ours, plain = ended(clipped), ended(lambda: _mean_gradient(handle, batch))
    way = max(_length({n: x - start[n] for n, x in plain.items()}), 1e-30)
    return _length({n: x - plain[n] for n, x in ours.items()}) / way


def _mean_gradient(handle: Any, batch: Batch) -> Gradients:
    """The gradient of the mean of the rows' losses by back-propagation as ever, dropout off."""
    live: Mapping[str, nn.Parameter] = handle.parameters()
    with torch.enable_grad():
        found = torch.autograd.grad(handle.losses(batch, dropout=False).mean(), [*live.values()], allow_unused=True)
    return {n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(live.items(), found, strict=True)}


def _length(x: Gradients) -> float:
    return float(norms({n: t[None] for n, t in x.items()}))
