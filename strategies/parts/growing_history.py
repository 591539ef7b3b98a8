"""States that only grow: each round adds a few numbers, and the model is the base plus what all rounds say.

state      `<version>.<name>` came with the round that led from <version> to the next
downlink   the rounds that a client lacks
receive    what it held, and those: veteran and newcomer hold the same tensors
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedft.arithmetic import tensors
from fedft.arithmetic.tensors import Tensors
from fedft.contract import Handle, State, Turn
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


def grow(state: State, change: Tensors) -> dict[str, Tensor]:
    """The state with one more round."""
    return {**state.tensors, **{f"{state.version}.{n}": x for n, x in change.items()}}


def since(state: State, have: int | None, plan: Plan) -> dict[str, Tensor]:
    """The rounds from version `have` on, or all of them."""
    first = have if have is not None and have <= state.version else 0
    return {n: x for n, x in state.tensors.items() if _version(n) >= first}


def download(spec: Spec, plan: Plan) -> Download:
    """What may come down where a round brings the tensors of `spec`: rounds from the client's version on."""

    def wanted(name: str) -> TensorSpec | None:
        version, _, tensor = name.partition(".")
        return spec.get(tensor) if plan.leads_from(version) else None

    return wanted


def with_news(held: State | None, plan: Plan) -> Tensors:
    """What was held up to there and the rounds that came; rounds of a state that was taken back are forgotten."""
    if held is None or plan.have is None:
        return plan.tensors
    if plan.have == plan.version:
        return held.tensors
    return {**{n: x for n, x in held.tensors.items() if _version(n) < plan.version}, **plan.tensors}


def rounds(history: Tensors) -> list[tuple[int, dict[str, Tensor]]]:
    """(version, what its round brought) in order."""
    found: dict[int, dict[str, Tensor]] = {}
    for key, x in history.items():
        found.setdefault(_version(key), {})[key.partition(".")[2]] = x
    return sorted(found.items())


def _version(key: str) -> int:
    return int(key.partition(".")[0])


@dataclass(eq=False)
class Replay:
    """The change that a history amounts to: float32, one round after the other, always in the same order.

    Keeps the last sum, so a client that took part in every round adds one round; the bits are those of adding all.
    Its memory is one copy of what is trained.
    """

    _sum: dict[str, Tensor] = field(default_factory=dict)
    _done: list[tuple[int, str]] = field(default_factory=list)
    _seed: int | None = None

    def change(
        self,
        history: Tensors,
        shapes: Mapping[str, tuple[int, ...]],
        run_seed: int,
        add: Callable[[dict[str, Tensor], int, Tensors], None],
    ) -> dict[str, Tensor]:
        """The sum by name, not to be changed; `add(sum, version, round)` adds one round in place."""
        news = [(version, tensors.digest(x), x) for version, x in rounds(history)]
        asked = [(version, digest) for version, digest, _ in news]
        fits = {n: tuple(x.shape) for n, x in self._sum.items()} == dict(shapes) and self._seed == run_seed
        if not fits or self._done != asked[: len(self._done)]:
            self._sum = {n: torch.zeros(shape) for n, shape in shapes.items()}
            self._done = []
        self._seed = None  # a round added by half is not to be built on
        for version, digest, x in news[len(self._done) :]:
            add(self._sum, version, x)
            self._done.append((version, digest))
        self._seed = run_seed
        return self._sum

    def add_to(self, handle: Handle, turn: Turn, add: Callable[[dict[str, Tensor], int, Tensors], None]) -> None:
        """Add the change that the turn's history amounts to, in the adapter's own scale, to what `handle` trains."""
        live = handle.parameters()
        shapes = {n: tuple(p.shape) for n, p in live.items()}
        for name, x in self.change(turn.held, shapes, turn.run_seed, add).items():
            live[name].data.add_(x.to(live[name].device))
