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

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from fedft import check
from fedft.arithmetic.lowrank import A_SUFFIX, B_SUFFIX
from fedft.contract import Batch, Handle, LocalStep, Trained, Turn
from fedft.recipe import Recipe
from fedft.training.first_order import Adjust, FirstOrder, Live


def fedprox(*, mu: float = 0.01, on: str | Recipe = "fedit", prox: Literal["factors", "product"] = "factors") -> Recipe:
    """A proximal pull in the local steps of another method.

    Args:
        mu: strength of the pull; 0 is the wrapped method.
        on: the method that is wrapped, by name with its default options (in Python a Recipe will do).
        prox: what is held near: the values that learn (`factors`), or each module's change B A (`product`).
    """
    check.at_least(0, mu=mu)
    check.one_of(("factors", "product"), prox=prox)
    recipe = wrapped(on)
    with_adjust(recipe.local, near(mu), "fedprox", recipe.name)  # refuses what has no gradients
    if prox == "product" and {A_SUFFIX, B_SUFFIX} - set(recipe.space.trained):
        raise ValueError(f"prox='product' needs pairs whose A and B both learn; those of {recipe.name} do not")

    def rules(config: Any) -> None:
        recipe.check(config)
        local = config.local
        if local.optimizer == "sgd" and prox == "factors" and mu * local.learning_rate >= 2 * (1 + local.momentum):
            raise ValueError(
                f"mu x learning_rate is {mu * local.learning_rate:g}: from {2 * (1 + local.momentum):g} on every step "
                "jumps over the point it is pulled to, further each time"
            )

    if mu == 0:
        return replace(recipe, name="fedprox")
    local: LocalStep = NearProduct(recipe.local, mu)
    if prox == "factors":
        local = with_adjust(recipe.local, near(mu), "fedprox", recipe.name)
    return replace(recipe, name="fedprox", local=local, check=rules)


def near(mu: float) -> Adjust:
    """grad += mu (y - x)."""

    def begin(live: Live, turn: Turn) -> Callable[[], None]:
        x = {n: p.detach().clone() for n, p in live.items()}

        def pull() -> None:
            for n, p in live.items():
                if p.grad is not None:
                    p.grad.add_(p.detach() - x[n], alpha=mu)

        return pull

    return begin


@dataclass(frozen=True)
class NearProduct:
    """The wrapped local step with the gradient of (mu / 2) sum over modules |D_y - D_x|_F^2."""

    inner: LocalStep
    mu: float

    def __call__(self, handle: Handle, batches: Iterator[Batch], turn: Turn) -> Trained:
        """Train; see `LocalStep`."""

        def begin(live: Live, turn: Turn) -> Callable[[], None]:
            now = handle.parameters()  # also the factor that stands still in an alternating method
            modules = [n.removesuffix(A_SUFFIX) for n in now if n.endswith(A_SUFFIX)]
            x = {n: p.detach().clone() for n, p in now.items()}
            strength = self.mu * handle.scale() ** 2
            rest = near(self.mu)({n: p for n, p in live.items() if not n.endswith((A_SUFFIX, B_SUFFIX))}, turn)

            def pull() -> None:
                for m in modules:
                    a, b, a_x, b_x = (t[m + s].detach() for t in (now, x) for s in (A_SUFFIX, B_SUFFIX))
                    if (grad := now[m + A_SUFFIX].grad) is not None:
                        grad.add_((b.T @ b) @ a - (b.T @ b_x) @ a_x, alpha=strength)
                    if (grad := now[m + B_SUFFIX].grad) is not None:
                        grad.add_(b @ (a @ a.T) - b_x @ (a_x @ a.T), alpha=strength)
                rest()

            return pull

        return with_adjust(self.inner, begin, "fedprox", "the wrapped method")(handle, batches, turn)


def wrapped(on: str | Recipe) -> Recipe:
    """The recipe that is named, with its default options, or the recipe itself."""
    if isinstance(on, Recipe):
        return on
    from fedft.registry import BUILT_IN
    from fedft.strategies import make  # late: that module looks strategies up, this one among them

    # a site takes options from its server, and no name from there may import anything
    check.one_of(BUILT_IN, on=on)
    return make(on, {})


def with_adjust(local: LocalStep, adjust: Adjust, who: str, name: str) -> LocalStep:
    """`local` with one more change to its gradients, after those it makes itself.

    A local step that wraps another has it in a field `inner`. Raises ValueError, in the name of `who`, where there is
    no `FirstOrder` at the bottom of the local step of `name`.
    """
    if isinstance(local, FirstOrder):
        return replace(local, adjust=adjust if local.adjust is None else _both(local.adjust, adjust))
    inner = getattr(local, "inner", None)
    if inner is None:
        raise ValueError(f"{who} cannot be on {name}: it adds to gradients, and these local steps do not take that")
    return replace(local, inner=with_adjust(inner, adjust, who, name))  # type: ignore[type-var]


def _both(first: Adjust, then: Adjust) -> Adjust:
    def begin(live: Live, turn: Turn) -> Callable[[], None]:
        one, two = first(live, turn), then(live, turn)

        def both() -> None:
            one()
            two()

        return both

    return begin
