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

from dataclasses import replace
from typing import Literal

from fedft import check
from fedft.aggregation.mean import mean, uniform_mean
from fedft.aggregation.server_optimizers import FedOpt, on_each
from fedft.recipe import Recipe
from fedft.strategies.parts.wrapping import On, with_server_step, wrapped

OWNER = "fedopt"


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
    inner, reference, momentum = wrapped(on), variant == "reference", optimizer == "momentum"
    b1 = beta1 if beta1 is not None else 0.0 if optimizer == "adagrad" else 0.9
    eta = server_lr if server_lr is not None else 0.01 if not momentum else 1.0 if reference else 1 - b1
    step = on_each(FedOpt(optimizer, eta, b1, beta2, tau, reference), OWNER)
    recipe = replace(with_server_step(inner, step, "fedopt"), name="fedopt")
    if not reference or momentum:
        return recipe
    if inner.with_server or inner.aggregate not in (mean, uniform_mean):
        raise ValueError(f"variant='reference' averages uniformly, and {inner.name} has an average of its own")
    return replace(recipe, aggregate=uniform_mean, averages_changes=True, linear=False, ring_summable=False)
