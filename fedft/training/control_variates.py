"""Control variates in gradient steps: the drift that unlike data causes is taken out of every gradient.

    in every step s   g_s := g_s - c_k + c           before clipping; c_k estimates the gradient of client k, c the mean
    at the end        c_k' = mean_s g_s              of the gradients as they were met, uncorrected
                      sends c_k' - c_k, keeps c_k'

A control has the shape, names and scale of the parameter that it is for, as the adapter holds it. It travels, and
stands in the state, as "control.<name>"; a client's own one lies in its drawer "scaffold".

Karimireddy et al., "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning", ICML 2020, arXiv:1910.06378.
"""

import logging
from dataclasses import dataclass

import torch
from torch import Tensor

from fedft.arithmetic import tensors
from fedft.arithmetic.tensors import Tensors
from fedft.config import Local
from fedft.contract import Course, Handle, Learning, Trained, Turn
from fedft.training.optimizers import named_in
from fedft.update import Plan

OWNER, CONTROL = "scaffold", "control."
NO_CLIP = 1e6
"""`[local] max_grad_norm` from which on a clip is taken for none: a run file has no other way to switch it off."""
log = logging.getLogger(__name__)


def controls(values: Tensors) -> dict[str, Tensor]:
    """The control variates among `values`, by the names of the tensors that they are for.

    >>> sorted(controls({"w": torch.ones(2), "control.w": torch.zeros(2)}))
    ['w']
    """
    return {n.removeprefix(CONTROL): x for n, x in values.items() if n.startswith(CONTROL)}


def without_controls(values: Tensors) -> dict[str, Tensor]:
    """The tensors of `values` that are no control variates."""
    return {n: x for n, x in values.items() if not n.startswith(CONTROL)}


def as_controls(values: Tensors) -> dict[str, Tensor]:
    """Control variates under the names by which they travel: the inverse of `controls`."""
    return {CONTROL + n: x for n, x in values.items()}


def norm(delta: Tensors, plan: Plan) -> float:
    """The L2 norm of an upload, in units of the weights: a control counts by how far all steps of a turn along it go.

    That is the length that a change of x has where the gradient is the control in every step of the plan.
    """
    far = plan.steps * plan.learning_rate * tensors.norm(controls(delta))
    return (tensors.norm(without_controls(delta)) ** 2 + far**2) ** 0.5


def warn_unless_exact(local: Local, *, clips: bool = True) -> None:
    """Log a warning where steps are not those of plain SGD, which alone control variates correct exactly.

    And one where they are clipped, as the paper's are not: a clip that cuts makes a corrected step shorter, with the
    direction that it has, and c_k' stays the mean of gradients as they were met; so it is left on, and said.
    `clips`: whether `max_grad_norm` is looked at; steps that hide records have a clip of each record's instead.
    """
    if clips and local.max_grad_norm is not None and local.max_grad_norm < NO_CLIP:
        log.warning(
            "scaffold under [local] max_grad_norm = %g: what is clipped is the corrected gradient, and the published "
            "method clips none; max_grad_norm = 1e9 is no clip",
            local.max_grad_norm,
        )
    if named_in(local) != "sgd" or local.momentum or local.weight_decay:
        log.warning(
            "scaffold with optimizer %r: control variates are mean gradients, but only steps of plain SGD (no momentum,"
            " no weight decay) are corrected exactly by them",
            named_in(local),
        )


@dataclass(frozen=True)
class Corrected:
    """A term (`fedft.contract.Term`): gradients become g - c_k + c; the change of c_k is sent, c_k is kept."""

    def begin(self, learning: Learning, turn: Turn) -> Course:
        """The corrections of one turn, with c as it came down and c_k as this client kept it (at first 0)."""
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
        """The turn's result with c_k' - c_k among what is sent, and c_k' among what is kept."""
        changes, kept = {}, {}
        for n, g in self._sums.items():
            before = self._c_k.get(n, torch.zeros(g.shape))
            changes[n] = (g / self._steps).to("cpu", torch.float32) - before
            kept[n] = before + changes[n]  # as the server adds it: one client's c_k is c, bit for bit
        sent = {**trained.delta, **as_controls(changes)}
        return Trained(sent, trained.metrics, {**trained.kept, OWNER: kept})
