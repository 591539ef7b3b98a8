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

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from fedft import philox, tensors
from fedft.directions import Directions
from fedft.lowrank import A_SUFFIX, B_SUFFIX, LowRank, cut, split
from fedft.tensors import Tensors
from fedft.update import Plan, Spec, TensorSpec, Update

Batch = Mapping[str, Tensor]
Metrics = dict[str, float]


@dataclass(frozen=True)
class State:
    """The server's whole memory: named tensors after `version` committed rounds."""

    version: int
    tensors: Tensors

    @cached_property
    def digest(self) -> str:
        """Of the tensors."""
        return tensors.digest(self.tensors)

    @property
    def label(self) -> str:
        """What tells it from another state of its version: a damaged generation can make a round run again."""
        return self.digest[:8]


@dataclass(frozen=True)
class Turn:
    """One client's turn in one round: all that its training may depend on besides the model and its data."""

    plan: Plan
    held: Tensors
    """The state as this client holds it."""
    held_digest: str
    """`tensors.digest` of `held`: the key of anything derived from it."""
    local: Any
    """The run's `[local]` table."""
    run_seed: int
    """The same on every machine: shared directions, frozen factors."""
    seed: int
    """This client's own in this round: order of batches, draws nobody else needs."""
    kept: Tensors = field(default_factory=dict)
    """What this client kept (`Trained.kept`) in the last round in which its update counted; nothing before that."""


