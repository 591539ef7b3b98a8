"""FedOpt: the mean change of the clients is a pseudo-gradient for an adaptive optimiser at the server.

    Delta = sum_k p_k (y_k - x)
    m := b1 m + (1 - b1) Delta                                                      Delta^2 etc. element by element
    FedAdagrad   v := v + Delta^2
    FedAdam      v := b2 v + (1 - b2) Delta^2
    FedYogi      v := v - (1 - b2) Delta^2 sign(v - Delta^2)
                 x := x + eta_g m / (sqrt(v) + tau)
    FedAvgM      m := b1 m + Delta,   x := x + eta_g m

from m = 0 and v = tau^2, without bias correction. Clients and bytes are the wrapped method's: m and v are the server's
own, from the first change on, and never travel. What no client sent in a round keeps its x, m and v. On LoRA factors
the steps are element-wise, hence depend on the basis of the pairs.

`variant="reference"` is what a widely used published code computes: v of m in place of Delta; m = Delta in the first
round; FedAvgM's m an exponential mean, as the others'; and the adaptive ones average clients uniformly.

Reddi et al., "Adaptive Federated Optimization", ICLR 2021, arXiv:2003.00295.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from fedft import check
from fedft.aggregation.mean import mean, uniform_mean
from fedft.arithmetic.tensors import Tensors
from fedft.recipe import Next, Recipe, State
from fedft.strategies.parts.wrapping import On, wrapped
from fedft.training.first_order import gradient_steps

OWNER, M, V = "fedopt", "m.", "v."


def fedopt(
    *,
    optimizer: Literal["adam", "yogi", "adagrad", "momentum"] = "adam",
    server_lr: float | None = None,
    beta1: float | None = None,
    beta2: float = 0.99,
    tau: float = 1e-3,
    on: On = "fedit",
    variant: Literal["exact", "reference"] = "exact",
) -> Recipe:
    """A server optimiser on another method that averages changes.

    Args:
        optimizer: `adam`, `yogi`, `adagrad` or `momentum` (FedAvgM).
        server_lr: eta_g; left out, 0.01, about the largest step of an entry, and for momentum 1 - beta1: the same Delta
            in all rounds then moves x by Delta in each (1 with `reference`, whose m is a mean already).
        beta1: decay of m; left out, 0.9, and 0 for adagrad.
        beta2: decay of v of adam and yogi.
        tau: how adaptive: entries whose changes are below it are not scaled up to equal steps.
        on: the method that is wrapped: its name, or a table of its name and options (in Python a Recipe will do).
        variant: `exact`, or `reference` for the published code's formulas.
    """
    check.one_of(("adam", "yogi", "adagrad", "momentum"), optimizer=optimizer)
    check.one_of(("exact", "reference"), variant=variant)
    b1 = beta1 if beta1 is not None else 0.0 if optimizer == "adagrad" else 0.9
    usual = 0.01 if optimizer != "momentum" else 1.0 if variant == "reference" else 1 - b1
    eta = usual if server_lr is None else server_lr
    for name, beta in {"beta1": b1, "beta2": beta2}.items():
        if not 0 <= beta < 1:
            raise ValueError(f"expected 0 <= {name} < 1, got {beta}")
    check.above(0, server_lr=eta, tau=tau)
    inner, step = wrapped(on), Optimizer(optimizer, eta, b1, beta2, tau, variant == "reference")
    steps = gradient_steps(inner.local)
    sends_values = inner.upload_kind != "changes" or (steps is not None and steps.send == "value")
    if sends_values or not (inner.averages and inner.adds):
        raise ValueError(
            f"fedopt cannot be on {inner.name}: its server does more, or less, than add the mean of all changes to one"
            " x; stacked factors have no identity from round to round, so there a server optimiser must act on the"
            " dense change (flexlora's momentum option)"
        )
    # what is beside x, as control variates are, has a rule of its own
    recipe = inner.with_server(inner, step) if inner.with_server else replace(inner, server=step)
    recipe = replace(recipe, name="fedopt", adds_changes=False)
    if not step.reference or optimizer == "momentum":
        return recipe
    if inner.with_server or inner.aggregate not in (mean, uniform_mean):
        raise ValueError(f"variant='reference' averages uniformly, and {inner.name} has an average of its own")
    return replace(recipe, aggregate=uniform_mean, averages_changes=True, linear=False, ring_summable=False)


@dataclass(frozen=True)
class Optimizer:
    """(state, Delta) -> the next x, m and v."""

    name: str
    eta: float
    beta1: float
    beta2: float
    tau: float
    reference: bool

    def __call__(self, state: State, change: Tensors) -> Next:
        """One server step; what is not in `change` stays as it is."""
        new, before = dict(state.tensors), state.drawer(OWNER)
        own = dict(before)
        momentum = self.name == "momentum"
        for n, delta in change.items():
            share = 1.0 if momentum and not self.reference else 1 - self.beta1
            m = self.beta1 * before.get(M + n, torch.zeros_like(delta)) + share * delta
            if self.reference and state.version == 0:
                m = delta.clone()
            own[M + n] = m
            if momentum:
                new[n] = state.tensors[n] + self.eta * m
                continue
            v = before.get(V + n, torch.full_like(delta, self.tau**2))
            own[V + n] = self._second(v, (m if self.reference else delta).square())
            new[n] = state.tensors[n] + self.eta * m / (own[V + n].sqrt() + self.tau)
        return Next(new, {OWNER: own})

    def _second(self, v: Tensor, square: Tensor) -> Tensor:
        if self.name == "adagrad":
            return v + square
        if self.name == "adam":
            return self.beta2 * v + (1 - self.beta2) * square
        return v - (1 - self.beta2) * square * torch.sign(v - square)
