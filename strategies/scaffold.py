"""SCAFFOLD: clients' gradients are corrected for the drift that unlike data causes, c_k estimating client k's gradient.

    client   y := y - eta (grad L_k(y) - c_k + c)            in every step
             c_k' = mean_s g_s                               of the gradients met on the way
             uploads y_k - x and c_k' - c_k; keeps c_k'
    server   x += eta_g sum_k p_k (y_k - x),   c += (1 / N) sum_k (c_k' - c_k)                       broadcasts x and c

Every c_k counts once, whatever its examples: c stays the mean of all N, those not asked included; new clients start at
0. So where it converges sum_k grad L_k = 0, whatever the weights p_k in the mean of x. For SGD of constant rate without
clipping, momentum and decay, mean_s g_s is the paper's option II, c_k - c + (x - y_k) / (tau eta); for other optimisers
it remains a mean gradient where the division is none, but their steps are no longer corrected exactly, and the run file
draws a warning. Clipping acts on the corrected gradient, g_s is taken before.

Controls are gradients of the parameters as the adapter holds them (B = unit-scale B x rank / alpha), alike on all
clients, which have one rank and one alpha; they travel as "control.<name>": twice the bytes, both ways. Where an update
did not count (late, refused), its client goes on from the c_k of its last one that did. c is a sum without decay: what
a client sent stays in it when it leaves, loses what it kept, or is barred; and what a lossy codec rounds off adds up.

Karimireddy et al., "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning", ICML 2020, arXiv:1910.06378.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fedft import check
from fedft import recipe as recipes
from fedft.arithmetic import tensors
from fedft.arithmetic.tensors import Tensors
from fedft.contract import Batch, Handle, Layout, Trained, Turn
from fedft.recipe import Recipe
from fedft.strategies.fedprox import with_adjust, wrapped
from fedft.training import first_order
from fedft.training.first_order import FirstOrder, Live
from fedft.update import Plan, Update

CONTROL = "control."
log = logging.getLogger(__name__)


def scaffold(*, on: str | Recipe = "fedit", server_lr: float = 1.0) -> Recipe:
    """Control variates on another method that averages changes.

    Args:
        on: the method that is wrapped, by name with its default options (in Python a Recipe will do).
        server_lr: eta_g, factor on the mean change of x.
    """
    check.above(0, server_lr=server_lr)
    inner = wrapped(on)
    return replace(
        inner,
        name="scaffold",
        aggregate=lambda updates: _aggregate(inner, updates),
        local=Corrected(_plain(inner)),
        initial=lambda layout, rank, seed: _initial(inner, layout, rank, seed),
        server=lambda state, change: recipes.add(state, _scaled(change, server_lr)),
        start=lambda handle, turn: inner.start(handle, replace(turn, held=without_control(turn.held))),
        upload=lambda layout, plan: {p + n: s for n, s in inner.spec(layout, plan).items() for p in ("", CONTROL)},
        admit=lambda delta, plan: inner.admit(without_control(delta), plan),
        check=lambda config: _check(inner, config),
        norm=_norm,
        linear=False,  # x by examples, c by clients
        ring_summable=False,
        keeps=True,
    )


def _plain(recipe: Recipe) -> FirstOrder:
    """The local step of a recipe that averages changes of one state; ValueError for another one."""
    local, no = recipe.local, f"scaffold cannot be on {recipe.name}: "
    if not isinstance(local, FirstOrder):
        raise ValueError(no + "it corrects gradients, and these local steps are not plain back-propagation")
    if local.send != "delta" or recipe.unlike_ranks:
        raise ValueError(no + "its clients send values or have unlike ranks; control variates need one space for all")
    if local.trains is not first_order.everything_trained:
        raise ValueError(no + "what does not learn in a round has no gradient, and its control variates would be stale")
    if recipe.server is not recipes.add or recipe.personal:
        raise ValueError(no + "the server must add the mean change to one x that is the same for all")
    if recipe.downlink is not recipes.everything or recipe.receive is not recipes.replace_all:
        raise ValueError(no + "every client must receive the whole state")
    return local


@dataclass(frozen=True)
class Corrected:
    """Local steps with grad - c_k + c; sends the change of x and of c_k, keeps c_k."""

    inner: FirstOrder

    def __call__(self, handle: Handle, batches: Iterator[Batch], turn: Turn) -> Trained:
        """Train; see `LocalStep`."""
        sums: dict[str, Tensor] = {}
        steps = 0

        def begin(live: Live, turn: Turn) -> Callable[[], None]:
            c, c_k = controls(turn.held), controls(turn.kept)
            correction = {n: (c[n] - c_k.get(n, torch.zeros(()))).to(p.device) for n, p in live.items()}
            sums.update({n: torch.zeros_like(p) for n, p in live.items()})

            def correct() -> None:
                nonlocal steps
                steps += 1
                for n, p in live.items():
                    if p.grad is not None:
                        sums[n].add_(p.grad)
                        p.grad.add_(correction[n])

            return correct

        trained = with_adjust(self.inner, begin, "scaffold", "the wrapped method")(handle, batches, turn)
        sent, kept = dict(trained.delta), dict(trained.kept)
        c_k = controls(turn.kept)
        for n, g in sums.items():
            before = c_k.get(n, torch.zeros(g.shape))
            change = (g / steps).to("cpu", torch.float32) - before
            sent[CONTROL + n] = change
            kept[CONTROL + n] = before + change  # as the server adds it: one client's c_k is c, bit for bit
        return Trained(sent, trained.metrics, kept)


def controls(values: Tensors) -> dict[str, Tensor]:
    """The control variates by the names of what they are for."""
    return {n.removeprefix(CONTROL): x for n, x in values.items() if n.startswith(CONTROL)}


def without_control(values: Tensors) -> dict[str, Tensor]:
    """Everything else."""
    return {n: x for n, x in values.items() if not n.startswith(CONTROL)}


def _aggregate(inner: Recipe, updates: Iterable[Update]) -> dict[str, Tensor]:
    """The wrapped method's change of x, and (1 / N) sum_k (c_k' - c_k); updates are read once."""
    total: dict[str, Tensor] = {}
    answered = roster = 0

    def of_x() -> Iterator[Update]:
        nonlocal answered, roster
        for u in updates:
            answered, roster = answered + 1, max(roster, u.roster)
            for n, x in controls(u.delta).items():
                total[n] = total[n].add_(x) if n in total else x.double()
            yield replace(u, delta=without_control(u.delta))

    change = inner.aggregate(of_x())
    return change | {CONTROL + n: (x / (roster or answered)).float() for n, x in total.items()}


def _initial(inner: Recipe, layout: Layout, rank: int, seed: int) -> dict[str, Tensor]:
    x = dict(inner.first_state(layout, rank, seed).tensors)
    if any(n.startswith(CONTROL) for n in x):
        raise ValueError(f"names of the model begin with {CONTROL!r}, which is where control variates are kept")
    return x | {CONTROL + n: torch.zeros_like(x[n]) for n in inner.spec(layout, Plan("", 0, 0, rank=rank))}


def _norm(delta: Tensors, plan: Plan) -> float:
    """Controls are gradients: they count by how far all steps along one go, the length that a change of x has."""
    far = plan.steps * plan.learning_rate * tensors.norm(controls(delta))
    return (tensors.norm(without_control(delta)) ** 2 + far**2) ** 0.5


def _scaled(change: Tensors, server_lr: float) -> dict[str, Tensor]:
    return {n: x if n.startswith(CONTROL) else server_lr * x for n, x in change.items()}


def _check(inner: Recipe, config: Any) -> None:
    inner.check(config)
    local = config.local
    if local.optimizer != "sgd" or local.momentum or local.weight_decay:
        log.warning(
            "scaffold with optimizer %r: control variates are mean gradients, but only steps of plain SGD (no momentum,"
            " no weight decay) are corrected exactly by them",
            local.optimizer,
        )
