"""How much memory the server of a run will take at its peak, foreseen from shapes: a row of `fedft plan`.

    base        the model that is loaded, to be written with the run's result
    state       the one that is made, and the one that it comes from; of a LARGE one (32 MiB) the tensors lie in their
                file, and are there as they are read
    updates     admitted ones that wait for the sum: all of a round, up to 256 MiB; of more, or of LARGE ones, none. Two
                more are looked at and journalled meanwhile, each as its message and decoded; in float32, and above a
                MiB, they stay in their message
    sums        float64 of a mean; a stack of all factors where products are averaged; all of one tensor's entries, or
                all updates once more, for a robust rule
    error       all clients' factors, and what is multiplied of one module, where aggregation_error is measured
    process     Python, torch, transformers and peft without a model

The peak is where most of these meet: while answers come, while they are summed, when the next state is made, or when
the error is measured. Measured with `python -m fedft.benchmarks.server_memory`. Not foreseen: what a strategy keeps for
itself beside the state and its first drawers (moments of a server optimiser), and TLS.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fedft.aggregation.beginnings import Beginnings
from fedft.aggregation.entry_blocks import HELD
from fedft.aggregation.robust_rules import BY_ENTRY
from fedft.arithmetic.norms import BLOCK
from fedft.arithmetic.tensors_in_file import LARGE
from fedft.config import RunConfig
from fedft.contract import Layout
from fedft.forecast.memory import PROCESS
from fedft.forecast.messages import message_bytes
from fedft.recipe import Recipe, spec_of
from fedft.server.admitted import HELD_BYTES
from fedft.server.admitting import MOST
from fedft.server.aggregation_error import sampled
from fedft.server.disk_need import bytes_of
from fedft.server.message_sizes import first_round, largest_plans, sent_down
from fedft.update import Spec
from fedft.wire.body import LARGE as IN_MESSAGE

Parts = tuple[float, float, float, float]


@dataclass(frozen=True)
class ServerMemory:
    """Bytes of the server's process at its peak, by what they are for."""

    base: float
    state: float
    updates: float
    sums: float
    error: float
    process: float
    where: str
    """When the peak is: "answers", "sum", "state" or "error"."""

    @property
    def beside(self) -> float:
        """What a run takes beside base and process."""
        return self.state + self.updates + self.sums + self.error

    @property
    def peak(self) -> float:
        """The sum of all parts."""
        return self.base + self.process + self.beside

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values."""
        return {**asdict(self), "peak": self.peak}


def foreseen(config: RunConfig, recipe: Recipe, layout: Layout, clients: int, base: float = 0.0) -> ServerMemory:
    """What the server of a run of so many clients takes. Raises ConfigError for options that do not fit the model.

    `base`: bytes of the base model.
    """
    state, plans = first_round(config, recipe, layout, clients)
    asked = min(config.clients.per_round or clients, clients)
    counted = min(config.server.buffer or asked, asked)
    plans = sorted(largest_plans(config, recipe, plans), key=lambda p: -p.shape.largest)[:counted]
    first = bytes_of(spec_of(state.tensors)) + sum(bytes_of(spec_of(x)) for x in state.own.values())
    specs = [recipe.spec(layout, p) for p in plans]
    of = _Sizes(config, recipe, layout, specs, [p.shape.largest for p in plans], first)
    down = of.step if of.grows else message_bytes(sent_down(recipe, state, plans[0]), config.codec.plans)
    error = known = 0.0
    if config.eval.exactness and not config.privacy.on and config.privacy.secagg == "off" and not plans[0].chosen:
        begun = Beginnings(recipe, layout, state, plans[0], config.local, config.server.seed)
        if begun.of_pairs():
            error = of.factors(sampled(layout, plans[0].shape.largest, asked))
            known = of.total(config.server.rounds - 1) if of.grows and not of.resting else 0.0
    found = of.moments(down, message_bytes(specs[0], config.codec.up), error, known)
    return max((ServerMemory(base, *parts, PROCESS, where) for where, parts in found), key=lambda m: m.peak)


@dataclass(frozen=True)
class _Sizes:
    """Bytes of what the server of a run has at a time, in its last round."""

    config: RunConfig
    recipe: Recipe
    layout: Layout
    uploads: Sequence[Spec]
    """Of those whose updates make a round, the largest first."""
    ranks: Sequence[int]
    """Of the same."""
    first: float
    """Of the first state."""

    @property
    def grows(self) -> bool:
        """Whether a state is the sum of all rounds' stacks."""
        return self.recipe.downlink_is_increment and self.stacked

    @property
    def stacked(self) -> bool:
        """Whether products are averaged, as a stack of factors."""
        return self.recipe.space.pairs and not self.recipe.averages

    @property
    def step(self) -> float:
        """Of what a round adds to a state that grows."""
        return self.total(1)

    def total(self, rounds: int) -> float:
        """Of the sum of so many rounds' stacks, each in its shorter form."""
        rank = rounds * sum(self.ranks)
        return float(sum(4 * min(rank * (o + i), o * i) for o, i in self.layout.modules.values()))

    def factors(self, modules: Collection[str]) -> float:
        """Of all clients' factors of these modules, as far as they travel: one that stands still is there once."""
        whole = 4.0 * max(self.ranks) * sum(map(sum, self.layout.modules.values()))
        travels = min(1.0, bytes_of(self.uploads[0]) / whole)
        return travels * 4.0 * sum(self.ranks) * sum(sum(self.layout.modules[m]) for m in modules)

    @property
    def before(self) -> float:
        """Of the state that the last round comes from."""
        if not self.grows:
            return self.first
        total = self.total(self.config.server.rounds - 1)
        return self.first + total + min(self.step, total)

    @property
    def resting(self) -> float:
        """Of it, what is in memory and not in its file."""
        return self.before if self.before < LARGE else 0.0

    def moments(self, down: float, message: float, error: float, known: float) -> Iterator[tuple[str, Parts]]:
        """(when, (state, updates, sums, error)) of the moments that may be the peak.

        Args:
            down: of a plan.
            message: of an update, as it comes.
            error: of the factors that are kept until aggregation_error is measured; 0: it is not.
            known: of where clients began, read once more for that.
        """
        sizes = [bytes_of(x) for x in self.uploads]
        one, every = sizes[0], sum(sizes)
        tensor = max((bytes_of({n: t}) for n, t in self.uploads[0].items()), default=0)
        held = every if one < LARGE and every <= HELD_BYTES else 0
        waiting = held or (min(every, HELD_BYTES) if one < LARGE else 2 * one)
        stays = self.config.codec.up == "fp32" and message >= IN_MESSAGE
        yield "answers", (self.resting + down, waiting + (0 if stays else MOST * message), 0.0, 0.0)
        rule = self.config.robust.rule
        weighs = rule != "none" and rule not in BY_ENTRY and self.recipe.space.pairs
        change, extra = (every, one) if self.stacked else (one, one if held else 3 * tensor)
        if rule in BY_ENTRY:
            change, extra = one, min(4 * HELD, len(sizes) * tensor)
        kept = held if rule != "none" or (error and self.recipe.upload_kind == "values") else 0
        waits = max(kept, 0 if self.stacked else held)  # a stack grows as what waits goes
        sums = change + extra + (self._products() if weighs else 0.0)
        yield "sum", (self.resting, waits, sums, max(0.0, error - held) + known)
        read, new = self.resting, min(one, self.first)
        if self.grows:
            read, new = self.before, self.total(self.config.server.rounds)
        error += known
        yield "state", (read + new, 0.0, change + self._cut(), error)
        if error:
            compared = error + (held if weighs else 0.0)  # decoded for the rule, too
            yield "error", (self.resting + new, 0.0, change, compared + self._compared())

    @property
    def _largest(self) -> tuple[int, int]:
        """Outputs and inputs of the largest module."""
        return max(self.layout.modules.values(), key=sum, default=(0, 0))

    def _cut(self) -> float:
        """What is at hand of one module when the next state is made of a stack."""
        if not self.stacked:
            return 0.0
        (o, i), rank = self._largest, sum(self.ranks)
        if self.grows:
            return 8.0 * (rank * i + 3 * min(BLOCK, o * i) + o * i)  # in float64, and the matrix as it is read
        return 12.0 * rank * (o + i) + 64.0 * rank**2  # eigenvectors of rank x rank, in float64

    def _products(self) -> float:
        """What is at hand of one module when a rule compares all updates."""
        return 16.0 * sum(self.ranks) * sum(self._largest)

    def _compared(self) -> float:
        """What is at hand of one module when the error is measured: a stack, a difference, both in float64."""
        rank = sum(self.ranks) + 2 * max(self.ranks, default=0)
        return 22.0 * rank * sum(self._largest) + 16.0 * rank**2
