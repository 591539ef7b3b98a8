"""Bytes of a client's process at its peak, part by part.

    base         4 bytes a number, 2 in half precision; those that are packed 1.031 (8 bits) or 0.5159 (4 bits)
    adapter      its numbers in float32; what learns also as it stood when the turn began, and as it came from the
                 server (of parameters of the base: w0 and what came, see `fedft.models.starting_values`)
    optimizer    its moments and what terms of a step keep, beside the gradients
    activations  `activations.kept`, and what the layer at hand holds for a moment
    logits       of learned places, and of their gradients
    process      Python, torch, transformers and peft without a model

The peak of a step is where activations and gradients together are most: gradients come from the last layer to the first
as activations go. It may also be the optimiser's step, an evaluation, or the result beside what was received. Measured
with `python -m fedft.benchmarks.forecast`: see there by how much it is off. On a CPU it is that of a malloc that gives
large blocks back (MALLOC_MMAP_THRESHOLD_=65536); glibc's own may keep half as much again of freed activations.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from fedft.config import Local, Model
from fedft.forecast.activations import FLOAT, Learning, Pass, kept, logits
from fedft.forecast.anatomy import ACTIVATIONS, Anatomy
from fedft.registry import named
from fedft.training.objectives import AT_ONCE

PACKED = {8: 1 + 2 / 64, 4: 1 / 2 + 1 / 64 + 4 / (64 * 256)}
"""Bytes of a number in so many bits, with its share of the scales of its block, see `nf4` and `int8_blocks`."""
MOMENTS = {
    **dict.fromkeys(("adamw", "adam", "adamax", "nadam", "radam", "paged_adamw", "schedule_free_adamw"), 8),
    **dict.fromkeys(("rmsprop", "adagrad", "muon", "schedule_free_sgd"), 4),
    **dict.fromkeys(("adamw_8bit", "paged_adamw_8bit"), 2),
    **dict.fromkeys(("lion_8bit", "paged_lion_8bit"), 1),
    **dict.fromkeys(("sgd", "adafactor"), 0),
}
"""Bytes that an optimiser remembers of a number; of others 8 are taken."""
PROCESS = 390e6
"""Resident bytes with everything imported and one pass of a tiny model done, measured under torch 2.13 for CPUs."""
CUDA_PROCESS = 0.5e9
"""Of a card that its context takes; not measured."""


@dataclass(frozen=True)
class Sizes:
    """Numbers of a client's adapter, of what learns, and of what came from the server."""

    learned: int
    """That get gradients."""
    largest: int
    """Of `learned`, in the largest tensor."""
    frozen: int = 0
    """Of the adapter, that are in passes and do not learn."""
    received: int = 0
    """That the client holds of the state."""
    by_layer: Sequence[int] = ()
    """Of `learned`, in each of the model's layers; the rest is behind them."""
    whole: int = 0
    """Of `learned`, that are parameters of the base: their w0 stands beside them."""


@dataclass(frozen=True)
class Memory:
    """Bytes of a client's process at its peak, by what they are for."""

    base: float
    adapter: float
    optimizer: float
    activations: float
    logits: float
    process: float
    where: str
    """When the peak is: "step", "optimizer", "evaluation" or "result"."""

    @property
    def peak(self) -> float:
        """The sum of all parts."""
        return self.base + self.adapter + self.optimizer + self.activations + self.logits + self.process


def base_bytes(of: Anatomy, bits: int) -> float:
    """Bytes of the base in so many bits of each frozen weight: 32, 16, 8 or 4; of the last two the rest is float32."""
    if bits >= 16:
        return of.parameters * bits / 8
    return PACKED[bits] * of.packed + FLOAT * (of.parameters - of.packed)


def moments(local: Local) -> int:
    """Bytes that the optimiser of a `[local]` table remembers of each number that learns."""
    name = named(local.optimizer, "optimizer")[0]
    return MOMENTS.get(name, 8) + (FLOAT if name == "sgd" and local.momentum else 0)


