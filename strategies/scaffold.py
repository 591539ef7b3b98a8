"""SCAFFOLD: clients' gradients are corrected for the drift that unlike data causes, c_k estimating client k's gradient.

    client   y := y - eta (grad L_k(y) - c_k + c)            in every step
             c_k' = mean_s g_s                               of the gradients met on the way
             uploads y_k - x and c_k' - c_k; keeps c_k'
    server   x += eta_g sum_k p_k (y_k - x),   c += (1 / N) sum_k (c_k' - c_k)                       broadcasts x and c

Every c_k counts once, whatever its examples: c stays the mean of all N, those not asked included; new clients start at
0. So where it converges sum_k grad L_k = 0, whatever the weights p_k in the mean of x. For SGD of constant rate without
clipping, momentum and decay, mean_s g_s is the paper's option II, c_k - c + (x - y_k) / (tau eta); for other optimisers
it remains a mean gradient where the division is none, but their steps are no longer corrected exactly, and the run file
draws a warning, as does clipping: it acts on the corrected gradient, g_s is taken before.

Controls are gradients of the parameters as the adapter holds them (B = unit-scale B x rank / alpha), alike on all
clients, which have one rank and one alpha; they travel as "control.<name>": twice the bytes, both ways. Where an update
did not count (late, refused), its client goes on from the c_k of its last one that did. c is a sum without decay: what
a client sent stays in it when it leaves, loses what it kept, or is barred; and what a lossy codec rounds off adds up.

Karimireddy et al., "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning", ICML 2020, arXiv:1910.06378.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from torch import Tensor

from fedft import check
from fedft.arithmetic.tensors import Tensors
from fedft.recipe import Next, Recipe, State
from fedft.strategies.parts.with_controls import with_controls
from fedft.strategies.parts.wrapping import On, wrapped
from fedft.training.control_variates import as_controls, controls, without_controls
from fedft.update import Update


def scaffold(*, on: On = "fedit", server_lr: float = 1.0) -> Recipe:
    """Control variates on another method that averages changes.

    Args:
        on: the method that is wrapped: its name, or a table of its name and options (in Python a Recipe will do).
        server_lr: eta_g > 0, factor on the mean change of x.
    """
    check.above(0, server_lr=server_lr)
    inner = wrapped(on)
    return replace(
        with_controls(inner),
        name="scaffold",
        aggregate=lambda updates: _means(inner, updates),
        server=_moving(inner, server_lr),
        with_server=lambda recipe, step: replace(recipe, server=_moving(replace(inner, server=step), server_lr)),
        averages_changes=inner.averages,
        adds_changes=inner.adds,
        takes_stale=False,
        linear=False,  # x by examples, c by clients
        ring_summable=False,
    )


def _means(inner: Recipe, updates: Iterable[Update]) -> dict[str, Tensor]:
    """The wrapped method's change of x, and (1 / N) sum_k (c_k' - c_k); updates are read once."""
    total: dict[str, Tensor] = {}
    answered = roster = 0

    def of_x() -> Iterator[Update]:
        nonlocal answered, roster
        for u in updates:
            answered, roster = answered + 1, max(roster, u.roster)
            for n, x in controls(u.delta).items():
                total[n] = total[n].add_(x) if n in total else x.double()
            yield replace(u, delta=without_controls(u.delta))

    change = inner.aggregate(of_x())
    return {**change, **as_controls({n: (x / (roster or answered)).float() for n, x in total.items()})}


def _moving(inner: Recipe, server_lr: float) -> Callable[[State, Tensors], Next]:
    """The server step: x as the wrapped server moves it, by eta_g times the change; c plus its change."""

    def step(state: State, change: Tensors) -> Next:
        after = inner.next_state(state, {n: server_lr * x for n, x in without_controls(change).items()})
        before = controls(state.tensors)
        return Next(
            {**after.tensors, **as_controls({n: before[n] + x for n, x in controls(change).items()})}, after.own
        )

    return step