@dataclass(frozen=True)
class Layout:
    """What a base model offers to training: shapes by canonical name, tied parameters once."""

    modules: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Adapted linear layers: name -> (out, in), whatever the orientation in memory."""
    head: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Parameters trained beside the adapter (a classification head); averaged whatever the LoRA rule."""
    parameters: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Every parameter of the base, for full fine-tuning."""


class Handle(Protocol):
    """A resident model as a strategy sees it. Values are unit-scale, float32, on the CPU; `w0` is the base."""

    layout: Layout

    def parameters(self) -> Mapping[str, torch.nn.Parameter]:
        """The live trained parameters by canonical name (in the adapter's own scale)."""

    def read(self) -> dict[str, Tensor]:
        """The trained tensors: factors in unit scale, any other parameter as its change since w0. Copies."""

    def write(self, values: Tensors) -> None:
        """Set factors and changes since w0; names left out stay as they are. Needs not be trained ones."""

    def reset(self) -> None:
        """Full space: every parameter back to w0, bit for bit."""

    def stand(self, change: Mapping[str, LowRank], key: str) -> None:
        """Base weights := w0 + change, summed in float32; skipped when `key` names what they already are."""

    def scale(self) -> float:
        """Unit-scale B per B as the adapter holds it (alpha / rank); 1 where there is no adapter."""

    @property
    def still(self) -> bool:
        """Full space in half precision: parameters are never written, forward passes see w0 and what it was moved by.

        In any other case they are float32, and whoever trains them writes them.
        """

    def move(self, z: Directions, coefficients: Tensor, keep: float = 1.0) -> None:
        """Where weights stand still: what is seen of all := keep x it + sum_j coefficients[j] z_j, one rounding.

        `coefficients` is float64 [K]. Raises ValueError along other directions than since the last `reset`.
        """

    def loss(self, batch: Batch) -> Tensor:
        """Mean loss over the batch's learned tokens (or rows); float32 scalar with a graph unless grad is off."""

    def predictions(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(most likely class of every row, or token of every place; what should be there, -100: not learned)."""

    def perturbed(
        self, directions: Directions, index: int, epsilon: float, *, only: Collection[str] | None = None
    ) -> AbstractContextManager[None]:
        """Inside, forward passes see trained parameters + epsilon z_index; the parameters themselves never move.

        `only`: names of those that are seen moved; the others stay where they are.
        """

    def slope(
        self, batch: Batch, directions: Directions, index: int, *, only: Collection[str] | None = None
    ) -> tuple[float, float]:
        """(<gradient of the loss, z_index>, loss) by forward-mode differentiation: exact, no graph, dropout off."""


class Space(Protocol):
    """Which parameters are trained and exchanged."""

    @property
    def kind(self) -> Literal["lora", "full"]:
        """Adapters on modules, or the parameters themselves."""

    @property
    def trained(self) -> tuple[str, ...]:
        """Endings of the names that learn."""

    def initial(self, layout: Layout, rank: int, seed: int) -> dict[str, Tensor]:
        """The trained and frozen tensors of version 0, drawn from `seed`."""

    def spec(self, layout: Layout, rank: int) -> dict[str, TensorSpec]:
        """What a client uploads that trained in this space at `rank`."""


@dataclass(frozen=True)
class LoRA:
    """Low-rank adapters on chosen modules: change of a weight = lora_B lora_A.

    `trained` names the factors that learn and travel. With A frozen it is drawn from the run's seed on every machine
    and never sent: two seeds of 8 bytes agree where gigabytes would have travelled.
    """

    trained: tuple[str, ...] = (A_SUFFIX, B_SUFFIX)
    kind: Literal["lora"] = "lora"

    def initial(self, layout: Layout, rank: int, seed: int) -> dict[str, Tensor]:
        """A uniform on +-1/sqrt(in) (peft's Kaiming bound), one Philox word per element; B zero; head changes zero."""
        found = {name: torch.zeros(shape) for name, shape in layout.head.items()}
        for m, (o, i) in layout.modules.items():
            u = philox.uniform(seed, philox.LORA_INIT, m + A_SUFFIX, (rank, i))
            found[m + A_SUFFIX] = (2 * u - 1) / i**0.5
            found[m + B_SUFFIX] = torch.zeros(o, rank)
        return found

    def spec(self, layout: Layout, rank: int) -> dict[str, TensorSpec]:
        """The trained factors at `rank`, and the head."""
        shapes = {m + A_SUFFIX: (rank, i) for m, (_, i) in layout.modules.items()}
        shapes |= {m + B_SUFFIX: (o, rank) for m, (o, _) in layout.modules.items()}
        found = {n: TensorSpec(s) for n, s in shapes.items() if n.endswith(self.trained)}
        return found | {n: TensorSpec(s) for n, s in layout.head.items()}


@dataclass(frozen=True)
class Full:
    """Every parameter of the base; values are changes since w0, so version 0 is all zeros."""

    trained: tuple[str, ...] = ("",)
    kind: Literal["full"] = "full"
    still: bool = False
    """Every step is a sum of shared directions: weights in half precision stay so, and stand still (`Handle.move`)."""

    def initial(self, layout: Layout, rank: int, seed: int) -> dict[str, Tensor]:
        """Zeros."""
        return {name: torch.zeros(shape) for name, shape in layout.parameters.items()}

    def spec(self, layout: Layout, rank: int) -> dict[str, TensorSpec]:
        """Every parameter."""
        return {name: TensorSpec(shape) for name, shape in layout.parameters.items()}


class Trained(NamedTuple):
    """What a client's turn gives."""

    delta: dict[str, Tensor]
    """`Update.delta`."""
    metrics: Metrics
    """Of the local steps: loss, steps."""
    kept: Tensors = MappingProxyType({})
    """What stays with this client and never travels: private factors, control variates, what was not sent. Its next
    turn has it if the update counted. Only where the recipe `keeps`."""


class LocalStep(Protocol):
    """A client's training between download and upload."""

    def __call__(self, handle: Handle, batches: Iterator[Batch], turn: Turn) -> Trained:
        """Take `turn.plan.steps` steps from where `handle` stands."""


Live = Mapping[str, torch.nn.Parameter]
Adjust = Callable[[Live, Turn], Callable[[], None]]
"""(the parameters that learn, turn) at the start of a turn -> what is done to their `.grad` in every step, before it is
clipped. In the adapter's own scale: B = unit-scale B x rank / alpha."""


def everything_trained(plan: Plan) -> tuple[str, ...]:
    """Endings of all names."""
    return ("",)


@dataclass(frozen=True)
class FirstOrder:
    """Back-propagation with the run's optimiser, fresh in every round.

    `send` = "delta" uploads trained - received; "value" uploads the trained tensors themselves, for strategies whose
    clients start from a draw of their own. `adjust` changes gradients (a proximal pull, a control variate); `trains`
    says which of the space's trained names learn, and are sent, in a round (endings; a head always does).
    """

    send: Literal["delta", "value"] = "delta"
    adjust: Adjust | None = None
    trains: Callable[[Plan], tuple[str, ...]] = everything_trained

    def __call__(self, handle: Handle, batches: Iterator[Batch], turn: Turn) -> Trained:
        endings, head = self.trains(turn.plan), handle.layout.head
        live = {n: p for n, p in handle.parameters().items() if n.endswith(endings) or n in head}
        received = handle.read()
        metrics = _descend(handle, live, batches, turn, self.adjust(live, turn) if self.adjust else None)
        now = {n: x for n, x in handle.read().items() if n in live}
        sent = now if self.send == "value" else tensors.sub(now, {n: received[n] for n in now})
        return Trained(sent, metrics)


def _descend(
    handle: Handle, live: Live, batches: Iterator[Batch], turn: Turn, adjust: Callable[[], None] | None
) -> Metrics:
    """`plan.steps` optimiser steps on `live`; a step whose loss or gradient is not finite is left out."""
    trained = list(live.values())
    others = [p for n, p in handle.parameters().items() if n not in live]
    optimizer = optimizer_of(trained, turn.plan.learning_rate, turn.local)
    losses = []
    with frozen(others):
        for _ in range(turn.plan.steps):
            loss = handle.loss(next(batches))
            loss.backward()
            if adjust is not None and torch.isfinite(loss) and _finite(trained):
                adjust()
            norm = torch.nn.utils.clip_grad_norm_(trained, turn.local.max_grad_norm or float("inf"))
            if torch.isfinite(loss) and torch.isfinite(norm):
                optimizer.step()
                losses.append(float(loss.detach()))
            optimizer.zero_grad(set_to_none=True)
    if not losses:
        raise FloatingPointError("every local step had a non-finite loss; nothing was trained")
    return {"loss": sum(losses) / len(losses), "steps": float(len(losses))}


@contextmanager
def frozen(parameters: Iterable[torch.nn.Parameter]) -> Iterator[None]:
    """Inside, these parameters have no gradient."""
    stopped = list(parameters)
    for p in stopped:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in stopped:
            p.requires_grad_(True)


def _finite(trained: Iterable[torch.nn.Parameter]) -> bool:
    return all(bool(torch.isfinite(p.grad).all()) for p in trained if p.grad is not None)


def optimizer_of(trained: list[torch.nn.Parameter], lr: float, local: Any) -> torch.optim.Optimizer:
    """The run's optimiser (the `[local]` table), fresh."""
    if local.optimizer == "sgd":
        return torch.optim.SGD(trained, lr=lr, momentum=local.momentum, weight_decay=local.weight_decay)
    return torch.optim.AdamW(trained, lr=lr, weight_decay=local.weight_decay)


def mean(updates: Iterable[Update]) -> dict[str, Tensor]:
    """sum_k p_k delta_k with p_k = n_k / sum n_j over those who answered; one update in memory at a time."""
    return tensors.weighted_mean((u.delta, u.num_examples) for u in updates)


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
    local: LocalStep = FirstOrder()
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
