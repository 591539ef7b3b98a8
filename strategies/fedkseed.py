"""FedKSeed: every step of every client goes along one of K shared directions, so the model is w0 plus K scalars.

    client   j ~ uniform(K) or q (Pro);   g = (L(w + eps z_j) - L(w - eps z_j)) / (2 eps)
             w -= eta g z_j;   c_j += eta g                                 uploads the pairs (j, c_j) it drew
             or w -= sum_j s_j z_j, c += s by another rule                  momentum, adam, sign, conservative
    server   a += sum_k p_k c_k                                             broadcasts a
    model    w(a) = rho w0 - sum_j a_j z_j                                  replayed from w0 in one pass

Folding eta into a keeps replay right under learning-rate schedules. A step with weight decay lam scales w by
(1 - eta lam), hence rho and a by the same: one more scalar, and replay stays O(K). Pro draws directions by how large
their slopes were, q = softmax of the min-max-scaled mean |g|, and uploads the statistics it needs (counted).

The other rules are those whose steps are sums of the K directions (`rules`), so replay stays the exact mean of the
clients' weights; momentum and moments begin anew in every round, as functions of the pairs alone. With `sparsity` all
K directions are zero in the same entries, for the whole run.

`variant="reference"` is what the published code computes: raw slopes in the pool, the learning rate applied at replay
(so it must not change from round to round), and weight decay once per replayed non-zero seed.

A client holds w0 beside the live weights (replay starts there) and one module's perturbed weights at a time; no third
copy. In half precision the live weights are w0 for the whole run, and forward passes see the rounded sum, made anew for
every module (`probe`): the memory of inference and one module. Works on all parameters (`space="full"`) or on LoRA's
(`space="lora"`), whose w0 is the seeded A and B = 0.

Qin et al., "Federated Full-Parameter Tuning of Billion-Sized Language Models with Communication Cost under 18
Kilobytes", ICML 2024, arXiv:2312.06353.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from fedft import check
from fedft.adapters.full import Full
from fedft.adapters.lora import LoRA
from fedft.arithmetic.tensors import Tensors
from fedft.config import RunConfig
from fedft.contract import Data, Handle, Layout, State, Trained, Turn
from fedft.errors import RejectedUpdate
from fedft.randomness import families
from fedft.randomness.directions import Directions
from fedft.recipe import Recipe, back_to_base
from fedft.strategies.parts.zeroth_options import takes_walk
from fedft.training import zeroth_order, zeroth_rules
from fedft.training.zeroth_rules import Walk
from fedft.update import Plan, TensorSpec, Update


@takes_walk("resample", "blocks", "coordinate", "first_order_from", "first_order_factor", epsilon=5e-4)
def fedkseed(
    how: Walk,
    *,
    K: int = 4096,
    pro: bool = False,
    space: Literal["full", "lora"] = "full",
    family: str = "hadamard",
    weight_decay: float = 0.0,
    sampling: Literal["with_replacement", "without_replacement"] = "with_replacement",
    table: Directions | None = None,
) -> Recipe:
    """Zeroth-order federated tuning in K fixed directions.

    Args:
        K: number of shared directions, 1 to 4096 (larger pools need another layout of `hadamard`).
        pro: draw directions by their history (FedKSeed-Pro).
        space: all parameters, or the LoRA factors only.
        family: `hadamard` (default), `rademacher` or `gaussian`.
        weight_decay: lam, on every trained parameter; the rule `conservative`, which compares losses, cannot have any.
        sampling: draw directions with (the paper) or without replacement within a round.
        table: K directions in place of the generator's (`independent.Table`), to check numbers by hand.
    """
    check.between(1, 4096, K=K)
    check.at_least(0, weight_decay=weight_decay)
    check.one_of(("full", "lora"), space=space)
    check.one_of(("with_replacement", "without_replacement"), sampling=sampling)
    how.check_span(zeroth_rules.signs(table or families.make(family, 0, K)))  # `make` refuses what the family cannot do
    if table is not None and table.count != K:
        raise ValueError(f"expected a table of K = {K} directions, got {table.count}")
    if how.rule == "conservative" and weight_decay:
        raise ValueError("rule 'conservative' never raises the loss of a batch, weight_decay may; choose one")
    if how.rule != "sgd" and how.variant == "reference":
        raise ValueError(f"the published code's pool of raw slopes knows rule 'sgd' only, got {how.rule!r}")
    pool = Pool(K, how, pro, family, weight_decay, sampling, table)
    return Recipe(
        "fedkseed",
        Full(along_directions=True) if space == "full" else LoRA(),
        aggregate=pool.aggregate,
        local=pool.walk,
        initial=pool.initial,
        server=pool.add,
        downlink=pool.downlink,
        start=pool.replay,
        upload=pool.spec,
        admit=pool.admit,
        check=pool.check,
        summand=pool.summand,
        from_sum=pool.from_sum,
        upload_kind="numbers",
        linear=not pro,  # its statistics are sums over clients, not means
    )


def _bits(x: Tensor) -> Tensor:
    """float32 as int32 of the same bits: a factor next to 1 must not be rounded by a 16-bit codec."""
    return x.view(torch.int32)


def _factor(x: Tensor) -> float:
    """What `_bits` hid, or a float tensor made by hand."""
    return float(x.view(torch.float32) if x.dtype == torch.int32 else x)


@dataclass(frozen=True)
class Pool:
    """The K scalars and what is done with them."""

    K: int
    how: Walk
    pro: bool
    family: str
    weight_decay: float
    sampling: str
    table: Directions | None = None

    def directions(self, run_seed: int) -> Directions:
        """The K directions of a run."""
        return _generated(self, run_seed)

    def check(self, config: RunConfig) -> None:
        """Raw slopes of several rounds share one learning rate: the last one."""
        decay = config.local.learning_rate_decay
        if self.how.variant == "reference" and decay != 1:
            raise ValueError(
                f"variant 'reference' replays all rounds at one learning rate; wanted [local] learning_rate_decay = 1,"
                f" got {decay}"
            )

    def initial(self, layout: Layout, rank: int, seed: int) -> dict[str, Tensor]:
        """a = 0 and rho = 1: the model is w0, bit for bit."""
        state = {"pool": torch.zeros(self.K)}
        if self.weight_decay and self.how.variant == "exact":
            state["rho"] = torch.ones(1)
        if self.pro:
            state |= {"count": torch.zeros(self.K), "magnitude": torch.zeros(self.K)}
        return state

    def downlink(self, state: State, have: int | None, plan: Plan) -> Tensors:
        """a (K float32), and for Pro q (K float16, sent as its bits)."""
        if have == state.version:
            return {}
        sent = {"pool": state.tensors["pool"]}
        if "rho" in state.tensors:
            sent["rho"] = _bits(state.tensors["rho"])
        return sent | {"q": self.q(state.tensors).half().view(torch.uint16)} if self.pro else sent

    def q(self, state: Tensors) -> Tensor:
        """Pro's probabilities of the K directions: [K], float64, largest / smallest = e unless all are equal."""
        m = state["magnitude"].double() / (state["count"].double() + 1)  # each history starts with one zero
        u = (m - m.min()) / (m.max() - m.min() + 1e-10)
        return torch.softmax(u, 0)

    def replay(self, handle: Handle, turn: Turn) -> None:
        """w := rho w0 - sum_j a_j z_j, in one pass over the weights."""
        back_to_base(handle, turn)
        rho, a = self.coefficients(turn)
        z = self.directions(turn.run_seed)
        if handle.weights_fixed:
            handle.shift_along(z, -a.double(), rho)
            return
        for name, parameter in handle.parameters().items():
            if rho != 1.0:
                parameter.data.mul_(rho)
            z.axpy_(parameter.data, name, -a)

    def coefficients(self, turn: Turn) -> tuple[float, Tensor]:
        """(rho, a) of w = rho w0 - sum_j a_j z_j."""
        a = turn.held["pool"]
        if self.how.variant == "exact":
            return _factor(turn.held["rho"]) if "rho" in turn.held else 1.0, a
        # for each seed with a non-zero sum, in order: w = (1 - eta lam) w - eta g_j z_j
        keep = 1 - turn.plan.learning_rate * self.weight_decay
        later = (a != 0).flip(0).cumsum(0).flip(0) - (a != 0).long()
        return keep ** int((a != 0).sum()), (turn.plan.learning_rate * a.double() * keep**later).float()

    def walk(self, handle: Handle, data: Data, turn: Turn) -> Trained:
        """`plan.steps` steps; uploads the sums c_j of the directions drawn."""
        z = self.directions(turn.run_seed)
        walked = zeroth_order.walk(handle, data, turn, self.how, z, self.draws(turn), self.weight_decay)
        c = walked.slopes if self.how.variant == "reference" else walked.moved
        drawn = walked.count.nonzero().squeeze(1)
        sent = {"index": drawn.to(torch.uint16), "scalar": c[drawn].float()}
        if self.weight_decay and self.how.variant == "exact":
            sent["decay"] = _bits(torch.tensor([walked.keep]))
        if self.pro:
            sent |= {"count": walked.count[drawn].to(torch.uint16), "magnitude": walked.magnitude[drawn]}
        return Trained(sent, walked.metrics)

    def draws(self, turn: Turn) -> list[int]:
        """The seed numbers of this turn's steps, `samples` for each."""
        rng = torch.Generator().manual_seed(turn.seed)
        q = turn.held["q"].view(torch.float16).double() if self.pro else torch.ones(self.K, dtype=torch.float64)
        steps = turn.plan.steps * self.how.samples
        drawn: list[int] = []
        while len(drawn) < steps:
            size = min(self.K, steps - len(drawn)) if self.sampling == "without_replacement" else steps
            drawn += torch.multinomial(q, size, self.sampling == "with_replacement", generator=rng).tolist()
        return drawn

    def spec(self, layout: Layout, plan: Plan) -> dict[str, TensorSpec]:
        """At most `plan.steps` x `samples` pairs: 2 + 4 bytes each."""
        n = min(plan.steps * self.how.samples, self.K)
        spec = {"index": TensorSpec((n,), "uint16", at_most=True), "scalar": TensorSpec((n,), at_most=True)}
        if self.weight_decay and self.how.variant == "exact":
            spec["decay"] = TensorSpec((1,), "int32")
        if self.pro:
            spec |= {"count": TensorSpec((n,), "uint16", at_most=True), "magnitude": TensorSpec((n,), at_most=True)}
        return spec

    def admit(self, delta: Tensors, plan: Plan) -> None:
        """Seed numbers strictly increasing and below K; sum |c_j| within what clipped steps can reach."""
        j = delta["index"].to(torch.int64)
        if any(len(delta[n]) != len(j) for n in delta if n != "decay"):
            raise RejectedUpdate("spec_mismatch", "the pairs' tensors differ in length")
        if len(j) and (int(j.max()) >= self.K or bool((j.diff() <= 0).any())):
            raise RejectedUpdate("seed_out_of_pool", f"seed numbers must increase strictly and stay below {self.K}")
        unit = 1.0 if self.how.variant == "reference" else plan.learning_rate
        bound = plan.steps * self.how.reach() * unit
        if not zeroth_rules.within(delta["scalar"], bound):
            raise RejectedUpdate(
                "scalar_bound", f"sum of |scalars| exceeds {bound:g}, what {plan.steps} steps can reach"
            )
        if self.pro:
            count = delta["count"].double()
            if int(count.sum()) > (most := plan.steps * self.how.samples):
                raise RejectedUpdate("too_many_steps", f"counts add up to more than {most} probes")
            size = delta["magnitude"].double()
            most_each = 1.01 * self.how.scalar_clip * count + (size.max() / 127 if len(size) else 0)  # as int8 rounds
            if not bool(((size >= 0) & (size <= most_each)).all()):
                raise RejectedUpdate("scalar_bound", f"a magnitude is not in 0 .. {self.how.scalar_clip:g} x its count")
        least = (1 - plan.learning_rate * self.weight_decay) ** plan.steps * (1 - 1e-5)
        if "decay" in delta and not least <= (f := _factor(delta["decay"])) <= 1:
            raise RejectedUpdate("out_of_bounds", f"decay {f:g} is not in [{least:g}, 1]")

    def aggregate(self, updates: Iterable[Update]) -> dict[str, Tensor]:
        """sum_k p_k c_k as [K]; for Pro the statistics added up; the p_k-mean of the decays."""
        pool, total, decay = torch.zeros(self.K, dtype=torch.float64), 0.0, 0.0
        history = {n: torch.zeros(self.K, dtype=torch.float64) for n in ("count", "magnitude") if self.pro}
        for u in updates:
            j = u.delta["index"].to(torch.int64)
            pool[j] += u.num_examples * u.delta["scalar"].double()
            for n, h in history.items():
                h[j] += u.delta[n].to(torch.float64)
            decay += u.num_examples * (_factor(u.delta["decay"]) if "decay" in u.delta else 1.0)
            total += u.num_examples
        if not total:
            raise ValueError("expected at least one update, got none")
        change = {"pool": (pool / total).float()} | {n: h.float() for n, h in history.items()}
        if self.weight_decay and self.how.variant == "exact":
            change["rho"] = torch.tensor([decay / total])
        return change

    def summand(self, delta: Tensors, plan: Plan) -> dict[str, Tensor]:
        """c_k as [K], and the decay."""
        c = torch.zeros(self.K)
        c[delta["index"].to(torch.int64)] = delta["scalar"]
        return {"scalar": c} | ({"decay": torch.tensor([_factor(delta["decay"])])} if "decay" in delta else {})

    def from_sum(self, mean: Tensors, plan: Plan) -> dict[str, Tensor]:
        """All K pairs (j, c_j) of a mean."""
        return {"index": torch.arange(self.K).to(torch.uint16), **mean}

    def add(self, state: State, change: Tensors) -> dict[str, Tensor]:
        """a := f a + sum_k p_k c_k and rho := f rho, f the mean decay of the round."""
        f = change.get("rho", torch.ones(1))
        new = {"pool": f * state.tensors["pool"] + change["pool"]}
        if "rho" in state.tensors:
            new["rho"] = f * state.tensors["rho"]
        return new | {n: state.tensors[n] + change[n] for n in ("count", "magnitude") if n in change}


@lru_cache(maxsize=2)
def _generated(pool: Pool, seed: int) -> Directions:
    """One generator per run and process: it keeps the bits that do not depend on the seed number."""
    return pool.how.masked(pool.table or families.make(pool.family, seed, pool.K), seed)
