"""Uploads of a linear strategy as one vector of integers, all that a server needs to know the sum of.

    client   u_k = summand(upload);  q_k = floor(u_k / step + v), behind it the loss      `ring`, the only tensor
    server   mean = step sum_k q_k / |U|;  aggregate([from_sum(mean)])                    every client counts once

v comes from the run's seed, so the integers of a turn are the same wherever and whenever it is taken. A vector has the
tensors of two rounds, since methods that alternate send now one part and then another: what rests is zeros.
"""

import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedft.config import RunConfig
from fedft.contract import Handle, Layout, Stage, Trained, Turn
from fedft.errors import ConfigError
from fedft.privacy.secure_sum import noisy_integers, ring
from fedft.privacy.secure_sum.context import Spec
from fedft.privacy.secure_sum.reach import LOSS, MOST_LOSS, reach
from fedft.randomness import philox
from fedft.recipe import Recipe, anything, nothing
from fedft.update import Plan, TensorSpec, Update
from fedft.update import Spec as Shapes

log = logging.getLogger(__name__)

RING = "ring"
"""The tensor of an upload: int32, or uint16 in a ring of 16 bits."""


class Mean(NamedTuple):
    """What a sum of integers comes to."""

    change: dict[str, Tensor]
    """As `Recipe.aggregate` gives it."""
    loss: float | None
    """The mean of the clients' training losses; None where they are nobody's business."""


@dataclass(frozen=True)
class Integers:
    """What becomes of a recipe's uploads: a transform at clients, and what the server makes of a sum of them."""

    recipe: Recipe
    """As it is without secure sums."""
    config: RunConfig
    stage: ClassVar[Stage] = "mask"
    keeps = False

    def spec(self, layout: Layout, plan: Plan) -> Spec:
        """Names, shapes and bounds of the vector of a client with this plan; the same in every round."""
        shapes: dict[str, tuple[int, ...]] = {}
        for number in (0, 1):
            shapes |= self._summand(layout, replace(plan, round=number, version=number))
        tensors = (*sorted(shapes.items()), (LOSS, (1,)))
        clips = tuple(reach(self.config, self.recipe, name, plan.rank or 1) for name, _ in tensors)
        privacy = self.config.privacy
        if not privacy.shared:
            return Spec(privacy.value_bits, clips, privacy.ring_bits, tensors)
        largest = (1 << (privacy.value_bits - 1)) - 1  # C in steps
        noise = noisy_integers.noise_multiplier(privacy) * largest
        return Spec(privacy.value_bits, clips, privacy.ring_bits, tensors, noise=noise)

    def _summand(self, layout: Layout, plan: Plan) -> dict[str, tuple[int, ...]]:
        """Shapes of what one upload by this plan adds to the sum."""
        found = self.recipe.summand(nothing(self.recipe.spec(layout, plan)), plan)
        if odd := sorted(n for n, x in found.items() if not x.is_floating_point()):
            raise ConfigError(f"[privacy] secagg: {self.recipe.name} adds up {odd[0]}, which holds no floats")
        return {n: tuple(x.shape) for n, x in found.items()}

    def upload(self, layout: Layout, plan: Plan) -> Shapes:
        """The one tensor that travels."""
        dtype = "int32" if self.config.privacy.ring_bits == 32 else "uint16"
        return {RING: TensorSpec((self.spec(layout, plan).length,), dtype)}

    def apply(self, trained: Trained, turn: Turn, handle: Handle) -> Trained:
        """The client's result as integers, and no metrics. Raises FloatingPointError where it is not finite.

        Where clients add noise in shares (`share`) one that is not finite is zeros, and none is longer than the clip.
        """
        spec, summand = self.spec(handle.layout, turn.plan), self.recipe.summand(trained.delta, turn.plan)
        if self.config.privacy.shared:
            summand = noisy_integers.clipped({n: x.detach().cpu() for n, x in summand.items()}, spec)
        loss = 0.0 if self.config.privacy.on else min(max(trained.metrics.get("loss", 0.0), 0.0), MOST_LOSS)
        if not (math.isfinite(loss) and all(bool(torch.isfinite(x).all()) for x in summand.values())):
            raise FloatingPointError("the update is not finite")
        numbers = {n: np.zeros(shape) for n, shape in spec.tensors}
        numbers |= {n: x.detach().cpu().numpy() for n, x in summand.items()}
        numbers[LOSS] = np.array([loss / MOST_LOSS])
        q, cut = ring.quantised(numbers, spec, philox.derive(turn.seed, "secure sum"))
        if cut:
            said = "%d of %d numbers of this update were cut: they lie beyond what secure sums carry ([privacy] range)"
            log.warning(said, cut, spec.length)
        if self.config.privacy.shared:
            noisy_integers.check_norm(q, spec)
        return Trained({RING: in_ring(q, spec.ring)}, {}, trained.kept)

    def share(self, update: Update, turn: Turn, layout: Layout) -> Update:
        """The update with this client's share of the sum's noise. Raises PlanRefused as `noisy_integers.with_share`."""
        if turn.private is None:
            raise RuntimeError("a share of noise in a turn without noise: Turn.private is None")
        spec = self.spec(layout, turn.plan)
        noisy = noisy_integers.with_share(of_ring(update.delta[RING]), spec, turn.plan, turn.private.stream)
        return replace(update, delta={RING: in_ring(noisy, spec.ring)})

    def of_measures(self, update: Update, plan: Plan, layout: Layout) -> Update:
        """An evaluation as integers: (loss / 20, accuracy, 1) and zeros, without metrics; zeros for no finite loss."""
        spec, found = self.spec(layout, plan), update.metrics
        q = np.zeros(spec.length, np.int32)
        if math.isfinite(loss := found.get("loss", math.nan)) and spec.length >= 3:
            parts = (loss / MOST_LOSS, found.get("accuracy", 0.0), 1.0)
            q[:3] = [round(min(max(x, 0.0), 1.0) * spec.largest) for x in parts]
        return replace(update, delta={RING: in_ring(q, spec.ring)}, num_examples=1, metrics={})

    def change(self, total: np.ndarray, count: float, layout: Layout, plan: Plan, like: Update) -> Mean:
        """What the mean of a sum of integers, int64, makes the round: `total` over `count`.

        `plan` and `like` are of any of those whose integers are in it.
        """
        found = ring.mean(total, self.spec(layout, plan), count)
        loss = float(found[LOSS][0]) * MOST_LOSS
        mean = {n: torch.from_numpy(found[n]).float() for n in self._summand(layout, plan)}
        update = replace(like, delta=self.recipe.from_sum(mean, plan), num_examples=1, cohort=1, metrics={})
        return Mean(self.recipe.aggregate(iter([update])), None if self.config.privacy.on else loss)


