"""How much each adapted weight contributes to training: scores from parameters and their gradients, step by step.

    I    = |theta * grad|                                  in every step, before terms and clipping; entry by entry
    Ibar = b1 Ibar + (1 - b1) I                            from zero, without correction of its bias
    Ubar = b2 Ubar + (1 - b2) |I - Ibar|                   with the new Ibar
    s    = Ibar * Ubar

    of a triplet P diag(lam) Q   S_j = s(lam_j) + mean_a s(P_aj) + mean_c s(Q_jc)          one number per component
    of a pair B A                S   = mean s(A) + mean s(B)                               one number

Means, not sums, so that wide and narrow weights compare. In the first steps, as long as lam or B is still about zero,
scores say nothing: those steps are not counted. theta * grad does not depend on the scale that an adapter has. A client
divides what it sends by its mean, since s is of the size of a squared loss: that fits any codec, and no client counts
for more than others by the scale of its loss.

Zhang et al., "AdaLoRA", ICLR 2023, arXiv:2303.10512: the accumulators and the score of a triplet.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedft.adapters.triplet import LAM_SUFFIX, P_SUFFIX, Q_SUFFIX
from fedft.arithmetic.named_pairs import A_SUFFIX, B_SUFFIX
from fedft.arithmetic.tensors import Tensors
from fedft.contract import Course, Handle, Learning, Trained, Turn
from fedft.errors import RejectedUpdate

SCORE = "plan.score."
"""Beginning of a score's name in an upload, before that of its module."""
WARM_UP = 5  # steps that are not counted, of ten or more; of fewer the first half
MOST = 1.1  # for the mean of a client's scores: 1, as a codec may round it


@dataclass
class Sensitivity:
    """The accumulators Ibar and Ubar of one tensor, of its shape and on its device."""

    b1: float = 0.85
    b2: float = 0.85
    mean: Tensor | float = 0.0
    """Ibar."""
    spread: Tensor | float = 0.0
    """Ubar."""

    def see(self, theta: Tensor, grad: Tensor) -> None:
        """Take in one step: a tensor's values and the gradient of the loss by them."""
        now = (theta.detach() * grad.detach()).abs_()
        self.mean = self.b1 * self.mean + (1 - self.b1) * now
        self.spread = self.b2 * self.spread + (1 - self.b2) * (now - self.mean).abs_()

    @property
    def score(self) -> Tensor:
        """s, entry by entry: float32 on the CPU; a single zero before the first step."""
        return torch.as_tensor(self.mean * self.spread, dtype=torch.float32).cpu()


