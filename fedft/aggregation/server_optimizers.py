"""Server optimisers: the mean change of a round is a pseudo-gradient, by which an optimiser moves one tensor.

    (x, Delta, memory, version)  ->  (next x, next memory)         memory: {"m": first moment, "v": second moment}

The memory is empty before the first change and never travels. `on_each` and `on_vector` make a recipe's `server` part
of an optimiser: tensor by tensor, so that what no client sent in a round keeps its x, m and v; or on all shared tensors
taken as one vector.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from fedft import check
from fedft.arithmetic import tensors
from fedft.arithmetic.lowrank import LowRank
from fedft.arithmetic.tensors import Tensors
from fedft.contract import Next, State

M, V = "m", "v"


class ServerOptimizer(Protocol):
    """A rule that moves one tensor; it has no memory but what it is given."""

    def step(self, x: Tensor, delta: Tensor, memory: Tensors, version: int) -> tuple[Tensor, dict[str, Tensor]]:
        """(the next x, the next memory), both float32; `version` is how many rounds there were before this one."""


@dataclass(frozen=True)
class FedOpt:
    """FedAdam, FedYogi, FedAdagrad or FedAvgM, from m = 0 and v = tau^2, in float32 and without bias correction.

    Reddi et al., "Adaptive Federated Optimization", ICLR 2021, arXiv:2003.00295, algorithm 2; `fedopt`'s docstring has
    the formulas, also those of `reference`. Raises ValueError for rates that are not positive or decays outside [0, 1).
    """

    optimizer: Literal["adam", "yogi", "adagrad", "momentum"]
    server_lr: float
    beta1: float
    beta2: float
    tau: float
    reference: bool = False

    def __post_init__(self) -> None:
        check.above(0, server_lr=self.server_lr, tau=self.tau)
        _decays(beta1=self.beta1, beta2=self.beta2)

    def step(self, x: Tensor, delta: Tensor, memory: Tensors, version: int) -> tuple[Tensor, dict[str, Tensor]]:
        """x + server_lr m / (sqrt(v) + tau), and m and v; FedAvgM: x + server_lr m, and m."""
        plain_sum = self.optimizer == "momentum" and not self.reference
        m = self.beta1 * memory.get(M, torch.zeros_like(delta)) + (1.0 if plain_sum else 1 - self.beta1) * delta
        if self.reference and version == 0:
            m = delta.clone()
        if self.optimizer == "momentum":
            return x + self.server_lr * m, {M: m}
        v = self._second(memory.get(V, torch.full_like(delta, self.tau**2)), (m if self.reference else delta).square())
        return x + self.server_lr * m / (v.sqrt() + self.tau), {M: m, V: v}

    def _second(self, v: Tensor, square: Tensor) -> Tensor:
        if self.optimizer == "adagrad":
            return v + square
        if self.optimizer == "adam":
            return self.beta2 * v + (1 - self.beta2) * square
        return v - (1 - self.beta2) * square * torch.sign(v - square)


@dataclass(frozen=True)
class AdamW:
    """AdamW with -Delta as its gradient, in float64, moments rounded to float32: no entry moves at a change of zero.

    Loshchilov, Hutter, "Decoupled Weight Decay Regularization", ICLR 2019, arXiv:1711.05101.
    """

    server_lr: float
    beta1: float
    beta2: float
    weight_decay: float
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        _decays(beta1=self.beta1, beta2=self.beta2)

    def step(self, x: Tensor, delta: Tensor, memory: Tensors, version: int) -> tuple[Tensor, dict[str, Tensor]]:
        """x shrunk by the weight decay and moved along bias-corrected moments; m and v."""
        x, g = x.double() * (1 - self.server_lr * self.weight_decay), -delta.double()
        zeros, t = torch.zeros_like(g), version + 1
        m = self.beta1 * memory.get(M, zeros).double() + (1 - self.beta1) * g
        v = self.beta2 * memory.get(V, zeros).double() + (1 - self.beta2) * g.square()
        step = m / (1 - self.beta1**t) / ((v / (1 - self.beta2**t)).sqrt() + self.epsilon)
        return (x - self.server_lr * step).float(), {M: m.float(), V: v.float()}


@dataclass(frozen=True)
class GradientDescent:
    """x + server_lr Delta after decoupled weight decay, in float64; nothing is remembered."""

    server_lr: float
    weight_decay: float

    def step(self, x: Tensor, delta: Tensor, memory: Tensors, version: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The next x and no memory."""
        shrunk = x.double() * (1 - self.server_lr * self.weight_decay)
        return (shrunk + self.server_lr * delta.double()).float(), {}


@dataclass(frozen=True)
class FactoredMomentum:
    """m := momentum m + (D* - D), D + server_lr m, on matrices that are kept as factors, whose ranks add up.

    Factors have no identity from round to round, so momentum acts on their product. Raises ValueError for a rate that
    is not positive or a momentum outside [0, 1).
    """

    server_lr: float
    momentum: float

    def __post_init__(self) -> None:
        check.above(0, server_lr=self.server_lr)
        _decays(momentum=self.momentum)

    def step(self, old: LowRank, wanted: LowRank, memory: LowRank | None) -> tuple[LowRank, LowRank | None]:
        """(the next D, the next m); `old` is D, `wanted` D*. At rate 1 without momentum they are (`wanted`, None)."""
        if self.server_lr == 1 and not self.momentum:
            return wanted, None
        m = wanted + -old
        if memory is not None:
            m = m + self.momentum * memory
        m = m.shortened()
        return old + self.server_lr * m, m if self.momentum else None


def on_each(optimizer: ServerOptimizer, owner: str) -> Callable[[State, Tensors], Next]:
    """A server step that moves every tensor of the change; drawer `owner` has "m.<name>" and "v.<name>"."""

    def step(state: State, change: Tensors) -> Next:
        before = state.drawer(owner)
        new, own = dict(state.tensors), dict(before)
        for n, delta in change.items():
            memory = {part: before[f"{part}.{n}"] for part in (M, V) if f"{part}.{n}" in before}
            new[n], memory = optimizer.step(state.tensors[n], delta, memory, state.version)
            own |= {f"{part}.{n}": x for part, x in memory.items()}
        return Next(new, {owner: own})

    return step


def on_vector(optimizer: ServerOptimizer, owner: str, name: str = "mean") -> Callable[[State, Tensors], Next]:
    """A server step on all shared tensors as one vector x [P] (`tensors.flat`); drawer `owner` has "m" and "v".

    The change is one vector under `name`, of which the first P entries count.
    """

    def step(state: State, change: Tensors) -> Next:
        x = tensors.flat(state.tensors)
        new, memory = optimizer.step(x, change[name][: len(x)], state.drawer(owner), state.version)
        return Next(tensors.shaped(new, {n: t.shape for n, t in state.tensors.items()}), {owner: memory})

    return step


def _decays(**betas: float) -> None:
    """Raise ValueError unless every value lies in [0, 1)."""
    for name, beta in betas.items():
        if not 0 <= beta < 1:
            raise ValueError(f"expected 0 <= {name} < 1, got {beta}")
