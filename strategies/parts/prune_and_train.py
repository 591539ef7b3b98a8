"""A client's turn that prunes and trains by turns: a slice of groups goes, some steps repair the damage.

    every step   importance of each group by the adapter's gradients, smoothed (`fedft.pruning.importance`)
    due          the least important groups go, at most 2 % of the weights: masks are set, their part of the adapter 0
    sent         factors in coordinates of what the client had at the turn's start, 0 where it has pruned since;
                 `kept`, a bit for each group, if anything was pruned in this turn (else empty)

What a turn prunes is switched off by masks on activations: no weight of the base is touched. What was pruned before
it is, too, so that the turn costs what it costs without pruning; or it is cut away for the length of the turn, which
then takes less time and leaves the same values but for rounding.

The metrics `loss.before` and `loss.after` are of the client's first records, the same in every round; `sparsity` is the
share of the groups' weights that is pruned, `parameters` how many numbers of groups and adapter are left.
"""

import math
from dataclasses import dataclass, field
from typing import Protocol, cast
from weakref import WeakKeyDictionary

import torch
from torch import nn

from fedft.pruning.cut_adapters import cut, scattered
from fedft.pruning.importance import Importance, Sums
from fedft.pruning.kept import Kept
from fedft.pruning.masks import Masks, masked, zero_pruned
from fedft.pruning.schedule import SLICE, next_kept
from fedft.pruning.slices import sliced
from fedft.recipe import Batch, Course, Data, FirstOrder, Handle, Learning, Trained, Turn, write_all
from fedft.strategies.parts.pruned_clients import KEPT, NO_GROUPS, OWNER, kept_of
from fedft.strategies.parts.ratio_and_rank import AFTER, BEFORE, RATIO, warming

INTERVAL = 20
"""Steps between two slices: the paper's best; fewer where a turn has not that many."""


class _WithModel(Protocol):
    @property
    def model(self) -> nn.Module: ...


@dataclass(frozen=True)
class PruneAndTrain:
    """The parts of a recipe that stand at the client: where its model starts, and its local step."""

    steps: FirstOrder = field(default_factory=lambda: FirstOrder("value"))
    prunes: bool = True
    """Whether there is anything to prune; else it is ordinary training."""
    slices: bool = False
    """Whether what was pruned before a turn is cut away in it."""
    _masks: "WeakKeyDictionary[nn.Module, Masks]" = field(default_factory=WeakKeyDictionary, compare=False)

    def start(self, handle: Handle, turn: Turn) -> None:
        """Put the adapter at what came down, in full coordinates, and switch off what this client has pruned."""
        if not self.prunes:
            write_all(handle, turn)
            return
        had, kept = self._kept(handle, turn)
        handle.write(scattered({n: x for n, x in turn.held.items() if n != KEPT}, had))
        zero_pruned(handle.adapter(), kept)
        self._switch_off(model_of(handle), kept)

    def __call__(self, handle: Handle, data: Data, turn: Turn) -> Trained:
        """Take `turn.plan.steps` steps from where the model stands, pruning up to the plan's ratio on the way."""
        if not self.prunes:
            return self.steps(handle, data, turn)
        records = data.batch(data.rows[: turn.local.batch_size])
        before, model, (had, kept) = _loss(handle, records), model_of(handle), self._kept(handle, turn)
        if self.slices:
            self._masks.pop(model).remove()  # they are as wide as the whole model
            with sliced(model, kept), masked(model, kept, kept) as masks:
                trained = self._trained(Pruning(handle, masks, had, kept, kept), data, turn)
        else:
            trained = self._trained(Pruning(handle, self._masks[model], had, kept), data, turn)
        self._switch_off(model, kept_of(kept.groups, trained.kept[OWNER][KEPT]))
        return trained._replace(metrics={**trained.metrics, BEFORE: before, AFTER: _loss(handle, records)})

    def _trained(self, pruning: "Pruning", data: Data, turn: Turn) -> Trained:
        """What the steps give that prune on their way."""
        return self.steps.with_term(pruning)(pruning.handle, data, turn)

    def _switch_off(self, model: nn.Module, kept: Kept) -> None:
        """Switch off in the model what is not kept, and nothing else; whoever trained on it before."""
        if model in self._masks:
            self._masks[model].set(kept)
        else:
            self._masks[model] = Masks(model, kept)

    def _kept(self, handle: Handle, turn: Turn) -> tuple[Kept, Kept]:
        """What the client has by what came down, in whose coordinates tensors travel; and what it has."""
        groups = handle.layout.groups or NO_GROUPS
        had = kept_of(groups, turn.held.get(KEPT))
        return had, had & kept_of(groups, turn.drawer(OWNER).get(KEPT))


