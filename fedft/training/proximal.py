"""Proximal terms: gradients of (mu / 2) dist(y, x)^2 that hold a client near the point x from which its steps start.

    Near          dist(y, x) = |y - x|, on what learns, as the adapter holds it
    NearProduct   dist(y, x) = |D_y - D_x|_F summed over modules, D = s B A the change of a module's weight:

        d/dA = mu s^2 (B^T B A - B^T B_x A_x)          d/dB = mu s^2 (B A A^T - B_x A_x A^T)

from r x r matrices only; s is the scale of a pair, alpha / r. x is a copy of where the turn begins, and never moves.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from fedft.arithmetic.named_pairs import A_SUFFIX, B_SUFFIX
from fedft.contract import Course, Learning, Turn


@dataclass(frozen=True)
class Near:
    """A term (`fedft.contract.Term`) that adds mu (y - x) to the gradient of every tensor that learns."""

    mu: float

    def begin(self, learning: Learning, turn: Turn) -> Course:
        """The pull of one turn towards the values that learn as they are now."""
        x = _copy(learning.live)
        return _Pull(lambda: _pull(learning.live, x, self.mu))


@dataclass(frozen=True)
class NearProduct:
    """A term that holds each module's change B A near that of x, and tensors in no pair near their own values."""

    mu: float

    def begin(self, learning: Learning, turn: Turn) -> Course:
        """The pull of one turn towards A_x and B_x as they are now, a factor that does not learn among them."""
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
        """Add the pull to the gradients."""
        self._step()


def _copy(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in values.items()}


def _pull(live: Mapping[str, nn.Parameter], x: Mapping[str, Tensor], mu: float) -> None:
    """Add mu (y - x) to the gradients that there are."""
    for n, p in live.items():
        if p.grad is not None:
            p.grad.add_(p.detach() - x[n], alpha=mu)
