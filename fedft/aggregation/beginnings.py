"""Where clients begin a round: the adapter, and the base's change, that a strategy would put a model at.

Found by letting the strategy put an imaginary model there, so no strategy has code for this.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from fedft.arithmetic.named_pairs import A_SUFFIX, B_SUFFIX
from fedft.arithmetic.tensors import Tensors
from fedft.arithmetic.weight_changes import Change
from fedft.contract import Kind, Layout, State, Turn
from fedft.recipe import Recipe
from fedft.update import Plan, Shape


@dataclass
class Imaginary:
    """A `Handle` without a model: notes the base's change and the adapter that a strategy sets."""

    layout: Layout
    kind: Kind
    change: Mapping[str, Change] = field(default_factory=dict)
    values: dict[str, Tensor] = field(default_factory=dict)

    def set_base_change(self, change: Mapping[str, Change], key: str) -> None:
        """Note what the base weights act as, less w0."""
        self.change = change

    def write(self, values: Tensors, without: Collection[str] | None = None) -> None:
        """Note values of the adapter."""
        self.values.update(values)


@dataclass
class Beginnings:
    """Where the clients of one round begin, by the shape of their adapters."""

    recipe: Recipe
    layout: Layout
    """Of the base model."""
    state: State
    """That the round begins from."""
    plan: Plan
    """Any plan of the round; its shape does not count."""
    local: Any
    """The run file's `[local]`."""
    run_seed: int
    _known: dict[str, Imaginary] = field(default_factory=dict)

    def of_pairs(self) -> bool:
        """Whether clients send factors of low-rank pairs whose other half is known here."""
        sent = self.recipe.spec(self.layout, self.plan)
        factors = {m + s for m in self.layout.modules for s in (A_SUFFIX, B_SUFFIX)}
        if self.recipe.personal or not factors & sent.keys():
            return False
        try:
            return factors <= self.of(self.plan.shape).values.keys()
        except AttributeError:  # it does more with a model than to set factors and base
            return False

    def of(self, shape: Shape) -> Imaginary:
        """Where the clients of a shape begin: all with the same B A."""
        if shape.key not in self._known:
            self._known[shape.key] = self.at(self.state, shape)
        return self._known[shape.key]

    def at(self, state: State, shape: Shape) -> Imaginary:
        """Where a newcomer of this shape stands, whom any state has reached."""
        plan = replace(self.plan, round=state.version, version=state.version, rank=shape.rank, ranks=shape.ranks)
        plan = replace(plan, tensors=self.recipe.downlink(state, None, plan))
        held, noted = self.recipe.receive(None, plan), Imaginary(self.layout, self.recipe.space)
        # the draws of a client's own seed are of pairs with B = 0, or are sent back whole
        self.recipe.start(noted, Turn(plan, held, "", self.local, self.run_seed, self.run_seed))  # type: ignore[arg-type]
        return noted
