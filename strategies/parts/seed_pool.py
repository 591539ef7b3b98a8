"""A pool of K shared directions: the model is w0 plus K scalars, and every step goes along directions of the pool.

    model     w(a) = rho w0 - sum_j a_j z_j              replayed from w0 in one pass over the weights
              w0 - sum_j b_j z_j                         of tensors that are spared from weight decay
    state     `pool` a, float32 [K]; `rho`, float32 [1], with weight decay; `spared` b, [K], where some are spared;
              `count` and `magnitude`, [K], with Pro
    downlink  `pool`; `rho` as the int32 of its bits; `spared`; `q`, Pro's probabilities, as the uint16 of float16 bits
    turn      draws j ~ uniform(K), or q with Pro

Of the published code (`variant="reference"`) a holds raw slopes: learning rate and decay come in when it is replayed.

Qin et al., ICML 2024, arXiv:2312.06353; see `fedft.strategies.fedkseed`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from fedft import check
from fedft.arithmetic.tensors import Tensors
from fedft.config import RunConfig
from fedft.contract import Handle, Layout, State, Turn
from fedft.randomness import families
from fedft.randomness.directions import Directions
from fedft.recipe import back_to_base
from fedft.training import zeroth_rules
from fedft.training.zeroth_rules import Walk
from fedft.update import Download, Plan, TensorSpec


@dataclass(frozen=True)
class SeedPool:
    """The pool of a run; fields are the options of `fedkseed`, which says what they mean.

    Raises ValueError for options out of range, or that do not go together.
    """

    K: int
    how: Walk
    pro: bool = False
    family: str = "hadamard"
    weight_decay: float = 0.0
    sampling: str = "with_replacement"
    table: Directions | None = None
    no_decay: tuple[str, ...] = ()
    given: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        check.between(1, 4096, K=self.K)
        check.at_least(0, weight_decay=self.weight_decay)
        check.one_of(("with_replacement", "without_replacement"), sampling=self.sampling)
        generated = families.make(self.family, 0, self.K)  # refuses what the family cannot do
        self.how.check_span(zeroth_rules.signs(self.table or generated))
        if self.table is not None and self.table.count != self.K:
            raise ValueError(f"expected a table of K = {self.K} directions, got {self.table.count}")
        if not set(self.given) <= set(range(self.K)):
            raise ValueError(f"draws are numbers from 0 to {self.K - 1}, got {check.quoted(self.given)}")
        if self.how.rule == "conservative" and self.weight_decay:
            raise ValueError("rule 'conservative' never raises the loss of a batch, weight_decay may; choose one")
        if self.no_decay and not self.weight_decay:
            raise ValueError("no_decay says what weight_decay leaves alone; it needs weight_decay > 0")
        if "" in self.no_decay:
            raise ValueError("no_decay has an empty text, which every name holds; wanted parts of names, as 'bias'")
        if self.how.rule != "sgd" and not self.folded:
            raise ValueError(f"the published code's pool of raw slopes knows rule 'sgd' only, got {self.how.rule!r}")

    @property
    def folded(self) -> bool:
        """Whether learning rates and decay are in a and rho, so that replay needs neither."""
        return self.how.variant == "exact"

    @property
    def decays(self) -> bool:
        """Whether rho is part of the state, and a decay of every upload."""
        return self.weight_decay > 0 and self.folded

    @property
    def spares(self) -> bool:
        """Whether some tensors have a pool of their own, in which nothing decays."""
        return self.decays and bool(self.no_decay)

    def spared(self, names: Iterable[str]) -> list[str]:
        """Those of the names of tensors that do not decay."""
        return [n for n in names if any(part in n for part in self.no_decay)]

    def check_run(self, config: RunConfig) -> None:
        """Raise ValueError where raw slopes of several rounds would share one learning rate, the last one's.

        And where weights stay at w0, as those in half precision do, and one factor of decay is for all of them.
        """
        if self.no_decay and config.model.dtype in ("bfloat16", "float16"):
            raise ValueError(f"no_decay needs weights that move; wanted dtype 'float32', got {config.model.dtype!r}")
        decay = config.local.learning_rate_decay
        if not self.folded and decay != 1:
            raise ValueError(
                f"variant 'reference' replays all rounds at one learning rate; wanted [local] learning_rate_decay = 1,"
                f" got {decay}"
            )
        if not self.folded and (config.local.schedule != "constant" or config.local.warmup):
            raise ValueError(
                "variant 'reference' replays all rounds at one learning rate: no [local] schedule or warmup"
            )

    def directions(self, run_seed: int) -> Directions:
        """z_1 .. z_K of a run, the same ones for every caller in this process."""
        return _generated(self, run_seed)

    def draws(self, turn: Turn) -> list[int]:
        """The numbers j of the directions of a turn's steps, `samples` for each: steps x samples of 0 .. K - 1.

        Raises ValueError where fewer were given.
        """
        if self.given:
            if len(self.given) < (wanted := turn.plan.steps * self.how.samples):
                raise ValueError(f"expected draws of at least {wanted} steps, got {len(self.given)}")
            return list(self.given[:wanted])
        rng = torch.Generator().manual_seed(turn.seed)
        q = turn.held["q"].view(torch.float16).double() if self.pro else torch.ones(self.K, dtype=torch.float64)
        steps = turn.plan.steps * self.how.samples
        drawn: list[int] = []
        while len(drawn) < steps:
            size = min(self.K, steps - len(drawn)) if self.sampling == "without_replacement" else steps
            drawn += torch.multinomial(q, size, self.sampling == "with_replacement", generator=rng).tolist()
        return drawn

    def initial(self, layout: Layout, rank: int, seed: int) -> dict[str, Tensor]:
        """Version 0: a = 0 and rho = 1, the model is w0 bit for bit; Pro's histories are empty.

        Raises ValueError for a part of a name in `no_decay` that no tensor of the layout has in its name.
        """
        for part in self.no_decay:
            if not any(part in n for n in layout.parameters):
                raise ValueError(f"no_decay: no parameter of this model has {part!r} in its name")
        state = {"pool": torch.zeros(self.K)}
        if self.decays:
            state["rho"] = torch.ones(1)
        if self.spares:
            state["spared"] = torch.zeros(self.K)
        if self.pro:
            state |= {"count": torch.zeros(self.K), "magnitude": torch.zeros(self.K)}
        return state

    def downlink(self, state: State, have: int | None, plan: Plan) -> Tensors:
        """What a client is sent that does not hold this version yet: a, rho and q."""
        if have == state.version:
            return {}
        sent = {"pool": state.tensors["pool"]}
        if "rho" in state.tensors:
            sent["rho"] = as_bits(state.tensors["rho"])
        if "spared" in state.tensors:
            sent["spared"] = state.tensors["spared"]
        if self.pro:
            q = probabilities(state.tensors["count"], state.tensors["magnitude"])
            sent["q"] = q.half().view(torch.uint16)
        return sent

    def download(self, layout: Layout, plan: Plan) -> Download:
        """Names, shapes and dtypes of that."""
        sent = {"pool": TensorSpec((self.K,))}
        if self.decays:
            sent["rho"] = TensorSpec((1,), "int32")
        if self.spares:
            sent["spared"] = TensorSpec((self.K,))
        if self.pro:
            sent["q"] = TensorSpec((self.K,), "uint16")
        return sent.get

    def add(self, state: State, change: Tensors) -> dict[str, Tensor]:
        """The next state: a := f a + sum_k p_k c_k and rho := f rho, f the round's mean decay; the rest adds up."""
        f = change.get("rho", torch.ones(1))
        new = {"pool": f * state.tensors["pool"] + change["pool"]}
        if "rho" in state.tensors:
            new["rho"] = f * state.tensors["rho"]
        return new | {n: state.tensors[n] + change[n] for n in ("spared", "count", "magnitude") if n in change}

    def replay(self, handle: Handle, turn: Turn) -> None:
        """Put the model at w := rho w0 - sum_j a_j z_j, in one pass over the weights.

        Raises ValueError where tensors are spared from decay, and weights fixed at w0.
        """
        back_to_base(handle, turn)
        rho, a = self.coefficients(turn)
        z = self.directions(turn.run_seed)
        if handle.weights_fixed:
            if self.no_decay:
                raise ValueError("no_decay needs weights that move; wanted [model] dtype = 'float32'")
            handle.shift_along(z, -a.double(), rho)
            return
        spared = set(self.spared(handle.parameters()))
        b = self.coefficients_spared(turn) if spared else a
        for name, parameter in handle.parameters().items():
            if rho != 1.0 and name not in spared:
                parameter.data.mul_(rho)
            z.axpy_(parameter.data, name, -(b if name in spared else a))

    def coefficients_spared(self, turn: Turn) -> Tensor:
        """b of w0 - sum_j b_j z_j, where tensors do not decay; float32 [K]."""
        return turn.held["spared"] if self.folded else turn.plan.learning_rate * turn.held["pool"]

    def coefficients(self, turn: Turn) -> tuple[float, Tensor]:
        """(rho, a) of w = rho w0 - sum_j a_j z_j, where tensors decay; a is float32 [K]."""
        a = turn.held["pool"]
        if self.folded:
            return factor_of(turn.held["rho"]) if "rho" in turn.held else 1.0, a
        # for each seed with a non-zero sum, in order: w = (1 - eta lam) w - eta g_j z_j
        keep = 1 - turn.plan.learning_rate * self.weight_decay
        later = (a != 0).flip(0).cumsum(0).flip(0) - (a != 0).long()
        return keep ** int((a != 0).sum()), (turn.plan.learning_rate * a.double() * keep**later).float()