def due(steps: int, slices: int, warm: int) -> list[int]:
    """Before which steps' ends a slice goes, ascending; a step may have several where there are few.

    Args:
        steps: of the turn.
        slices: that are to go.
        warm: steps of the turn in which nothing goes.

    >>> due(100, 3, 20), due(8, 3, 2), due(2, 3, 0), due(5, 3, 20)
    ([20, 40, 60], [2, 4, 6], [0, 1, 1], [])
    """
    if (room := steps - warm) <= 0:
        return []
    apart = max(1, min(INTERVAL, room // max(1, slices)))
    return [warm + min(n * apart, room - 1) for n in range(slices)]


@dataclass(frozen=True)
class Pruning:
    """A term (`fedft.contract.Term`) that prunes up to the plan's ratio in one turn of one client."""

    handle: Handle
    masks: Masks
    """In the model, set to `kept`."""
    had: Kept
    """In whose coordinates the result is sent."""
    kept: Kept
    """At the turn's start: as `had`, or less."""
    within: Kept | None = None
    """What the model is cut to; None: it is whole."""

    def begin(self, learning: Learning, turn: Turn) -> Course:
        """The term's part in the turn."""
        return _Slices(self, learning, turn)


class _Slices(Course):
    def __init__(self, pruning: Pruning, learning: Learning, turn: Turn) -> None:
        self._of, self._kept, self._step = pruning, pruning.kept, 0
        self._sums = Sums(pruning.kept.groups)
        self._reading = Importance(model_of(pruning.handle), self._sums, pruning.within).begin(learning, turn)
        said = float(turn.plan.extra.get(RATIO, 0.0))
        self._ratio = min(1.0, max(0.0, said))  # no server of ours says more, and each slice takes its time
        slices = max(0, math.ceil((self._ratio - pruning.kept.ratio) / SLICE - 1e-9))
        self._due = due(turn.plan.steps, slices, warming(turn.plan.round, turn.plan.steps))

    def step(self) -> None:
        """Read the gradients while there is something to prune; prune what is due."""
        if not self._due:
            return
        self._reading.step()
        before = self._kept
        while self._due and self._due[0] <= self._step:
            del self._due[0]
            self._kept = next_kept(self._kept, self._sums.scores(self._kept), self._ratio)
        self._step += 1
        if self._kept is not before:
            self._of.masks.set(self._kept)
            zero_pruned(self._of.handle.adapter(), self._kept, self._of.within)

    def finish(self, trained: Trained, handle: Handle) -> Trained:
        """The factors as they are sent, `kept` if it changed, and what the client keeps for itself."""
        zero_pruned(handle.adapter(), self._kept, self._of.within)  # momentum goes on to move what has no gradient
        whole = trained.delta if self._of.within is None else scattered(trained.delta, self._of.within)
        left = cut(whole, self._kept)
        words, had = self._kept.words(), self._of.had
        said = words if self._kept != had else words[:0]
        sent = {**cut(scattered(left, self._kept), had), KEPT: said}
        numbers = int(had.groups.weights[self._kept.bits].sum()) + sum(x.numel() for x in left.values())
        metrics = {**trained.metrics, "sparsity": self._kept.ratio, "parameters": float(numbers)}
        return Trained(sent, metrics, {**trained.kept, OWNER: {KEPT: words}})


def model_of(handle: Handle) -> nn.Module:
    """The live torch model of a handle that is one on a whole model."""
    return cast("_WithModel", handle).model


def _loss(handle: Handle, batch: Batch) -> float:
    """The loss of a batch under the model as it stands."""
    with torch.no_grad():
        return float(handle.loss(batch))