@dataclass(frozen=True)
class Scores:
    """A term (`fedft.contract.Term`) that leaves gradients alone and adds a score of every adapted weight to what is
    sent, as `plan.score.<module>`: float32 [rank] of a triplet, [1] of a pair. A module of which only a part learns has
    none. From a turn of triplets, a probe, nothing else is sent. The term stands before others that change gradients.
    """

    bytes_each: ClassVar[int] = 8
    """Ibar and Ubar, float32."""

    def begin(self, learning: Learning, turn: Turn) -> Course:
        """The accumulators of one turn."""
        return _Accumulating(learning, min(WARM_UP, turn.plan.steps // 2))


class _Accumulating(Course):
    def __init__(self, learning: Learning, warm_up: int) -> None:
        self._live, self._left_out = learning.live, warm_up
        self._seen = {n: Sensitivity() for n in self._live}

    def step(self) -> None:
        """Take in the parameters and gradients of a step, unless it is one of the first."""
        if self._left_out > 0:
            self._left_out -= 1
            return
        for n, p in self._live.items():
            if p.grad is not None:
                self._seen[n].see(p, p.grad)

    def finish(self, trained: Trained, handle: Handle) -> Trained:
        """The turn's result, with the scores among what is sent."""
        rest = {} if any(n.endswith(LAM_SUFFIX) for n in self._live) else trained.delta
        return trained._replace(delta={**rest, **{SCORE + m: x for m, x in to_mean_1(self.scores()).items()}})

    def scores(self) -> dict[str, Tensor]:
        """The scores by module, as they are."""
        return of_modules({n: s.score.expand(self._live[n].shape) for n, s in self._seen.items()})


def of_modules(s: Tensors) -> dict[str, Tensor]:
    """The scores of modules, from the scores of the entries of their parts by name; float32 [rank] or [1]."""
    found = {}
    for n, x in s.items():
        if n.endswith(LAM_SUFFIX) and (m := n.removesuffix(LAM_SUFFIX)) + P_SUFFIX in s and m + Q_SUFFIX in s:
            found[m] = x + s[m + P_SUFFIX].mean(0) + s[m + Q_SUFFIX].mean(1)
        elif n.endswith(A_SUFFIX) and (b := s.get((m := n.removesuffix(A_SUFFIX)) + B_SUFFIX)) is not None:
            found[m] = (x.mean() + b.mean()).reshape(1)
    return found


def to_mean_1(scores: Tensors) -> dict[str, Tensor]:
    """The scores divided by the mean of all their numbers; zeros as they are."""
    numbers = [x for of in scores.values() for x in of.double().tolist()]
    mean = sum(numbers) / max(1, len(numbers))
    return {m: (x.double() / (mean or 1.0)).float() for m, x in scores.items()}


def check_mean(change: Tensors) -> None:
    """Raise RejectedUpdate where a score among the tensors is negative, or their mean is above 1, up to rounding."""
    numbers = [x for n, of in change.items() if n.startswith(SCORE) for x in of.double().tolist()]
    if numbers and not (min(numbers) >= 0 and sum(numbers) <= MOST * len(numbers)):
        raise RejectedUpdate("out_of_bounds", f"scores from {min(numbers):.4g} on with a mean of "
                             f"{sum(numbers) / len(numbers):.4g}, wanted from 0 on with a mean of 1")  # fmt: skip


def said(change: Tensors) -> dict[str, float]:
    """S by module, summed over components, of the scores among the tensors of an upload or of a change."""
    return {n.removeprefix(SCORE): float(x.double().sum()) for n, x in change.items() if n.startswith(SCORE)}


def renewed(known: Mapping[str, float], news: Mapping[str, float], keep: float) -> dict[str, float]:
    """Scores by module, keep S + (1 - keep) c S' where there are news S', and S where there are none.

    Scores of pairs are on another scale than those of triplets, and shrink as a run converges. So c makes the sum of S'
    over the modules of the news that of S: news move importance among those that were trained, and none between them
    and those that were not. Where either sum is zero, nothing is renewed.
    """
    before, now = (sum(of.get(m, 0.0) for m in sorted(news)) for of in (known, news))
    if not (before > 0 and now > 0):
        return dict(known)
    c = before / now
    return {m: keep * s + (1 - keep) * c * news[m] if m in news else s for m, s in known.items()}


@dataclass(frozen=True)
class Orthogonal:
    """A term: the gradient of strength (|P^T P - I|^2 + |Q Q^T - I|^2), added for every triplet that learns."""

    strength: float

    def begin(self, learning: Learning, turn: Turn) -> Course:
        """The penalty of one turn."""
        return _Straightening(learning, self.strength)


class _Straightening(Course):
    def __init__(self, learning: Learning, strength: float) -> None:
        self._strength = strength
        self._columns = [p for n, p in learning.live.items() if n.endswith(P_SUFFIX)]
        self._rows = [p for n, p in learning.live.items() if n.endswith(Q_SUFFIX)]

    def step(self) -> None:
        """d/dP = 4 strength P (P^T P - I), d/dQ = 4 strength (Q Q^T - I) Q."""
        for p in self._columns:
            if p.grad is not None:
                x = p.detach()
                p.grad.add_(x @ (x.T @ x - torch.eye(x.shape[1], device=x.device)), alpha=4 * self._strength)
        for q in self._rows:
            if q.grad is not None:
                x = q.detach()
                q.grad.add_((x @ x.T - torch.eye(x.shape[0], device=x.device)) @ x, alpha=4 * self._strength)
