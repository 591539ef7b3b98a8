"""A model small enough to train in milliseconds, and a recipe on it with a few clients: what contract suites run on."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedft.arithmetic import tensors
from fedft.config import Local
from fedft.contract import Batch, Drawers, Layout, Member, Roster, State, Turn
from fedft.data.examples import IGNORED
from fedft.models.handle import ModelHandle
from fedft.pruning.groups import Groups, Part, Structure
from fedft.randomness import philox
from fedft.recipe import Recipe
from fedft.training.objectives import next_tokens
from fedft.update import Plan, Update

RUN, SEED, CLIENTS = "0123456789abcdef", 7, 3
"""Identifier of the toy's run, the run's seed, and how many clients take part unless a test says otherwise."""


class Ready:
    """A client's data (`fedft.contract.Data`) made of ready batches: each row is a whole batch."""

    def __init__(self, *batches: Batch) -> None:
        """`batches` are handed out one after the other, and then again from the first."""
        self.rows = batches

    def batch(self, rows: Sequence[Batch]) -> Batch:
        """The only one of `rows`, which is a batch already."""
        (only,) = rows
        return only

    def of_step(self, rows: Sequence[Batch], step: int) -> Batch:
        """As `batch`."""
        return self.batch(rows)

    def batches(self, turn: Turn) -> Iterator[Batch]:
        """The batches in their order, again and again without end: a local step takes as many as it wants."""
        while True:
            yield from self.rows


class ToyModel(nn.Module):
    """Two linear layers and a quadratic loss: float32, deterministic, 78 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 6), nn.Linear(6, 4, bias=False)
        with torch.no_grad():
            for name, p in self.named_parameters():
                p.copy_(philox.uniform(SEED, philox.LORA_INIT, f"toy.{name}", tuple(p.shape)) - 0.5)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> SimpleNamespace:
        """Logits [n, 4], and the mean squared error as loss where labels are given. x: [n, 8]; labels: [n, 4]."""
        y = self.second(torch.tanh(self.first(x)))
        return SimpleNamespace(logits=y, loss=None if labels is None else ((y - labels) ** 2).mean())


class ToyTokens(nn.Module):
    """An embedding and two linear layers that predict each of twelve tokens from the one before it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.first, self.second = nn.Embedding(12, 8), nn.Linear(8, 6), nn.Linear(6, 12, bias=False)
        with torch.no_grad():
            for name, p in self.named_parameters():
                p.copy_(2 * philox.uniform(SEED, philox.LORA_INIT, f"tokens.{name}", tuple(p.shape)) - 1)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None) -> SimpleNamespace:
        """Logits [n, length, 12], and the mean cross entropy as loss where labels are given.

        input_ids, attention_mask, labels: int64 [n, length]; what is IGNORED in labels is not learned.
        """
        logits = self.second(torch.tanh(self.first(self.embed(input_ids))))
        loss = (
            None if labels is None else functional.cross_entropy(logits.mT, next_tokens(labels), ignore_index=IGNORED)
        )
        return SimpleNamespace(logits=logits, loss=loss)


