"""Derivatives g of a loss along random directions z, estimated from forward passes only.

    two_sided   g = (L(w + eps z) - L(w - eps z)) / (2 eps)             2 passes; exact on a quadratic
    one_sided   g = (L(w + eps z) - L(w)) / eps                         1 pass beside L(w); off by eps z'Hz / 2
    forward     g = <grad L, z>                                         1 pass of dual numbers; exact, no eps

The weights never move: `Handle.perturbed` lets forward passes see w + eps z, so a step of learning rate zero leaves
every bit where it was, in any dtype. Losses are compared in float64 on the same batch with dropout off. L may be any
number that a forward pass gives (`measured`), also one without a gradient.

Malladi et al., "Fine-Tuning Language Models with Just Forward Passes", NeurIPS 2023, arXiv:2305.17333; Zhang et al.,
"Revisiting Zeroth-Order Optimization for Memory-Efficient LLM Fine-Tuning: A Benchmark", ICML 2024, arXiv:2402.11592.
"""

import math
from collections.abc import Callable, Collection

import torch

from fedft.contract import Batch, Handle
from fedft.data.examples import IGNORED
from fedft.randomness.directions import Directions

Measure = Callable[[Handle, Batch], float]
"""(model, batch) -> the number to minimise."""


def loss(handle: Handle, batch: Batch) -> float:
    """The run's objective on a batch, dropout off, no graph."""
    with torch.no_grad():
        return float(handle.loss(batch))


def errors(handle: Handle, batch: Batch) -> float:
    """1 - accuracy: the share of rows (or of learned tokens) predicted wrong; NaN where nothing is learned."""
    guess, wanted = handle.predictions(batch)
    learned = wanted != IGNORED
    return 1 - float((guess == wanted)[learned].double().mean())


def lost_f1(handle: Handle, batch: Batch) -> float:
    """1 - F1 of the predictions on a batch; NaN where nothing is learned.

    Of several labels: F1 = 2 hits / (labels + guesses) over all of them, 1 where there are neither.

    Classes: the plain mean over the classes that occur in the batch, as label or as guess, of each one's
    F1 = 2 hits / (labels + guesses). Tokens: the mean over rows of the F1 of two bags of tokens, those predicted at
    the learned places and those that should be there; the bags are of one size, so it is the share they have in common.

    >>> from types import SimpleNamespace
    >>> guess, wanted = torch.tensor([0, 1, 1]), torch.tensor([0, 1, 2])  # F1 of the classes: 1, 2/3, 0
    >>> round(lost_f1(SimpleNamespace(predictions=lambda batch: (guess, wanted)), {}), 4)
    0.4444
    """
    guess, wanted = handle.predictions(batch)
    if wanted.dtype == torch.bool:
        both = int(guess.sum() + wanted.sum())
        return 1 - 2 * int((guess & wanted).sum()) / both if both else 0.0
    if wanted.ndim == 1:
        kinds = torch.cat([guess, wanted]).unique()
        hits = torch.stack([((guess == k) & (wanted == k)).sum() for k in kinds])
        seen = torch.stack([(guess == k).sum() + (wanted == k).sum() for k in kinds])
        return 1 - float((2 * hits / seen).double().mean())
    shares = []
    for row, truth in zip(guess, wanted, strict=True):
        learned = truth != IGNORED
        if learned.any():
            kinds, at = torch.cat([row[learned], truth[learned]]).unique(return_inverse=True)
            n = int(learned.sum())
            ours, theirs = (torch.bincount(x, minlength=len(kinds)) for x in (at[:n], at[n:]))
            shares.append(float(torch.minimum(ours, theirs).sum()) / n)
    return 1 - sum(shares) / len(shares) if shares else math.nan


measured: dict[str, Measure] = {"loss": loss, "accuracy": errors, "f1": lost_f1}
"""The number that is minimised, by the name of the objective in `zeroth_rules.Walk`."""


def two_point(
    handle: Handle,
    batch: Batch,
    z: Directions,
    index: int,
    epsilon: float,
    only: Collection[str] | None = None,
    measure: Measure = loss,
) -> tuple[float, float]:
    """(g, loss): the two-sided derivative along z_index, and the mean of the two losses.

    Args:
        handle: the model; not moved.
        batch: both losses are of this one.
        z, index: the directions, and which of them.
        epsilon: distance to either side, in units of the weights.
        only: names of the tensors that are seen moved; None: all that are trained.
        measure: the number that is differentiated.
    Returns:
        Two floats, either of them non-finite if a loss is.
    """
    with handle.perturbed(z, index, epsilon, only=only):
        above = measure(handle, batch)
    with handle.perturbed(z, index, -epsilon, only=only):
        below = measure(handle, batch)
    return (above - below) / (2 * epsilon), (above + below) / 2


def one_point(
    handle: Handle,
    batch: Batch,
    z: Directions,
    index: int,
    epsilon: float,
    here: float,
    only: Collection[str] | None = None,
    measure: Measure = loss,
) -> float:
    """The one-sided derivative g along z_index; `here` is `measure` of the weights as they are. See `two_point`."""
    with handle.perturbed(z, index, epsilon, only=only):
        return (measure(handle, batch) - here) / epsilon


def step(handle: Handle, z: Directions, index: int, distance: float) -> None:
    """w += distance * z_index on every trained tensor: in place, or, where `weights_fixed`, by `shift_along`."""
    if handle.weights_fixed:
        coefficients = torch.zeros(z.count, dtype=torch.float64)
        coefficients[index] = distance
        handle.shift_along(z, coefficients)
        return
    for name, parameter in handle.parameters().items():
        z.add_(parameter.data, name, index, distance)
