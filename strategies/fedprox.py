"""FedProx: another method whose clients are held near the point x from which they start.

    client k minimises  L_k(y) + (mu / 2) |y - x|^2                                                           (eq. 2)

The gradient mu (y - x) joins the loss's in every step, before clipping; it is not weight decay. x is where the client
stands when the round begins: what it received (FLoRA: its own fresh draw of A, and B = 0), fixed during the round.
Clients may do unequal work. Bytes, server and everything else are the wrapped method's; mu = 0 is that method.

`prox="factors"` measures |y - x| on what learns, as the adapter holds it (B = unit-scale B x rank / alpha). Two pairs
of one product may be far apart by it. `prox="product"` measures |D_y - D_x|_F, the change of the weights, with
D = (alpha / r) B A of every module (a head is held by its own values). Gradients: `fedft.training.proximal`.

Steps are explicit: SGD along the first pull overshoots once eta mu >= 2.

Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020, arXiv:1812.06127.
"""

from dataclasses import replace
from typing import Literal

from fedft import check
from fedft.arithmetic.named_pairs import A_SUFFIX, B_SUFFIX
from fedft.config import RunConfig
from fedft.recipe import Layout, Recipe, Shape
from fedft.strategies.parts.wrapping import On, with_term, wrapped
from fedft.training.optimizers import named_in
from fedft.training.proximal import Near, NearProduct


def fedprox(*, mu: float = 0.01, on: On = "fedit", prox: Literal["factors", "product"] = "factors") -> Recipe:
    """A proximal pull in the local steps of another method.

    Args:
        mu: strength of the pull, >= 0, in units of the loss per squared unit of a weight; 0 is the wrapped method.
        on: the method that is wrapped: its name, or a table of its name and options (in Python a Recipe will do).
        prox: what is held near: the values that learn (`factors`), or each module's change B A (`product`).
    """
    check.at_least(0, mu=mu)
    check.one_of(("factors", "product"), prox=prox)
    inner = wrapped(on)
    recipe = with_term(inner, Near(mu) if prox == "factors" else NearProduct(mu), "fedprox")
    learns = inner.space.trained(Layout(modules={"m": (1, 1)}), Shape(1))
    if prox == "product" and not {"m" + A_SUFFIX, "m" + B_SUFFIX} <= learns.keys():
        raise ValueError(f"prox='product' needs pairs whose A and B both learn; those of {inner.name} do not")

    def rules(config: RunConfig) -> None:
        """Raise ValueError for a learning rate at which every step jumps over the point it is pulled to."""
        inner.check(config)
        local, pull = config.local, mu * config.local.learning_rate
        if named_in(local) == "sgd" and prox == "factors" and pull >= (most := 2 * (1 + local.momentum)):
            raise ValueError(
                f"mu x learning_rate is {pull:g}: from {most:g} on every step jumps over the point it is pulled to, "
                "further each time"
            )

    return replace(recipe if mu else inner, name="fedprox", check=rules if mu else inner.check)