@dataclass(frozen=True)
class Toy:
    """A recipe on the toy model with a few clients of unlike data sizes (and ranks, where allowed)."""

    recipe: Recipe
    handle: ModelHandle
    layout: Layout
    ranks: tuple[int, ...]
    kept: dict[tuple[int, int], Drawers] = field(default_factory=dict)
    """What a client kept after a round: by (client, round)."""
    tokens: bool = False
    """Whether the model reads tokens instead of fitting numbers."""

    def state(self) -> State:
        """The recipe's state at version 0."""
        return self.recipe.first_state(self.layout, max(self.ranks), SEED)

    def plan(self, state: State, client: int, have: int | None = None, lr: float = 0.05, steps: int = 4) -> Plan:
        """The plan that the engine would send to `client`, which holds version `have` of the state."""
        ranks = self.ranks if not self.recipe.space.rank_free else [0] * len(self.ranks)
        members = {str(k): Member(rank) for k, rank in enumerate(ranks)}
        roster = Roster(members, state.version, SEED, tuple(sorted(members)))
        counted = max((r for c, r in self.kept if c == client and r < state.version), default=None)
        bare = Plan(RUN, state.version, state.version, have, steps=steps, learning_rate=lr, counted=counted)
        plan = self.recipe.plans(state, roster, bare, max(ranks))[str(client)]
        return replace(plan, tensors={**plan.tensors, **self.recipe.downlink(state, have, plan)})

    def turn(self, plan: Plan, client: int, held: State | None = None) -> Turn:
        """The client's turn after it has installed `plan` on the state `held`; the model stands at its start."""
        now = self.recipe.receive(held, plan)
        local = Local(learning_rate=plan.learning_rate)
        own = philox.derive(SEED, "client", str(client), plan.round)
        kept = self.kept[client, plan.counted] if plan.counted is not None else {}
        turn = Turn(plan, now, tensors.digest(now), local, SEED, own, kept)
        self.recipe.start(self.handle, turn)
        return turn

    def outputs(self, state: State, client: int = 0, lr: float = 0.05) -> Tensor:
        """What the model at `state` says on fixed inputs, as `client` has it: float32 [16, 4]."""
        self.turn(self.plan(state, client, lr=lr), client)
        with torch.no_grad():
            return self.handle.forward({"x": inputs("probe", 16)}).logits

    def update(self, state: State, client: int, lr: float = 0.05, steps: int = 4) -> Update:
        """The update of one client after a turn of `steps` local steps; what it keeps is remembered in `kept`."""
        plan = self.plan(state, client, lr=lr, steps=steps)
        turn = self.turn(plan, client)
        trained = self.recipe.local(self.handle, Ready(data_of(client, self.tokens)), turn)
        delta, metrics, kept = self.recipe.sent(trained, turn, self.handle)
        assert self.recipe.keeps or not kept, "a client keeps something, which is not declared"
        self.kept[client, state.version] = kept
        n = 10 * (client + 1)
        roster = len(self.ranks)
        return Update(delta, n, state.version, RUN, client=str(client), roster=roster, metrics=metrics)

    def step(self, state: State, updates: Sequence[Update]) -> State:
        """The next state: the updates aggregated, read once, and the server step."""
        change = self.recipe.aggregate(iter(updates))
        return self.recipe.next_state(state, change)

    def loss(self, state: State) -> float:
        """The state's loss, summed over the data of all clients; each has a model of its own if the recipe says so."""
        total = 0.0
        for k in range(len(self.ranks)):
            if k == 0 or self.recipe.personal:
                self.turn(replace(self.plan(state, k, steps=0), evaluate=True), k)
            with torch.no_grad():
                total += float(self.handle.loss(data_of(k, self.tokens)))
        return total


def toy(recipe: Recipe, clients: int = CLIENTS, *, tokens: bool = False, rounded: bool = False) -> Toy:
    """The recipe on a fresh toy model; clients of ranks 1, 2, 3, 1, ... where unlike ranks are allowed, else of 2.

    `tokens`: the model reads and predicts tokens instead of fitting numbers. `rounded`: its base has bfloat16's values.
    """
    model = ToyTokens() if tokens else ToyModel()
    if rounded:
        model.bfloat16().float()
    layers = {n: m.weight.shape for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    parameters = {n: tuple(p.shape) for n, p in sorted(model.named_parameters())}
    channels = (Part("first", "rows", 1), Part("second", "columns", 1))
    weights = sum(p.numel() for n, p in model.named_parameters() if n in ("first.weight", "second.weight")) // 6
    groups = Groups((Structure("feed_forward", 6, channels, (), weights),))
    layout = Layout(modules={n: (o, i) for n, (o, i) in layers.items()}, parameters=parameters, groups=groups)
    ranks = tuple(1 + k % 3 if recipe.unlike_ranks else 2 for k in range(clients))
    handle = ModelHandle(model, layout, recipe.space)
    return Toy(recipe, handle, handle.layout, ranks, tokens=tokens)


def inputs(name: str, rows: int) -> Tensor:
    """Inputs of the toy model, float32 [rows, 8] between -1 and 1: the same ones for the same name."""
    return 2 * philox.uniform(SEED, philox.LORA_INIT, f"inputs.{name}", (rows, 8)) - 1


def data_of(client: int, tokens: bool = False) -> dict[str, Tensor]:
    """The toy rows of a client, as one batch: inputs and targets, or tokens."""
    if tokens:  # the next token is this one plus the client's own step, modulo 12; the first half of a row is given
        ids = (torch.arange(6)[:, None] + (1 + client % 3) * torch.arange(8)) % 12
        labels = ids.clone()
        labels[:, :4] = IGNORED
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    x = inputs(str(client), 12)
    return {"x": x, "labels": torch.stack([x[:, 0], x[:, 1] - client / 4, x[:, 2] * x[:, 3], x[:, 4] / 2], dim=1)}
