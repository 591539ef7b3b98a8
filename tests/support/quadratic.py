"""Clients whose losses are quadratics, L_k(y) = (y - o_k)^T H_k (y - o_k) / 2: training has closed forms."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from fedft.arithmetic import tensors
from fedft.config import Local
from fedft.contract import Drawers, Layout, State, Turn
from fedft.models.handle import ModelHandle
from fedft.recipe import Recipe
from fedft.testing import Ready
from fedft.update import Plan, Update

SGD = Local(optimizer="sgd", max_grad_norm=None)


class Quadratic(nn.Module):
    """One vector y, from zero; the batch says which quadratic it is on."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.y = nn.Parameter(torch.zeros(size))

    def forward(self, h: Tensor, optimum: Tensor) -> SimpleNamespace:
        e = self.y - optimum
        return SimpleNamespace(loss=e @ h @ e / 2)


@dataclass
class Quadratics:
    """A recipe in the full space on these clients."""

    recipe: Recipe
    curvature: Sequence[Tensor]
    optimum: Sequence[Tensor]
    examples: Sequence[int] = ()
    local: Local = SGD
    kept: dict[int, Drawers] = field(default_factory=dict)

    def __post_init__(self) -> None:
        size = len(self.optimum[0])
        self.layout = Layout(parameters={"y": (size,)})
        self.handle = ModelHandle(Quadratic(size), self.layout, self.recipe.space)

    def state(self, x: Tensor | None = None) -> State:
        """Version 0, at `x`."""
        first = self.recipe.first_state(self.layout, 0, 0)
        return first if x is None else State(0, {**first.tensors, "y": x})

    def train(self, state: State, k: int, lr: float, steps: int) -> tuple[Update, Drawers]:
        """One client's turn: (update, what it would keep)."""
        plan = Plan("", state.version, state.version, steps=steps, learning_rate=lr)
        plan = replace(plan, tensors=self.recipe.downlink(state, None, plan))
        held = self.recipe.receive(None, plan)
        turn = Turn(plan, held, tensors.digest(held), self.local, 0, k, self.kept.get(k, {}))
        self.recipe.start(self.handle, turn)
        batch = {"h": self.curvature[k], "optimum": self.optimum[k]}
        trained = self.recipe.local(self.handle, Ready(batch), turn)
        delta, metrics, kept = self.recipe.sent(trained, turn, self.handle)
        n = self.examples[k] if self.examples else 1
        return Update(delta, n, state.version, roster=len(self.optimum), metrics=metrics), kept

    def round(self, state: State, lr: float, steps: int, cohort: Sequence[int] | None = None) -> State:
        """One round of `cohort`, or of all; those keep what they keep."""
        found = {k: self.train(state, k, lr, steps) for k in (range(len(self.optimum)) if cohort is None else cohort)}
        self.kept |= {k: kept for k, (_, kept) in found.items()}
        change = self.recipe.aggregate(iter([u for u, _ in found.values()]))
        return self.recipe.next_state(state, change)


def two_clients(recipe: Recipe, **options: object) -> Quadratics:
    """Two quadratics of unlike curvature and optimum."""
    h = [torch.tensor([[2.0, 0.5], [0.5, 1.0]]), torch.tensor([[0.5, 0.0], [0.0, 3.0]])]
    return Quadratics(recipe, h, [torch.tensor([1.0, -1.0]), torch.tensor([-3.0, 2.0])], **options)  # type: ignore[arg-type]


def best(q: Quadratics) -> Tensor:
    """The minimiser of sum_k p_k L_k, in float64."""
    n = q.examples or [1] * len(q.optimum)
    h = sum(w * c.double() for w, c in zip(n, q.curvature, strict=True))
    right = sum(w * c.double() @ o.double() for w, c, o in zip(n, q.curvature, q.optimum, strict=True))
    return torch.linalg.solve(torch.as_tensor(h), torch.as_tensor(right))
