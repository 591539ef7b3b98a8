"""Zeroth-order steps of one client's turn, by a rule (`zeroth_rules.Walk`), on all trained tensors or part by part.

    for each step   g_l = derivative of the loss along z, with only part l moved     one number per part; weights fixed
                    w_l += sum_j c_j z_j                                             by the rule, from the g of part l

One part holds everything, unless `blocks`: then each transformer layer is one, and what is in no layer another. Parts
share the number of a direction, not its noise: streams differ by tensor name. With `coordinate` a part moves before the
next is probed. `first_order_from` leaves the layers from there on, and a head, to back-propagation through them alone
(`layers.LastLayers`); the rest is probed before they move.

Malladi et al., "Fine-Tuning Language Models with Just Forward Passes", NeurIPS 2023, arXiv:2305.17333.
"""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from fedft.contract import Batch, Data, Handle, Metrics, Private, Turn
from fedft.data import poisson_batches
from fedft.randomness import philox
from fedft.randomness.directions import Directions
from fedft.training import directional_derivatives, row_slopes, zeroth_rules
from fedft.training.direction_sum import DirectionSum
from fedft.training.layers import LastLayers, by_layer
from fedft.training.zeroth_rules import Past, Walk


@dataclass(frozen=True)
class Walked:
    """The sums of a client's steps by direction, [K] each. Steps that were skipped are in none of them."""

    moved: Tensor
    """c, float64: the weights went from w to keep w - sum_j c_j z_j. True only where `Walk.check_span` passes."""
    straight: Tensor
    """c as it is without weight decay, float64: tensors that are spared from it went from w to w - sum_j c_j z_j."""
    slopes: Tensor
    """Sums of g / q over the steps, float64: g is a directional derivative, q the number of directions per step."""
    count: Tensor
    """How often each direction was probed, int32."""
    magnitude: Tensor
    """Sums of |g|, float32."""
    keep: float
    """The factor that weight decay left of the weights at the start."""
    metrics: Metrics
    """Mean `loss` over the steps taken, and how many `steps` that were; of steps with noise the latter alone."""


