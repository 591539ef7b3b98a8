"""Zeroth-order rules: how a step is computed from the directional derivatives that were probed.

Let g_i be the estimated derivative of the loss along direction z_i, q their number per step, ghat = sum_i g_i z_i / q.

    sgd            w -= eta ghat
    momentum       m = mu m + ghat;   w -= eta m
    adam           m = mu m + (1 - mu) ghat;   v = beta2 v + (1 - beta2) ghat^2;   w -= eta m' / (sqrt(v') + 1e-8)
    sign           w -= eta sign(ghat)                                    (`variant="reference"`: of the scalars only)
    conservative   w := the best of w - eta ghat, w, w + eta ghat on the batch of the step

In the span: with signs for directions (z^2 = 1) and q = 1, v is one number, sign(ghat) is sign(g) z, and m is a sum
over directions already drawn. So every step is a sum of c_j z_j, whose c depend on the g alone: whoever can make the
directions replays it. Memory is the g of the last h steps, mu^h < 1e-3, instead of one or two copies of the model.
A step that leaves the span needs the moments themselves (`dense`) and a dense upload; `Walk.check_span` says why.

Zhang et al., "Revisiting Zeroth-Order Optimization for Memory-Efficient LLM Fine-Tuning: A Benchmark", ICML 2024,
arXiv:2402.11592.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from fedft import check
from fedft.randomness import masked
from fedft.randomness.directions import Directions
from fedft.randomness.independent import Gaussian, Table
from fedft.randomness.masked import Masked

Rule = Literal["sgd", "momentum", "adam", "sign", "conservative"]
Estimate = Literal["two_sided", "one_sided", "forward"]
Objective = Literal["loss", "accuracy", "f1"]
Variant = Literal["exact", "reference"]

ADAM_EPSILON = 1e-8
MAX_SAMPLES = 4096  # directions per step: a server's job asks its clients for two passes for each
FORGOTTEN = 1e-3  # weight mu^age below which a past estimate is left out of the momentum


@dataclass(frozen=True)
class Walk:
    """How zeroth-order steps are taken: the options that all strategies with such steps share, under the same names.

    Args:
        rule: `sgd`, `momentum`, `adam`, `sign` or `conservative` (never raises the loss of the batch); momentum and
            moments begin anew in every round.
        estimate: `two_sided`, `one_sided` (half the passes, biased) or `forward` (forward-mode, exact).
        objective: what is minimised: `loss`, or 1 - `accuracy` or 1 - `f1` of the batch.
        epsilon: distance of the probes, in units of the weights.
        samples: directions per step, whose estimates are averaged; 1 to 4096.
        momentum: mu of the rules momentum and adam; 0 <= mu < 1, and mu <= beta2 for adam.
        beta2: decay of adam's second moment; 0 <= beta2 < 1.
        sparsity: share of the entries of all directions that are zero; 0 <= sparsity < 1.
        resample: steps after which other entries are zero; 0: the same ones for the whole run.
        blocks: one derivative per transformer layer, and one for all that is in none: 2 passes each, less variance.
        coordinate: move a block before the next one is probed; needs `blocks`.
        first_order_from: number of the first layer that is trained by back-propagation, with the run's optimiser.
        first_order_factor: learning rate of those layers in units of the plan's; 0 to 100.
        scalar_clip: bound on |g| of one probe; > 0.
        variant: `exact`, or `reference` for what the published code computes: its sign (of g alone, not of ghat) and
            mask (zeroes the share Phi(sparsity)); see the strategy's own docstring for more.
    Raises:
        ValueError: a value outside these bounds, or options that exclude each other.
    """

    rule: Rule = "sgd"
    estimate: Estimate = "two_sided"
    objective: Objective = "loss"
    epsilon: float = 1e-3
    samples: int = 1
    momentum: float = 0.9
    beta2: float = 0.999
    sparsity: float = 0.0
    resample: int = 0
    blocks: bool = False
    coordinate: bool = False
    first_order_from: int | None = None
    first_order_factor: float = 1.0
    scalar_clip: float = 1000.0
    variant: Variant = "exact"

    def __post_init__(self) -> None:
        check.one_of(("sgd", "momentum", "adam", "sign", "conservative"), rule=self.rule)
        check.one_of(("two_sided", "one_sided", "forward"), estimate=self.estimate)
        check.one_of(("loss", "accuracy", "f1"), objective=self.objective)
        check.one_of(("exact", "reference"), variant=self.variant)
        check.above(0, epsilon=self.epsilon, scalar_clip=self.scalar_clip)
        check.between(1, MAX_SAMPLES, samples=self.samples)  # a server's job may ask for so many passes per step
        check.at_least(0, momentum=self.momentum, beta2=self.beta2, sparsity=self.sparsity, resample=self.resample)
        check.between(0, 100, first_order_factor=self.first_order_factor)
        check.at_least(0, first_order_from=self.first_order_from or 0)
        if max(self.momentum, self.beta2, self.sparsity) >= 1:
            raise ValueError(f"expected momentum, beta2, sparsity < 1, got {self.momentum, self.beta2, self.sparsity}")
        if self.rule == "adam" and self.momentum > self.beta2:
            raise ValueError(f"adam needs momentum <= beta2, got {self.momentum} > {self.beta2}")
        if self.estimate == "forward" and self.objective != "loss":
            raise ValueError(
                f"estimate 'forward' differentiates the loss; objective {self.objective!r} has no gradient"
            )
        if self.coordinate and not self.blocks:
            raise ValueError("coordinate says in which order blocks are updated; it needs blocks = true")
        if self.resample and not self.sparsity:
            raise ValueError("resample draws new masks; it needs sparsity > 0")

    def needs_moments(self, signs: bool) -> bool:
        """Whether a step is no sum of the directions drawn so far, so that the moments of all entries must be kept.

        `signs`: the entries of the directions are +1 and -1 (and zeros); see `signs` below.
        """
        if self.rule == "sign":
            return self.variant == "exact" and not (signs and self.samples == 1)
        if self.rule == "adam":
            return not (signs and self.samples == 1) or self.resample > 0
        return self.rule == "momentum" and self.resample > 0

    def check_span(self, signs: bool) -> None:
        """Raise ValueError, saying why, if the steps are no sums of directions that others can make too.

        For strategies that send coefficients of shared directions and nothing else. `signs`: as in `needs_moments`.
        """
        why = ""
        if self.needs_moments(signs):
            why = f"rule {self.rule!r} stays in the span of the directions only with signs for directions"
            why += " (hadamard, rademacher) and samples = 1"
        elif self.blocks:
            why = "blocks have a derivative each, and a direction only one distance"
        elif self.first_order_from is not None:
            why = "layers trained by back-propagation move along no shared direction"
        elif self.resample:
            why = "masks must stay as they are for the run, or replay needs the old ones"
        if why:
            raise ValueError(f"{why}; zo_fedavg, which sends the whole change, can do it")

    def largest_step(self) -> float:
        """The largest sum_j |c_j| / eta of one step of w += sum_j c_j z_j that an honest client can take.

        A hundredth more, since honest steps come close to it and codecs round. A server refuses larger ones.
        """
        if self.rule == "sign":
            return 1.01  # 16-bit codecs round up by 2^-8 at most
        if self.rule == "adam":  # Cauchy-Schwarz: |m'| <= sqrt(sum w_s^2 / u_s), w and u the weights in m' and v'
            return 1.01 * math.sqrt((1 - self.momentum) / (1 - self.beta2))
        return 1.01 * self.scalar_clip / (1 - self.momentum if self.rule == "momentum" else 1)

    def masked(self, z: Directions, seed: int) -> Directions:
        """The directions `z` with the share `sparsity` of their entries zeroed, the same entries in all of them.

        `seed` decides which entries. Without sparsity, `z` itself.
        """
        return Masked(z, seed, masked.fraction(self.sparsity, self.variant)) if self.sparsity else z


def within(distances: Tensor, bound: float) -> bool:
    """Whether sum_j |c_j| is at most `bound`, but for the rounding of an honest client's codec.

    `distances` is c, [n], in any float dtype. The coarsest codec is int8, which adds at most max |c_j| / 127 to each.
    """
    c = distances.double().abs()
    return not len(c) or bool(c.sum() <= bound + len(c) * c.max() / 127)


def signs(z: Directions) -> bool:
    """Whether all entries of the directions are +1 or -1 (or zero where masked), so that z * z is one number."""
    inner = getattr(z, "inner", z)
    if isinstance(inner, Table):
        return all(bool((v.abs() == 1).all()) for v in inner.vectors.values())
    return not isinstance(inner, Gaussian)


class Past(NamedTuple):
    """What a rule remembers while its steps stay in the span of the directions."""

    estimates: tuple[Mapping[int, float], ...] = ()
    """The last estimates ghat, oldest first, each as {j: g / q}."""
    square: float = 0.0
    """Adam's v, without the correction of its bias; one number, as z * z is."""
    steps: int = 0
    """How many estimates there have been."""


