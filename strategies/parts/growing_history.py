"""States that only grow: each round adds a few numbers, and the model is the base plus what all rounds say.

state      `<version>.<name>` came with the round that led from <version> to the next
downlink   the rounds that a client lacks
receive    what it held, and those: veteran and newcomer hold the same tensors
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedft.arithmetic import tensor_file
from fedft.arithmetic.tensors import Tensors
from fedft.contract import Handle, State, Turn
from fedft.histories.rounds import History, Round, named
from fedft.update import Download, Plan, Spec, TensorSpec
from fedft.wire.table import MAX_TENSORS


def nothing_yet(layout: object, rank: int, seed: int) -> dict[str, Tensor]:
    """Version 0: no rounds; the model is the base."""
    return {}


def check_rounds(rounds: int, tensors: int) -> None:
    """Raises ValueError where a history of so many rounds, of so many tensors each, does not fit one plan."""
    if rounds * tensors > MAX_TENSORS:
        raise ValueError(
            f"[server] rounds = {rounds}: a newcomer is sent one history of at most {MAX_TENSORS // tensors}"
        )


def grow(state: State, change: Tensors) -> History:
    """The state with one more round."""
    return History.of(state.tensors).followed_by(state.version, change)


def since(state: State, have: int | None, plan: Plan) -> Tensors:
    """The rounds from version `have` on, or all of them."""
    return named(History.of(state.tensors).since(have if have is not None and have <= state.version else 0))


def download(spec: Spec, plan: Plan) -> Download:
    """What may come down where a round brings the tensors of `spec`: rounds from the client's version on."""

    def wanted(name: str) -> TensorSpec | None:
        version, _, tensor = name.partition(".")
        return spec.get(tensor) if plan.leads_from(version) else None

    return wanted


def with_news(held: State | None, plan: Plan) -> Tensors:
    """What was held up to there and the rounds that came; rounds of a state that was taken back are forgotten."""
    if held is not None and plan.have == plan.version:
        return held.tensors
    news = History.of(plan.tensors)
    if held is None or plan.have is None:
        return news
    history = History.of(held.tensors).before(min([plan.version, *(told.version for told in news.rounds)]))
    for told in news.rounds:
        history = history.followed_by(told.version, told.tensors)
    return history


def rounds(history: Tensors) -> list[tuple[int, Tensors]]:
    """(version, what its round brought) in order."""
    return [(told.version, told.tensors) for told in History.of(history).rounds]


@dataclass(eq=False)
class Replay:
    """The change that a history amounts to: float32, one round after the other, always in the same order.

    Keeps the last sum, so a client that took part in every round adds one round; the bits are those of adding all.
    It is one copy of what is trained, in a temporary file where that is large (`tensor_file.aside`).
    """

    _sum: Tensors = field(default_factory=dict)
    _shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Of the sum."""
    _done: list[Round] = field(default_factory=list)
    _seed: int | None = None

    def change(
        self,
        history: Tensors,
        shapes: Mapping[str, tuple[int, ...]],
        run_seed: int,
        add: Callable[[dict[str, Tensor], int, Tensors], None],
    ) -> Tensors:
        """The sum by name, not to be changed; `add(sum, version, round)` adds one round in place."""
        asked = History.of(history)
        if self._shapes != dict(shapes) or self._seed != run_seed or not self._begins(asked):
            self._sum = {n: torch.zeros(()).expand(shape) for n, shape in shapes.items()}  # one number in memory each
            self._shapes, self._done = dict(shapes), []
        self._seed = None  # a round added by half is not to be built on
        if news := asked.rounds[len(self._done) :]:
            total = {n: x.contiguous() for n, x in self._sum.items()}
            for told in news:
                add(total, told.version, told.tensors)
                self._done.append(told)
            self._sum = tensor_file.aside(total)
        self._seed = run_seed
        return self._sum

    def _begins(self, asked: History) -> bool:
        """Whether the rounds that were added are the first ones of this history: the very same, or equal ones."""
        if asked.follows(len(self._done), self._done[-1] if self._done else None):
            return True
        there = asked.rounds[: len(self._done)]
        known = [(told.version, told.digest) for told in self._done]
        if known != [(told.version, told.digest) for told in there]:
            return False
        self._done = there  # those are asked for from now on
        return True

    def add_to(self, handle: Handle, turn: Turn, add: Callable[[dict[str, Tensor], int, Tensors], None]) -> None:
        """Add the change that the turn's history amounts to, in the adapter's own scale, to what `handle` trains."""
        live = handle.parameters()
        shapes = {n: tuple(p.shape) for n, p in live.items()}
        for name, x in self.change(turn.held, shapes, turn.run_seed, add).items():
            live[name].data.add_(x.to(live[name].device))
