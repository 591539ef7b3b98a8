"""A strategy is a `Recipe`: a frozen value naming only what is new about an algorithm; the rest has plain defaults.

    server   state = initial(layout, rank, seed)                                     version 0
             plan.tensors = downlink(state, have, plan)                       ~~>    what takes a client from `have`
    client   held = receive(held, plan)                                              to the state, a pure function
             start(handle, turn)                                                     the model stands at the state
             delta, metrics, kept = local(handle, batches, turn)              ~~>    Update; `kept` stays there
    server   change = aggregate(updates)                                             streams, roster order
             state = server(state, change)                                           version + 1

State is named tensors and nothing else: it is hashed, saved and sent as it is. Whatever is linear in what clients send
(`linear`) gets exact averaging in O(1) memory from `mean`, and later secure sums and differential privacy, for nothing.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from fedft.adapters.full import Full
from fedft.adapters.lora import LoRA
from fedft.aggregation.mean import mean
from fedft.arithmetic import tensors
from fedft.arithmetic.lowrank import cut, split
from fedft.arithmetic.tensors import Tensors
from fedft.contract import Batch, Handle, Layout, LocalStep, Metrics, Space, State, Trained, Turn
from fedft.training.first_order import FirstOrder
from fedft.update import Plan, Spec, Update

# What a strategy is written with; other names of this module are defaults of a `Recipe`'s parts.
__all__ = [
    "Batch", "FirstOrder", "Full", "Handle", "Layout", "LoRA", "LocalStep", "Metrics", "Plan", "Recipe", "Space",
    "Spec", "State", "Tensors", "Trained", "Turn", "Update", "add", "anything", "back_to_base", "cut_to_rank",
    "everything", "l2_norm", "mean", "product_norm", "replace_all", "write_all",
]  # fmt: skip


def add(state: State, change: Tensors) -> dict[str, Tensor]:
    """state + change on the names that changed."""
    return {**state.tensors, **{n: state.tensors[n] + d for n, d in change.items()}}


def everything(state: State, have: int | None, plan: Plan) -> Tensors:
    """The whole state, or nothing when the client already stands there."""
    return {} if have == state.version else state.tensors


def cut_to_rank(state: State, have: int | None, plan: Plan) -> Tensors:
    """The whole state with its factors cut to the client's rank: the first rows of A, the first columns of B."""
    return {} if have == state.version else cut(state.tensors, plan.rank)


def replace_all(held: State | None, plan: Plan) -> Tensors:
    """What came down is what the client now holds; nothing came: it holds what it held."""
    return held.tensors if held is not None and plan.have == plan.version else plan.tensors


def write_all(handle: Handle, turn: Turn) -> None:
    """The trained tensors start at the state."""
    handle.write(turn.held)


def back_to_base(handle: Handle, turn: Turn) -> None:
    """The model at w0: parameters bit for bit, or the adapter at the run's seeded A and B = 0."""
    handle.reset()
    if handle.layout.modules:
        handle.write(LoRA().initial(handle.layout, turn.plan.rank, turn.run_seed))


def anything(delta: Tensors, plan: Plan) -> None:
    """No rule beyond the spec."""


def l2_norm(delta: Tensors, plan: Plan) -> float:
    """Of all floats taken as one vector."""
    return tensors.norm({n: x for n, x in delta.items() if x.is_floating_point()})


def product_norm(delta: Tensors, plan: Plan) -> float:
    """Of the products B A and of everything that is no pair: where only products reach the state."""
    pairs, rest = split(delta)
    return (sum(d.norm() ** 2 for d in pairs.values()) + l2_norm(rest, plan) ** 2) ** 0.5


def as_configured(state: State, client: str, rank: int) -> int:
    """The rank that the run file gives this client."""
    return rank


def any_run(config: Any) -> None:
    """No rule about the run file."""


@dataclass(frozen=True)
class Recipe:
    """The parts of an algorithm; see the module docstring for when each is called."""

    name: str
    space: Space
    aggregate: Callable[[Iterable[Update]], dict[str, Tensor]] = mean
    """Updates -> change; reads them once, in roster order. You need one wherever the mean of deltas is not the rule."""
    local: LocalStep = field(default_factory=FirstOrder)
    """What a client does; `FirstOrder(send="value")` where it starts from a draw of its own instead of the state."""
    initial: Callable[[Layout, int, int], Tensors] | None = None
    """(layout, largest rank, seed) -> tensors of version 0; default: the space's."""
    server: Callable[[State, Tensors], Tensors] = add
    """(state, change) -> tensors of the next version: server optimisers, merges, pools."""
    downlink: Callable[[State, int | None, Plan], Tensors] = everything
    """(state, version the client holds or None, plan) -> what it must receive. Needed where ranks differ, or where the
    state grows and only the news should travel; then `receive` must lead to the same tensors by either way."""
    receive: Callable[[State | None, Plan], Tensors] = replace_all
    """(what the client held or None, plan with what came) -> what it holds now."""
    start: Callable[[Handle, Turn], None] = write_all
    """Put the model at `turn.held`. Needed where that is more than writing the trained tensors."""
    upload: Callable[[Layout, Plan], Spec] | None = None
    """What a client uploads; default: what the space trains."""
    admit: Callable[[Tensors, Plan], None] = anything
    """Raises RejectedUpdate for a delta that fits the spec and breaks the strategy's own rule."""

    rank: Callable[[State, str, int], int] = as_configured
    """(state, client, rank of the run file) -> its LoRA rank in this round, for strategies that change it."""
    check: Callable[[Any], None] = any_run
    """(RunConfig) raises ValueError with the reason where the run file makes no sense with this strategy."""

    linear: bool = True
    """The server needs only weighted sums of what is sent."""
    ring_summable: bool = False
    """What is sent can be summed as integers under masks (needs equal shapes for all clients)."""
    reveals_clients: bool = False
    """What is broadcast shows single clients' tensors."""
    unlike_ranks: bool = False
    """Clients may have different LoRA ranks."""
    sends: Literal["changes", "values", "numbers"] = "changes"
    """What uploads are: changes of named tensors; their values (`send="value"`); or other numbers (scalars, lists)."""
    norm: Callable[[Tensors, Plan], float] = l2_norm
    """(upload, plan) -> how large it is, for the limits on what one client may move."""
    adds_downloads: bool = False
    """Clients add up what comes down, so it must come as it is: codec.down = "fp32"."""
    evaluates_apart: bool = False
    """A model is evaluated from other tensors than it is trained from (plans of no steps): neither is kept for both."""
    keeps: bool = False
    """Clients keep something for themselves between rounds (`Trained.kept`)."""
    personal: bool = False
    """A client's model is the state and what it keeps: there is no single global model, evaluation is per client."""

    def spec(self, layout: Layout, plan: Plan) -> Spec:
        """Names, shapes and dtypes of what a client with this plan uploads."""
        return self.upload(layout, plan) if self.upload else self.space.spec(layout, plan.rank)

    def first_state(self, layout: Layout, rank: int, seed: int) -> State:
        """Version 0."""
        make = self.initial or self.space.initial
        return State(0, make(layout, rank, seed))
