"""FedProx: another method whose clients are held near the point x from which they start.

    client k minimises  L_k(y) + (mu / 2) |y - x|^2                                                           (eq. 2)

The gradient mu (y - x) joins the loss's in every step, before clipping; it is not weight decay. x is where the client
stands when the round begins: what it received (FLoRA: its own fresh draw of A, and B = 0), fixed during the round.
Clients may do unequal work. Bytes, server and everything else are the wrapped method's; mu = 0 is that method.

`prox="factors"` measures |y - x| on what learns, as the adapter holds it (B = unit-scale B x rank / alpha). Two pairs
of one product may be far apart by it. `prox="product"` measures the change of the weights, with D = s B A and
s = alpha / r, from r x r matrices only:

    (mu / 2) |D_y - D_x|_F^2      d/dA = mu s^2 (B^T B A - B^T B_x A_x)      d/dB = mu s^2 (B A A^T - B_x A_x A^T)

(a head is held by its own values). Steps are explicit: SGD along the first pull overshoots once eta mu >= 2.

Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020, arXiv:1812.06127.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor, nn

from fedft import check
from fedft.arithmetic.named_pairs import A_SUFFIX, B_SUFFIX
from fedft.config import RunConfig
from fedft.recipe import Course, Layout, Learning, Recipe, Shape, Turn
from fedft.strategies.parts.wrapping import On, with_term, wrapped


def fedprox(*, mu: float = 0.01, on: On = "fedit", prox: Literal["factors", "product"] = "factors") -> Recipe:
    """A proximal pull in the local steps of another method.

    Args:
        mu: strength of the pull; 0 is the wrapped method.
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
        inner.check(config)
        local = config.local
        if local.optimizer == "sgd" and prox == "factors" and mu * local.learning_rate >= 2 * (1 + local.momentum):
            raise ValueError(
                f"mu x learning_rate is {mu * local.learning_rate:g}: from {2 * (1 + local.momentum):g} on every step "
                "jumps over the point it is pulled to, further each time"
            )

    return replace(recipe if mu else inner, name="fedprox", check=rules if mu else inner.check)


@dataclass(frozen=True)
class Near:
    """grad += mu (y - x) on everything that learns."""

    mu: float

    def begin(self, learning: Learning, turn: Turn) -> Course:
        """Remember x."""
        x = _copy(learning.live)
        return _Pull(lambda: _pull(learning.live, x, self.mu))


@dataclass(frozen=True)
class NearProduct:
    """The gradient of (mu / 2) sum over modules |D_y - D_x|_F^2; what is no pair is held by its own values."""

    mu: float

    def begin(self, learning: Learning, turn: Turn) -> Course:
        """Remember A_x and B_x, also of the factor that stands still in an alternating method."""
        now: Mapping[str, Tensor] = {**learning.frozen, **learning.live}
        modules = [n.removesuffix(A_SUFFIX) for n in now if n.endswith(A_SUFFIX)]
        x = _copy(now)
        rest = {n: p for n, p in learning.live.items() if not n.endswith((A_SUFFIX, B_SUFFIX))}

        def pull() -> None:
            for m in modules:
                strength = self.mu * learning.scale(m + B_SUFFIX) ** 2
                a, b, a_x, b_x = (t[m + s].detach() for t in (now, x) for s in (A_SUFFIX, B_SUFFIX))
                if (grad := now[m + A_SUFFIX].grad) is not None:
                    grad.add_((b.T @ b) @ a - (b.T @ b_x) @ a_x, alpha=strength)
                if (grad := now[m + B_SUFFIX].grad) is not None:
                    grad.add_(b @ (a @ a.T) - b_x @ (a_x @ a.T), alpha=strength)
            _pull(rest, x, self.mu)

        return _Pull(pull)


class _Pull(Course):
    """A course whose steps are one function."""

    def __init__(self, step: Callable[[], None]) -> None:
        self._step = step

    def step(self) -> None:
        """Pull."""
        self._step()


def _copy(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in values.items()}


def _pull(live: Mapping[str, nn.Parameter], x: Mapping[str, Tensor], mu: float) -> None:
    for n, p in live.items():
        if p.grad is not None:
            p.grad.add_(p.detach() - x[n], alpha=mu)
