"""What one client's work takes: memory at its peak, operations, bytes each way.

    forecast = forecaster(anatomy, layout, config, recipe)
    forecast(Work(Shape(8), steps=20)).memory

Nothing large is allocated, and no model is needed. What a work leaves open is as in the run file; of LoRA's ranks the
largest.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from math import ceil, prod, sqrt
from typing import Any

from fedft.config import RunConfig
from fedft.contract import Forecast, Layout, Work
from fedft.data import micro_batches
from fedft.forecast import activations, memory, seconds
from fedft.forecast.activations import FLOAT, Learning, Pass
from fedft.forecast.anatomy import Anatomy
from fedft.forecast.learning import learning_of
from fedft.forecast.memory import Memory, Sizes
from fedft.forecast.messages import drawn_share, message_bytes
from fedft.forecast.rows import Rows
from fedft.recipe import Recipe
from fedft.training import objectives
from fedft.training.first_order import steps_within
from fedft.update import CUT, Plan, Shape, Spec, rows_at_once


def forecaster(
    anatomy: Anatomy, layout: Layout, config: RunConfig, recipe: Recipe, rows: Rows | None = None
) -> Callable[[Work], Forecast]:
    """The function that forecasts a work of this run, at a client with these rows; pure, within milliseconds.

    Args:
        anatomy: of the base model.
        layout: its trainable parts, as the recipe's kind of adapter takes them.
        config: as resolved when a run begins: `[data] max_length` and `[model] dtype` are no "auto".
        recipe: of its strategy.
        rows: what is known of the client's; None: nothing.
    """
    return Forecaster(anatomy, layout, config, recipe, rows or Rows()).forecast


@dataclass(frozen=True)
class Forecaster:
    """`forecaster` with its parts to ask for; arguments as there."""

    anatomy: Anatomy
    layout: Layout
    config: RunConfig
    recipe: Recipe
    rows: Rows = field(default_factory=Rows)
    together: int = 1
    """Clients that share a pass."""
    asked: int | None = None
    """Clients of a round, whose updates a state that grows brings down; None: as the run file says, or one."""
    found: dict[tuple[object, ...], Any] = field(default_factory=dict, compare=False, repr=False)
    """What does not depend on rows, by what it depends on, so that many clients cost little; empty for a new run."""

    def forecast(self, work: Work) -> Forecast:
        """What the work takes."""
        return Forecast(self.memory(work).peak, self.flops(work), self.up(work), self.down(work))

    def shape(self, work: Work) -> Shape:
        """The adapter's shape; where the work does not say it, of the run file's largest rank."""
        if work.shape is not None:
            return work.shape
        return Shape(0 if self.recipe.space.rank_free else max(self.config.ranks()))

    def plan(self, work: Work) -> Plan:
        """The plan that the work becomes, without tensors."""
        return work.planned(Plan("", 0, 0, steps=self.steps(work)), self.shape(work).rank)

    def steps(self, work: Work) -> int:
        """Optimiser steps of the round."""
        local = self.config.local
        return work.steps or (local.steps if self.rows.train is None else local.steps_over(self.rows.train))

    def memory(self, work: Work, *, trains: bool = True) -> Memory:
        """Bytes of the client's process at its peak, part by part; without `trains` of an evaluation at that shape."""
        learning, sizes = self._learning(work)
        apart = self.config.privacy.mode == "example-dp"
        step, pieces = self.step(work, most=apart)
        return memory.memory_of(
            self.anatomy, self.config.model, self.config.local, learning, sizes, step, self._evaluation(),
            back_propagates=self.back_propagates, pieces=pieces, bits=32 if self._float else work.bits or None,
            each=self._each, apart=step.rows if apart else 0, trains=trains,
        )  # fmt: skip

    def flops(self, work: Work) -> float:
        """Operations of all steps of the round."""
        step, pieces = self.step(work, self.rows.usual)
        passes = 1 if self.back_propagates else 2 * self._samples  # of a zeroth-order step, each forward
        return self.steps(work) * pieces * passes * self.pass_flops(work, step) / self.together

    def pass_flops(self, work: Work, given: Pass) -> float:
        """Operations of one pass, forward and, where steps are by gradients, backward."""
        learning, sizes = self._learning(work)
        adapters = sizes.learned - sizes.whole + sizes.frozen
        left = 1 - float(work.extra.get(CUT, 0.0))
        return seconds.pass_flops(self.anatomy, learning, given, adapters, backward=self.back_propagates, left=left)

    def evaluated(self, work: Work) -> float:
        """Operations of an evaluation of all rows that it measures, each of usual length."""
        e, held_out = self.config.eval, self.rows.held_out
        rows = e.batch_size if held_out is None else min(held_out, e.max_rows or held_out)
        learning, sizes = self._learning(work)
        adapters, given = sizes.learned - sizes.whole + sizes.frozen, self.pass_of(1, self.rows.usual)
        return rows * seconds.pass_flops(self.anatomy, learning, given, adapters, backward=False)

    def kept(self, work: Work, given: Pass) -> int:
        """Bytes that a pass keeps until its gradients, logits among them."""
        layers, _ = activations.kept(self.anatomy, self._learning(work)[0], given)
        return sum(layers) + activations.logits(self.anatomy, given)[0]

    def up(self, work: Work) -> int:
        """Bytes of the update, as the codec writes normal numbers."""
        found: int = self._once("up", self.plan(work), self._up)
        return found

    def _up(self, plan: Plan) -> int:
        return message_bytes(self.recipe.spec(self.layout, plan), self.config.codec.up, self._drawn)

    def down(self, work: Work) -> int:
        """Bytes of the plan that brings a client from one version to the next, in which all do such work.

        Of changes of a state as long as their codec makes any; a state that clients add up comes as all have sent it.
        """
        found: int = self._once("down", self.plan(work), self._down)
        return found

    def _down(self, plan: Plan) -> int:
        recipe, codec = self.recipe, self.config.codec
        if not recipe.replaces_what_is_held and not codec.changes:
            asked = self.asked or self.config.clients.per_round or self.config.data.clients or 1
            sent = message_bytes(recipe.spec(self.layout, plan), "fp32")
            return sent * (asked if recipe.downlink_is_increment else 1)
        return message_bytes(self._state(plan.shape), codec.changes or codec.plans)

    @property
    def _drawn(self) -> float:
        """Of the longest form of the codec of updates, what normal numbers take of it."""
        plan = self.plan(Work(steps=self.config.local.steps))
        return float(self._once("drawn", plan, self._drawn_of))

    def _drawn_of(self, plan: Plan) -> float:
        return drawn_share(self.recipe.spec(self.layout, plan), self.config.codec.up)

    @property
    def back_propagates(self) -> bool:
        """Whether local steps are by gradients; else they are forward passes."""
        return steps_within(self.recipe.local) is not None

    @property
    def _samples(self) -> int:
        """Directions of a step of a zeroth-order method."""
        found = self.config.strategy.options.get("samples", 1)
        return found if isinstance(found, int) else 1

    def _state(self, shape: Shape) -> Spec:
        """What a client of this shape holds of a state that replaces what it held."""
        return self.recipe.space.spec(self.layout, shape if self.recipe.cuts_the_state else self.shape(Work()))

    def step(self, work: Work, tokens: float | None = None, *, most: bool = False) -> tuple[Pass, int]:
        """(the pass of a piece of a step, how many pieces a step has).

        `most`: of the largest batch of a private turn, whose rows come by chance; what tests gradients has four.
        """
        local, batch = self.config.local, work.batch or self.config.local.batch_size
        if most:
            share = min(1.0, batch / self.rows.train) if self.rows.train else 0.0
            batch = max(4, ceil(batch + 3 * sqrt(batch * (1 - share))))  # of a thousand batches one has more
        rows = min(batch, local.micro_batch) if isinstance(local.micro_batch, int) else batch
        if (at_once := rows_at_once(work.extra)) is not None and self._in_pieces:
            rows = min(rows, at_once)
        return self.pass_of(rows * self.together, tokens), ceil(batch / rows)

    def pass_of(self, rows: int, tokens: float | None = None) -> Pass:
        """A pass of so many rows, each as long as the longest, or of so many tokens."""
        local, longest = self.config.local, self.rows.longest or self.config.data.length
        rows *= 2 if local.pairs else 1  # both answers
        length = round(tokens or longest)
        learned = min(length, length - 1 if self.rows.learned is None else self.rows.learned)
        return Pass(
            rows, length, rows * learned, self.rows.padded and rows > 1 and not local.packing,
            2 if self.config.model.dtype in ("bfloat16", "float16") and not self._float else FLOAT,
            local.autocast, self.config.model.lora_dropout, local.checkpointing,
        )  # fmt: skip

    @property
    def _float(self) -> bool:
        """Whether the base is put into float32, since small steps of its parameters must not be lost."""
        space = self.recipe.space
        return space.of_base and not getattr(space, "along_directions", False)

    @property
    def _each(self) -> int:
        """Bytes that terms of a step keep of each number that learns."""
        steps = steps_within(self.recipe.local)
        return sum(getattr(t, "bytes_each", 0) for t in steps.terms) if steps is not None else 0

    @cached_property
    def _in_pieces(self) -> bool:
        """Whether the run's batches can be taken in pieces."""
        return micro_batches.possible(objectives.of(self.config))

    def _evaluation(self) -> Pass | None:
        """The pass of an evaluation; None where there is none."""
        e, held_out = self.config.eval, self.rows.held_out
        rows = e.batch_size if held_out is None else min(e.batch_size, held_out, e.max_rows or held_out)
        return self.pass_of(rows) if rows else None

    def _once(self, what: str, plan: Plan, make: Callable[[Plan], Any]) -> Any:
        """What `make` gives of a plan, made once for all plans of its shape and steps."""
        key = (what, plan.shape.key, plan.chosen, plan.steps)
        if key not in self.found:
            self.found[key] = make(plan)
        return self.found[key]

    def _learning(self, work: Work) -> tuple[Learning, Sizes]:
        """What learns, and how many numbers that is."""
        found: tuple[Learning, Sizes] = self._once("learning", self.plan(work), self._learning_of)
        return found

    def _learning_of(self, plan: Plan) -> tuple[Learning, Sizes]:
        held = sum(prod(t.shape) for t in self._state(plan.shape).values())
        merged = self.recipe.downlink_is_increment and self.recipe.space.pairs and not self.config.model.base_bits
        return learning_of(self.anatomy, self.layout, self.recipe, plan, held, w0=merged)