def walk(
    handle: Handle,
    data: Data,
    turn: Turn,
    how: Walk,
    z: Directions,
    draws: Sequence[int],
    weight_decay: float = 0.0,
    spared: Collection[str] = (),
) -> Walked:
    """Take `turn.plan.steps` steps on the tensors that `handle` trains; the sums of the steps by direction.

    Args:
        handle, data, turn: as in `fedft.contract.LocalStep`.
        how: the rule and its constants.
        z: the directions, K of them; already masked, unless `how.resample` draws masks anew.
        draws: the numbers of the directions to probe, steps x `how.samples` of them; every rule takes them in order.
        weight_decay: lam; w *= 1 - eta lam before every step, eta the plan's learning rate.
        spared: names of trained tensors that do not decay; of a handle whose weights are fixed, none.
    Raises:
        FloatingPointError: no step had a finite loss.
    """
    p, q, losses = _Progress(handle, turn, how, z, weight_decay, spared), how.samples, list[float]()
    private = turn.private if turn.private is not None and turn.private.in_steps else None
    batches: Iterator[Any] = data.batches(turn) if private is None else poisson_batches.batches(data, turn, private)
    for s in range(turn.plan.steps):
        if how.resample and s % how.resample == 0:
            p.z = how.masked(z, philox.derive(turn.seed, "mask", s // how.resample))
        drawn, batch = draws[s * q : (s + 1) * q], next(batches)
        if private is not None:
            p.noisy_step(batch, drawn, private, s, turn.local.batch_size)
        elif (loss := p.step(batch, drawn)) is not None:
            losses.append(loss)
    if p.last_layers is not None:
        p.last_layers.finish()
    metrics = {"steps": float(turn.plan.steps)}
    if private is None:
        if not losses:
            raise FloatingPointError("every local step had a non-finite loss; nothing was trained")
        metrics = {"loss": sum(losses) / len(losses), "steps": float(len(losses))}
    return Walked(p.moved, p.straight, p.slopes, p.count, p.magnitude, p.kept, metrics)


class _Progress:
    """A client's turn between its steps: what the rule remembers of each part, and the sums by direction so far."""

    def __init__(
        self, handle: Handle, turn: Turn, how: Walk, z: Directions, weight_decay: float, spared: Collection[str]
    ) -> None:
        self.handle, self.how, self.z, self.eta = handle, how, z, turn.plan.learning_rate
        self.decaying = [p for n, p in handle.parameters().items() if n not in spared]
        self.keep, self.kept = 1 - self.eta * weight_decay, 1.0
        self.measure = directional_derivatives.measured[how.objective]
        self.last_layers = None
        if (first := how.first_order_from) is not None:
            self.last_layers = LastLayers(handle, first, turn, self.eta * how.first_order_factor)
        probed = [n for n in handle.parameters() if self.last_layers is None or n not in self.last_layers.live]
        self.parts = by_layer(probed) if how.blocks else [probed]
        self.whole = len(probed) == len(handle.parameters()) and len(self.parts) == 1
        self.pasts = [Past() for _ in self.parts]
        self.dense = how.needs_moments(zeroth_rules.signs(z))
        self.moments: dict[str, tuple[Tensor, Tensor]] = {}
        self.moved, self.straight, self.slopes = torch.zeros(3, z.count, dtype=torch.float64)
        self.count, self.magnitude = torch.zeros(z.count, dtype=torch.int32), torch.zeros(z.count)

    def step(self, batch: Batch, drawn: Sequence[int]) -> float | None:
        """Take one step; its mean loss, or None if it was skipped: then nothing moved and no sum counts it."""
        if self.last_layers is not None and not self.last_layers.differentiate(batch):
            return None
        estimates: dict[int, dict[int, float]] = {}
        losses, here = [], math.nan
        for part in range(len(self.parts)):
            if self.how.estimate == "one_sided" and (part == 0 or self.how.coordinate):
                here = self.measure(self.handle, batch)
            estimate, loss = self._probe(part, batch, drawn, here)
            if not estimate:
                continue
            losses.append(loss)
            estimates[part] = estimate
            if self.how.coordinate:
                self._move(estimates, batch, here)
                estimates = {}
        if not losses:
            return None
        if self.keep != 1:
            self._decay()
        if estimates:
            self._move(estimates, batch, here)
        if self.last_layers is not None:
            self.last_layers.step()
        return sum(losses) / len(losses)

    def noisy_step(
        self, batch: Batch | None, drawn: Sequence[int], private: Private, step: int, batch_size: int
    ) -> None:
        """Take one step by noisy slopes of single rows, see `row_slopes.estimate`; it is never left out."""
        parts = [None] if self.whole else self.parts
        found = row_slopes.estimate(
            self.handle, batch, self.how, self.z, drawn, parts, private, step, batch_size
        ).tolist()
        if self.keep != 1:
            self._decay()
        self._move({part: self._counted(drawn, g) for part, g in enumerate(found)}, {}, math.nan)

    def _probe(self, part: int, batch: Batch, drawn: Sequence[int], here: float) -> tuple[dict[int, float], float]:
        """({j: g / q}, loss) of one part; ({}, nan) where a number is not finite. `here`: the loss of the weights."""
        pairs = [self._derivative(None if self.whole else self.parts[part], batch, j, here) for j in drawn]
        if not all(math.isfinite(x) for pair in pairs for x in pair):
            return {}, math.nan
        return self._counted(drawn, [g for g, _ in pairs]), sum(loss for _, loss in pairs) / len(pairs)

    def _counted(self, drawn: Sequence[int], slopes: Sequence[float]) -> dict[int, float]:
        """{j: g / q} of the slopes of one part along the drawn directions, which the sums by direction count."""
        estimate: dict[int, float] = {}
        for j, g in zip(drawn, slopes, strict=True):
            g = max(-self.how.scalar_clip, min(self.how.scalar_clip, g))
            estimate[j] = estimate.get(j, 0.0) + g / self.how.samples
            self.slopes[j] += g / self.how.samples
            self.count[j] += 1
            self.magnitude[j] += abs(g)
        return estimate

    def _derivative(self, only: list[str] | None, batch: Batch, j: int, here: float) -> tuple[float, float]:
        """(derivative of the objective along z_j, loss), with only these tensors moved; None: all of them."""
        handle, z, epsilon = self.handle, self.z, self.how.epsilon
        if self.how.estimate == "forward":
            return handle.directional_derivative(batch, z, j, only=only)
        if self.how.estimate == "two_sided":
            return directional_derivatives.two_point(handle, batch, z, j, epsilon, only, self.measure)
        return directional_derivatives.one_point(handle, batch, z, j, epsilon, here, only, self.measure), here

    def _move(self, estimates: Mapping[int, Mapping[int, float]], batch: Batch, here: float) -> None:
        """Move the parts that were probed, {part: {j: g / q}}, by the rule."""
        live, distances = self.handle.parameters(), {}
        for part, estimate in estimates.items():
            self.pasts[part] = zeroth_rules.advance(self.how, self.pasts[part], estimate)
            if self.dense:
                for name in self.parts[part]:
                    self._move_densely(name, live[name].data, estimate, self.pasts[part].steps)
            else:
                distances[part] = zeroth_rules.distances(self.how, self.pasts[part], self.eta)
        along = DirectionSum(self.z, {n: d for part, d in distances.items() for n in self.parts[part]})
        sign = self._best_multiple(along, batch, here) if self.how.rule == "conservative" else 1.0
        step = torch.zeros_like(self.moved)
        for d in distances.values():
            for j, distance in d.items():
                step[j] += sign * distance
        self.moved -= step
        self.straight -= step
        if sign and self.handle.weights_fixed:
            self.handle.shift_along(self.z, step)
        elif sign:
            for name in along.coefficients:
                along.add_(live[name].data, name, 0, sign)

    def _decay(self) -> None:
        """w *= keep, but for the tensors that are spared."""
        self.kept *= self.keep
        self.moved *= self.keep
        if self.handle.weights_fixed:
            self.handle.shift_along(self.z, torch.zeros_like(self.moved), self.keep)
            return
        for parameter in self.decaying:
            parameter.data.mul_(self.keep)

    def _best_multiple(self, along: DirectionSum, batch: Batch, here: float) -> float:
        """The multiple of a step with the smallest loss on the batch: 1 also on a tie, 0 or -1.

        Candidates are seen through perturbed passes, so whatever is not chosen was never moved.
        """
        here = here if math.isfinite(here) else self.measure(self.handle, batch)
        losses = {1.0: math.nan, 0.0: here, -1.0: math.nan}
        for sign in (1.0, -1.0):
            with self.handle.perturbed(cast(Directions, along), 0, sign):  # of directions, add_into is all it uses
                losses[sign] = self.measure(self.handle, batch)
        return min(losses, key=lambda sign: losses[sign] if math.isfinite(losses[sign]) else math.inf)

    def _move_densely(self, name: str, w: Tensor, estimate: Mapping[int, float], steps: int) -> None:
        """Move one tensor by a rule that leaves the span of the directions: by moments of the whole estimate."""
        ghat = torch.zeros_like(w)
        DirectionSum(self.z, {name: estimate}).add_(ghat, name, 0, 1.0)
        w.sub_(zeroth_rules.dense(self.how, name, ghat, self.moments, steps), alpha=self.eta)
