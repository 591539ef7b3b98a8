"""Zeroth-order walks: steps of one client's turn by a rule (`rules.Walk`), all trained tensors together or in parts.

    for each step   g_l = slope along z with only part l moved             one scalar per part; weights stand still
                    w_l += sum_j c_j z_j                                   by the rule, from the slopes of part l

One part holds everything, unless `blocks`: then each transformer layer is one, and what is in no layer another. Parts
share the number of a direction, not its noise: streams differ by tensor name. With `coordinate` a part moves before the
next is probed. `first_order_from` leaves the layers from there on, and a head, to back-propagation through them alone;
the rest is probed before they move.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor

from fedft.contract import Batch, Data, Handle, Metrics, Turn
from fedft.randomness import philox
from fedft.randomness.directions import Directions
from fedft.randomness.hadamard import Hadamard
from fedft.training import directional_derivatives, first_order, optimizers, zeroth_rules
from fedft.training.zeroth_rules import Past, Walk

ONE_BY_ONE = 12  # a hadamard transform of all directions takes as long as adding so many of them (measured)


@dataclass(frozen=True)
class Walked:
    """A walk in numbers by direction, [K]. Steps that were skipped are in none of them."""

    moved: Tensor
    """c, float64: the walk was w := keep w - sum_j c_j z_j. Means something only in the span."""
    slopes: Tensor
    """Sums of g / q, float64."""
    count: Tensor
    """How often each was probed, int32."""
    magnitude: Tensor
    """Sums of |g|, float32."""
    keep: float
    """What weight decay left of the weights."""
    metrics: Metrics


def walk(
    handle: Handle,
    data: Data,
    turn: Turn,
    how: Walk,
    z: Directions,
    draws: Sequence[int],
    weight_decay: float = 0.0,
) -> Walked:
    """`plan.steps` steps on what `handle` trains.

    Args:
        handle, data, turn: as in `fedft.contract.LocalStep`.
        how: the rule and its constants.
        z: the directions, masked unless masks are drawn anew.
        draws: plan.steps x how.samples numbers of directions; every rule takes them in this order.
        weight_decay: lam; w *= 1 - eta lam before every step.

    Raises FloatingPointError if no step had a finite loss.
    """
    walker, batches = _Walker(handle, turn, how, z), data.batches(turn)
    keep, kept, losses = 1 - turn.plan.learning_rate * weight_decay, 1.0, []
    for s in range(turn.plan.steps):
        if how.resample and s % how.resample == 0:
            walker.z = how.masked(z, philox.derive(turn.seed, "mask", s // how.resample))
        batch = next(batches)
        if walker.deep is not None and not walker.deep.differentiate(batch):
            continue
        found: dict[int, dict[int, float]] = {}
        seen, here = [], math.nan
        for part in range(len(walker.parts)):
            if how.estimate == "one_sided" and (part == 0 or how.coordinate):
                here = walker.measure(handle, batch)
            estimate, loss = walker.probe(part, batch, draws[s * how.samples : (s + 1) * how.samples], here)
            if not estimate:
                continue
            seen.append(loss)
            found[part] = estimate
            if how.coordinate:
                walker.take(found, batch, here)
                found = {}
        if not seen:
            continue  # a skipped step is absent from the upload and from the counts
        if weight_decay:
            walker.decay(keep)
            kept *= keep
        if found:
            walker.take(found, batch, here)
        if walker.deep is not None:
            walker.deep.step()
        losses.append(sum(seen) / len(seen))
    if walker.deep is not None:
        walker.deep.forget()
    if not losses:
        raise FloatingPointError("every local step had a non-finite loss; nothing was trained")
    metrics = {"loss": sum(losses) / len(losses), "steps": float(len(losses))}
    return Walked(walker.moved, walker.slopes, walker.count, walker.magnitude, kept, metrics)


@dataclass(frozen=True)
class Along:
    """Sums of directions, {tensor: {j: c_j}}, as one that `Handle.perturbed` can add."""

    z: Directions
    distances: Mapping[str, Mapping[int, float]]

    def add_(self, out: Tensor, name: str, index: int, alpha: float, *, start: int = 0) -> None:
        """out += alpha sum_j c_j z_j, whatever the index."""
        found = {j: alpha * c for j, c in self.distances.get(name, {}).items() if c}
        if len(found) > ONE_BY_ONE and isinstance(getattr(self.z, "inner", self.z), Hadamard):
            coefficients = torch.zeros(self.z.count, dtype=torch.float64)
            for j, c in found.items():
                coefficients[j] = c
            self.z.axpy_(out, name, coefficients, start=start)
        else:
            for j, c in found.items():
                self.z.add_(out, name, j, c, start=start)

    def add_into(self, out: Tensor, x: Tensor, name: str, index: int, alpha: float, *, start: int = 0) -> None:
        """out = x + alpha sum_j c_j z_j."""
        out.copy_(x)
        self.add_(out, name, index, alpha, start=start)


class _Walker:
    """What a walk has at hand between its steps."""

    def __init__(self, handle: Handle, turn: Turn, how: Walk, z: Directions) -> None:
        self.handle, self.how, self.z, self.eta = handle, how, z, turn.plan.learning_rate
        self.measure = directional_derivatives.measured[how.objective]
        self.deep = None if how.first_order_from is None else _Deep(handle, how, turn)
        shallow = [n for n in handle.parameters() if self.deep is None or n not in self.deep.live]
        self.parts = parts(shallow) if how.blocks else [shallow]
        self.whole = len(shallow) == len(handle.parameters()) and len(self.parts) == 1
        self.pasts = [Past() for _ in self.parts]
        self.dense = how.needs_moments(zeroth_rules.signs(z))
        self.moments: dict[str, tuple[Tensor, Tensor]] = {}
        self.moved, self.slopes = torch.zeros(2, z.count, dtype=torch.float64)
        self.count, self.magnitude = torch.zeros(z.count, dtype=torch.int32), torch.zeros(z.count)

    def probe(self, part: int, batch: Batch, drawn: Sequence[int], here: float) -> tuple[dict[int, float], float]:
        """({j: g / q}, loss) of one part; {} where something is not finite. `here`: the loss as weights stand."""
        pairs = [self._slope(None if self.whole else self.parts[part], batch, j, here) for j in drawn]
        if not all(math.isfinite(x) for pair in pairs for x in pair):
            return {}, math.nan
        estimate: dict[int, float] = {}
        for j, (g, _) in zip(drawn, pairs, strict=True):
            g = max(-self.how.scalar_clip, min(self.how.scalar_clip, g))
            estimate[j] = estimate.get(j, 0.0) + g / self.how.samples
            self.slopes[j] += g / self.how.samples
            self.count[j] += 1
            self.magnitude[j] += abs(g)
        return estimate, sum(loss for _, loss in pairs) / len(pairs)

    def _slope(self, only: list[str] | None, batch: Batch, j: int, here: float) -> tuple[float, float]:
        if self.how.estimate == "forward":
            return self.handle.directional_derivative(batch, self.z, j, only=only)
        if self.how.estimate == "two_sided":
            return directional_derivatives.two_point(
                self.handle, batch, self.z, j, self.how.epsilon, only, self.measure
            )
        return directional_derivatives.one_point(
            self.handle, batch, self.z, j, self.how.epsilon, here, only, self.measure
        ), here

    def take(self, found: Mapping[int, Mapping[int, float]], batch: Batch, here: float) -> None:
        """One step of the parts that were probed."""
        live, distances = self.handle.parameters(), {}
        for part, estimate in found.items():
            self.pasts[part] = zeroth_rules.advance(self.how, self.pasts[part], estimate)
            if self.dense:
                for name in self.parts[part]:
                    self._step_densely(name, live[name].data, estimate, self.pasts[part].steps)
            else:
                distances[part] = zeroth_rules.distances(self.how, self.pasts[part], self.eta)
        along = Along(self.z, {n: d for part, d in distances.items() for n in self.parts[part]})
        sign = self._best(along, batch, here) if self.how.rule == "conservative" else 1.0
        step = torch.zeros_like(self.moved)
        for d in distances.values():
            for j, distance in d.items():
                step[j] += sign * distance
        self.moved -= step
        if sign and self.handle.weights_fixed:
            self.handle.shift_along(self.z, step)
        elif sign:
            for name in along.distances:
                along.add_(live[name].data, name, 0, sign)

    def decay(self, keep: float) -> None:
        """w *= keep."""
        self.moved *= keep
        if self.handle.weights_fixed:
            self.handle.shift_along(self.z, torch.zeros_like(self.moved), keep)
            return
        for parameter in self.handle.parameters().values():
            parameter.data.mul_(keep)

    def _best(self, along: Along, batch: Batch, here: float) -> float:
        """Which multiple of a step has the smallest loss on the batch: 1 also on a tie, 0 or -1.

        Candidates are seen through perturbed passes, so whatever is not chosen was never moved.
        """
        here = here if math.isfinite(here) else self.measure(self.handle, batch)
        losses = {1.0: math.nan, 0.0: here, -1.0: math.nan}
        for sign in (1.0, -1.0):
            with self.handle.perturbed(cast(Directions, along), 0, sign):  # of directions, add_into is all it uses
                losses[sign] = self.measure(self.handle, batch)
        return min(losses, key=lambda sign: losses[sign] if math.isfinite(losses[sign]) else math.inf)

    def _step_densely(self, name: str, w: Tensor, estimate: Mapping[int, float], steps: int) -> None:
        ghat = torch.zeros_like(w)
        Along(self.z, {name: estimate}).add_(ghat, name, 0, 1.0)
        w.sub_(zeroth_rules.dense(self.how, name, ghat, self.moments, steps), alpha=self.eta)


def layer(name: str) -> tuple[str, int] | None:
    """(path down to the number, the number) of the layer a tensor is in: its name's first component of digits."""
    path = name.split(".")
    at = next((i for i, component in enumerate(path) if component.isdigit()), None)
    return None if at is None else (".".join(path[: at + 1]), int(path[at]))