@lru_cache(maxsize=2)
def _generated(pool: SeedPool, seed: int) -> Directions:
    """One generator per run and process: it keeps the bits that do not depend on the seed number."""
    return pool.how.masked(pool.table or families.make(pool.family, seed, pool.K), seed)


def probabilities(count: Tensor, magnitude: Tensor) -> Tensor:
    """FedKSeed-Pro's q: a softmax of the mean slope sizes of the K directions, scaled to 0 .. 1.

    Args:
        count, magnitude: [K], how often each direction was probed, and the sum of |g|; each history starts with a zero.
    Returns:
        float64 [K] of sum 1; the largest is e times the smallest, unless all are equal.

    >>> probabilities(torch.tensor([1.0, 1.0, 1.0]), torch.tensor([4.0, 4.0, 4.0])).tolist() == [1 / 3] * 3
    True
    """
    m = magnitude.double() / (count.double() + 1)
    u = (m - m.min()) / (m.max() - m.min() + 1e-10)
    return torch.softmax(u, 0)


def as_bits(x: Tensor) -> Tensor:
    """float32 as int32 of the same bits: a factor next to 1 must not be rounded by a 16-bit codec."""
    return x.view(torch.int32)


def factor_of(x: Tensor) -> float:
    """The number that `as_bits` hid; a float tensor of one number, made by hand, is that number."""
    return float(x.view(torch.float32) if x.dtype == torch.int32 else x)