def memory_of(
    of: Anatomy, model: Model, local: Local, learning: Learning, sizes: Sizes, step: Pass, measured: Pass | None,
    *, back_propagates: bool = True, pieces: int = 1, bits: int | None = None, each: int = 0, apart: int = 0,
    trains: bool = True,
) -> Memory:  # fmt: skip
    """Memory of a client's process at its peak over a turn of training and, where there is one, of evaluation.

    Args:
        of: the base model.
        model, local: the run's tables.
        learning: what learns.
        sizes: how many numbers that is.
        step: the pass of one step, or of a piece of it.
        measured: the pass of an evaluation; None: there is none.
        back_propagates: whether steps do; else they are forward passes alone.
        pieces: how many passes a step has.
        bits: of the base's frozen weights; None: the run's.
        each: bytes that terms of a step keep of each number that learns, beside the optimiser.
        apart: rows of a pass whose gradients are kept by themselves, as `[privacy] example-dp` clips them; 0: none.
        trains: whether the turn trains; else it is an evaluation alone.
    """
    base = base_bytes(of, bits or model.bits)
    process = PROCESS if model.device.startswith("cpu") else CUDA_PROCESS
    start = sizes.learned - sizes.whole  # what a turn began with; of the base's parameters it is w0 and what came
    values = start + sizes.frozen + sizes.received + sizes.whole
    state = (moments(local) + each) * sizes.learned
    found: list[Memory] = []

    def moment(where: str, adapter: int, optimizer: float, activations: float, of_logits: float = 0) -> None:
        found.append(Memory(base, FLOAT * (values + adapter), optimizer, activations, of_logits, process, where))

    if not trains:
        moment("evaluation", 0, 0, 0)
    elif back_propagates:
        cast = 2 * of.packed if step.autocast else 0  # of weights, kept until gradients
        for gradients, activations, of_logits in _backward(of, learning, sizes, step, pieces, apart):
            moment("step", start, state + FLOAT * gradients, cast + activations, of_logits)
        moment("optimizer", start, state + FLOAT * (sizes.learned + 2 * sizes.largest), 0)
    else:
        for activations, of_logits in _forward(of, learning, step):
            moment("step", start + of.largest, 0, activations, of_logits)
    for activations, of_logits in _forward(of, learning, measured) if measured is not None else ():
        moment("evaluation", 0, 0, activations, of_logits)
    if trains:
        moment("result", start + sizes.learned + sizes.largest, 0, 0)
    return max(found, key=lambda m: m.peak)


def _forward(of: Anatomy, learning: Learning, given: Pass) -> list[tuple[float, float]]:
    """(bytes of the layer at hand, bytes of logits) at the two moments of a pass without gradients that may be most.

    Beside the feed-forward part's own vectors an adapted layer holds what the adapter gives, before and after scaling.
    """
    adapted = any(p.role == "feed_in" for parts in learning.inside(of)[:1] for p, rank in parts if rank)
    feed = of.feed_forward * (1 + 2 * (of.gated or ACTIVATIONS.get(of.activation, 2) > 1) + 2 * adapted)
    attention = 3 * of.queries + 2 * of.keys + (2 * of.heads * given.tokens if of.attention == "eager" else 0)
    layer = given.places * (given.width * max(feed, attention) + 2 * of.hidden * given.stream)
    numbers = given.learned * of.vocabulary
    wide = FLOAT if given.width == FLOAT else 2 * FLOAT  # log-softmax, of a copy in float32
    return [(layer, 0), (0, given.width * numbers + wide * min(numbers, AT_ONCE))]


def _backward(
    of: Anatomy, learning: Learning, sizes: Sizes, given: Pass, pieces: int, apart: int
) -> list[tuple[int, float, float]]:
    """(numbers with gradients, bytes of activations, bytes of logits) at the moments of a pass that may be its peak.

    The output's gradient comes first; then layer by layer, the last one first, activations go and gradients come. Those
    of rows by themselves are all there when they are summed, beside the sum over the pieces before.
    """
    layers, again = kept(of, learning, given)
    of_logits, beside = logits(of, given)
    dropped = of.attention_dropout > 0
    shares = 2 * of.heads * given.tokens if of.attention == "eager" or dropped else 0
    freed = of.feed_forward * (ACTIVATIONS.get(of.activation, 2) + 2 * of.gated)  # when attention has its turn
    at_hand = given.places * given.width * max(1.6 * of.feed_forward, 3 * of.queries + shares - freed)
    earlier = sizes.learned if pieces > 1 else 0
    done, left = sizes.learned - sum(sizes.by_layer), float(sum(layers))
    found: list[tuple[int, float, float]] = [(earlier, left, of_logits + beside)]
    for kept_here, learned in zip(reversed(layers[:-1]), reversed(sizes.by_layer), strict=True):
        if kept_here:
            there = earlier + apart * done if apart else max(earlier, done)
            found.append((there, left + again + at_hand, 0))
        done, left = done + learned, left - kept_here
    if apart:
        found.append((earlier + (apart + 1) * sizes.learned, 0, 0))
    return found
