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

import torch
from torch import Tensor

from fedft import check
from fedft.arithmetic import tensors
from fedft.arithmetic.tensors import Tensors
from fedft.config import RunConfig
from fedft.recipe import Course, Handle, Layout, Learning, Next, Recipe, State, Trained, Turn
from fedft.strategies.parts.wrapping import On, with_term, wrapped
from fedft.training.first_order import gradient_steps
from fedft.update import Plan, Update

OWNER, CONTROL = "scaffold", "control."
log = logging.getLogger(__name__)


def scaffold(*, on: On = "fedit", server_lr: float = 1.0) -> Recipe:
    """Control variates on another method that averages changes.

    Args:
        on: the method that is wrapped: its name, or a table of its name and options (in Python a Recipe will do).
        server_lr: eta_g, factor on the mean change of x.
    """
    check.above(0, server_lr=server_lr)
    inner = wrapped(on)
    _fits(inner)
    return replace(
        with_term(inner, Corrected(), "scaffold"),
        name="scaffold",
        aggregate=lambda updates: _aggregate(inner, updates),
        initial=lambda layout, rank, seed: _initial(inner, layout, rank, seed),
        server=_moving(inner, server_lr),
        start=lambda handle, turn: inner.start(handle, replace(turn, held=without_control(turn.held))),
        upload=lambda layout, plan: {p + n: s for n, s in inner.spec(layout, plan).items() for p in ("", CONTROL)},
        admit=lambda delta, plan: inner.admit(without_control(delta), plan),
        check=lambda config: _check(inner, config),
        norm=_norm,
        with_server=lambda recipe, step: replace(recipe, server=_moving(replace(inner, server=step), server_lr)),
        averages_changes=inner.averages,
        adds_changes=inner.adds,
        linear=False,  # x by examples, c by clients
        ring_summable=False,
        keeps=True,
    )


def _fits(recipe: Recipe) -> None:
    """Raise ValueError unless every client of the recipe descends from one x by gradients of the same parameters."""
    no, steps = f"scaffold cannot be on {recipe.name}: ", gradient_steps(recipe.local)
    if steps is None:
        raise ValueError(no + "it corrects gradients, and these local steps are not plain back-propagation")
    if recipe.with_server is not None:
        raise ValueError(no + "one set of control variates is enough")
    if steps.send != "delta" or recipe.unlike_ranks or recipe.upload_kind != "changes":
        raise ValueError(no + "its clients send values, numbers, or have unlike ranks; controls need one space for all")
    if steps.trains is not None:
        raise ValueError(no + "what does not learn in a round has no gradient, and its control variates would be stale")
    if not recipe.averages or recipe.personal:
        raise ValueError(no + "the server must move one x, the same for all, by the mean of the changes")
    if not recipe.sends_whole_state:
        raise ValueError(no + "every client must receive the whole state")


@dataclass(frozen=True)
class Corrected:
    """Gradients become grad - c_k + c; the change of c_k is sent, c_k is kept."""

    def begin(self, learning: Learning, turn: Turn) -> Course:
        """With c as it came down and c_k as this client kept it."""
        return _Corrected(learning, controls(turn.held), turn.drawer(OWNER))


class _Corrected(Course):
    def __init__(self, learning: Learning, c: Tensors, c_k: Tensors) -> None:
        self._live, self._c_k, self._steps = learning.live, c_k, 0
        self._correction = {n: (c[n] - c_k.get(n, torch.zeros(()))).to(p.device) for n, p in self._live.items()}
        self._sums = {n: torch.zeros_like(p) for n, p in self._live.items()}

    def step(self) -> None:
        """Add g_s to the mean, then correct it."""
        self._steps += 1
        for n, p in self._live.items():
            if p.grad is not None:
                self._sums[n].add_(p.grad)
                p.grad.add_(self._correction[n])

    def finish(self, trained: Trained, handle: Handle) -> Trained:
        """Send c_k' - c_k, keep c_k'."""
        sent, kept = dict(trained.delta), {}
        for n, g in self._sums.items():
            before = self._c_k.get(n, torch.zeros(g.shape))
            change = (g / self._steps).to("cpu", torch.float32) - before
            sent[CONTROL + n] = change
            kept[n] = before + change  # as the server adds it: one client's c_k is c, bit for bit
        return Trained(sent, trained.metrics, {**trained.kept, OWNER: kept})


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


def _moving(inner: Recipe, server_lr: float) -> Callable[[State, Tensors], Next]:
    def step(state: State, change: Tensors) -> Next:
        """x as the wrapped server moves it, c plus its change."""
        after = inner.next_state(state, {n: server_lr * x for n, x in without_control(change).items()})
        c = {CONTROL + n: state.tensors[CONTROL + n] + x for n, x in controls(change).items()}
        return Next({**after.tensors, **c}, after.own)

    return step


def _initial(inner: Recipe, layout: Layout, rank: int, seed: int) -> Next:
    first = inner.first_state(layout, rank, seed)
    if any(n.startswith(CONTROL) for n in first.tensors):
        raise ValueError(f"names of the model begin with {CONTROL!r}, which is where control variates are kept")
    c = {CONTROL + n: torch.zeros_like(first.tensors[n]) for n in inner.spec(layout, Plan("", 0, 0, rank=rank))}
    return Next({**first.tensors, **c}, first.own)


def _norm(delta: Tensors, plan: Plan) -> float:
    """Controls are gradients: they count by how far all steps along one go, the length that a change of x has."""
    far = plan.steps * plan.learning_rate * tensors.norm(controls(delta))
    return (tensors.norm(without_control(delta)) ** 2 + far**2) ** 0.5


def _check(inner: Recipe, config: RunConfig) -> None:
    inner.check(config)
    local = config.local
    if local.optimizer != "sgd" or local.momentum or local.weight_decay:
        log.warning(
            "scaffold with optimizer %r: control variates are mean gradients, but only steps of plain SGD (no momentum,"
            " no weight decay) are corrected exactly by them",
            local.optimizer,
        )