def in_ring(q: np.ndarray, ring_bits: int) -> Tensor:
    """Integers as they travel: int32, or uint16 modulo 2^16."""
    return torch.from_numpy(q) if ring_bits == 32 else torch.from_numpy(q.astype(np.int16).view(np.uint16))


def as_they_travel(masked: np.ndarray) -> Tensor:
    """Masked integers, uint32 or uint16, as the tensor of an upload."""
    return torch.from_numpy(masked.view(np.int32) if masked.dtype == np.uint32 else masked)


def masked_of(sent: Tensor) -> np.ndarray:
    """The masked integers of an upload's tensor: uint32 or uint16."""
    return sent.numpy().view(np.uint32) if sent.dtype == torch.int32 else sent.numpy()


def of_ring(sent: Tensor) -> np.ndarray:
    """The int32 integers that `in_ring` was given."""
    q = sent.numpy()
    return q if q.dtype == np.int32 else q.view(np.int16).astype(np.int32)


def secured(recipe: Recipe, config: RunConfig) -> Recipe:
    """The recipe whose uploads are integers, where the run file wants secure sums; else itself.

    Raises ConfigError, in one line, where the two do not go together.
    """
    if config.privacy.secagg == "off":
        return recipe
    if why := unfit(recipe, config):
        raise ConfigError(f"[privacy] secagg = {config.privacy.secagg!r}: {why}")
    integers = Integers(recipe, config)
    return replace(
        recipe,
        aggregate=_by_the_guard,
        uploads=(*recipe.uploads, integers),
        upload=integers.upload,
        admit=anything,
        norm=lambda delta, plan: 0.0,  # of masked numbers nothing can be said
        upload_kind="numbers",
    )


def integers_of(recipe: Recipe) -> Integers | None:
    """What `secured` has put into a recipe; None where it has not."""
    return next((t for t in recipe.uploads if isinstance(t, Integers)), None)


def _by_the_guard(updates: Iterable[Update]) -> dict[str, Tensor]:
    raise TypeError("integers are summed by the run's guard, see Integers.change")


def unfit(recipe: Recipe, config: RunConfig) -> str:
    """Why this run cannot have secure sums, beside what `fedft.privacy.unfit` finds; "" where it can."""
    if recipe.plans_work or (len(set(config.ranks())) > 1 and not recipe.space.rank_free):
        return "clients with unlike work or ranks send what has no sum; wanted one rank, and a strategy that plans none"
    if config.local.epochs is not None:
        return "[local] epochs: steps would tell how many rows a client has; wanted steps"
    if config.server.archive:
        return "[server] archive: what is masked cannot be replayed; leave it out"
    if config.limits.max_norm is not None:
        return "[limits] max_norm: nobody sees the norm of one update; leave it out, or set [privacy] range"
    if config.privacy.secagg == "on" and config.clients.devices is not None:
        return "[clients] devices: virtual devices have no part in masks; wanted 'clear', or no devices"
    try:
        reach(config, recipe, "")
    except ValueError as e:
        return f"[privacy] range: {e}"
    return ""