def parts(names: Sequence[str]) -> list[list[str]]:
    """Names by layer, and those of no layer together; every name once, in order of first appearance."""
    found: dict[str, list[str]] = {}
    for name in names:
        at = layer(name)
        found.setdefault(at[0] if at else "", []).append(name)
    return list(found.values())


@dataclass
class _Deep:
    """The part that is trained by back-propagation: no graph reaches below it, for nothing there asks for one."""

    handle: Handle
    how: Walk
    turn: Turn
    live: dict[str, torch.nn.Parameter] = field(init=False)

    def __post_init__(self) -> None:
        first, everything = self.how.first_order_from, self.handle.parameters()
        assert first is not None
        heads = self.handle.layout.head
        self.live = {n: p for n, p in everything.items() if n in heads or ((at := layer(n)) and at[1] >= first)}
        self._others = [p for n, p in everything.items() if n not in self.live]
        if not self.live or not self._others:
            where = "all" if self.live else "no"
            raise ValueError(f"first_order_from = {first}: {where} trained tensors are in layers from there on")
        eta = self.turn.plan.learning_rate * self.how.first_order_factor
        self._optimizer = optimizers.optimizer_of(list(self.live.values()), eta, self.turn.local)

    def differentiate(self, batch: Batch) -> bool:
        """Gradients of the deep part at its present value; whether they are finite."""
        self.forget()  # those of a step that was skipped
        with first_order.frozen(self._others):
            loss = self.handle.loss(batch)
            loss.backward()
        bound = self.turn.local.max_grad_norm or math.inf
        norm = torch.nn.utils.clip_grad_norm_(self.live.values(), bound)
        return bool(torch.isfinite(loss) and torch.isfinite(norm))

    def step(self) -> None:
        """Move by those gradients."""
        self._optimizer.step()
        self.forget()

    def forget(self) -> None:
        """Drop the gradients."""
        self._optimizer.zero_grad(set_to_none=True)