def advance(how: Walk, past: Past, estimate: Mapping[int, float]) -> Past:
    """The past with one more estimate, {j: g / q}; estimates that weigh less than 1e-3 by now are forgotten."""
    mu = how.momentum if how.rule in ("momentum", "adam") else 0.0
    h = math.ceil(math.log(FORGOTTEN) / math.log(mu)) if mu else 1
    square = how.beta2 * past.square + (1 - how.beta2) * sum(g * g for g in estimate.values())
    return Past((*past.estimates, estimate)[-h:], square, past.steps + 1)


def distances(how: Walk, past: Past, eta: float) -> dict[int, float]:
    """The step w += sum_j c_j z_j of a rule in the span, as {j: c_j}; `eta` is the learning rate.

    `past` has the step's own estimate last, see `advance`.

    >>> how = Walk(rule="momentum", momentum=0.5)
    >>> distances(how, advance(how, advance(how, Past(), {0: 2.0}), {1: 4.0}), eta=0.1)  # m = 0.5 * 2 z_0 + 4 z_1
    {1: -0.4, 0: -0.1}
    """
    if how.rule == "sign":
        return {j: -eta * ((g > 0) - (g < 0)) / how.samples for j, g in past.estimates[-1].items()}
    mu = how.momentum if how.rule in ("momentum", "adam") else 0.0
    m: dict[int, float] = {}
    for age, estimate in enumerate(reversed(past.estimates)):
        for j, g in estimate.items():
            m[j] = m.get(j, 0.0) + mu**age * g
    if how.rule == "adam":
        v = past.square / (1 - how.beta2**past.steps)
        eta *= (1 - mu) / (1 - mu**past.steps) / (math.sqrt(v) + ADAM_EPSILON)
    return {j: -eta * x for j, x in m.items()}


def dense(how: Walk, name: str, ghat: Tensor, moments: dict[str, tuple[Tensor, Tensor]], steps: int) -> Tensor:
    """The step of one tensor divided by -eta, by a rule that leaves the span; of the shape and dtype of `ghat`.

    Args:
        how: rule sign, momentum or adam.
        name, ghat: the tensor's name and its estimate ghat, dense; not modified.
        moments: (m, v) by name, changed in place; an empty mapping before the first step.
        steps: how many estimates there were with this one.
    """
    if how.rule == "sign":
        return ghat.sign()
    mu = how.momentum
    m, v = moments.setdefault(
        name, (torch.zeros_like(ghat), torch.zeros_like(ghat if how.rule == "adam" else ghat[:0]))
    )
    if how.rule == "momentum":
        return m.mul_(mu).add_(ghat)
    m.mul_(mu).add_(ghat, alpha=1 - mu)
    v.mul_(how.beta2).addcmul_(ghat, ghat, value=1 - how.beta2)
    return (m / (1 - mu**steps)) / (v / (1 - how.beta2**steps)).sqrt_().add_(ADAM_EPSILON)
