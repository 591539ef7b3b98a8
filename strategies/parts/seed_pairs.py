"""What a client sends of a walk through a pool of K directions (`seed_pool`): the pairs (j, c_j) that it drew.

    upload    `index` uint16, `scalar` float32: j increasing, and c_j, the walk being w := f w - sum_j c_j z_j
              `decay` int32 [1], the bits of f                                        with weight decay
              `spared` float32: c_j of a walk without decay                           where tensors are spared from it
              `count` uint16, `magnitude` float32: probes along z_j, sum of |g|       with Pro
    change    `pool` sum_k p_k c_k, float32 [K];  `rho` the p_k-mean of f, [1];  `spared` as `pool`
              `count` and `magnitude` added up, [K]

At most steps x samples pairs of 2 + 4 bytes (12 with Pro; 4 more where tensors are spared). Of the published code c_j
are sums of raw slopes, without f.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from fedft.arithmetic.tensors import Tensors
from fedft.config import RunConfig
from fedft.contract import Layout
from fedft.errors import RejectedUpdate
from fedft.strategies.parts.scalar_bound import check_scalars
from fedft.strategies.parts.seed_pool import SeedPool, as_bits, factor_of
from fedft.training.zeroth_order import Walked
from fedft.update import Plan, TensorSpec, Update

POOL_OF = {"scalar": "pool", "spared": "spared"}
"""What a mean of uploaded sums is added to."""


@dataclass(frozen=True)
class SeedPairs:
    """The uploads of a pool."""

    pool: SeedPool

    @property
    def _sums(self) -> tuple[str, ...]:
        """Names of the sums c_k of an upload."""
        return ("scalar", "spared") if self.pool.spares else ("scalar",)

    def of(self, walked: Walked) -> dict[str, Tensor]:
        """The upload of a walk: the directions that were probed, and nothing of the others."""
        c = walked.moved if self.pool.folded else walked.slopes
        drawn = walked.count.nonzero().squeeze(1)
        sent = {"index": drawn.to(torch.uint16), "scalar": c[drawn].float()}
        if self.pool.decays:
            sent["decay"] = as_bits(torch.tensor([walked.keep]))
        if self.pool.spares:
            sent["spared"] = walked.straight[drawn].float()
        if self.pool.pro:
            sent |= {"count": walked.count[drawn].to(torch.uint16), "magnitude": walked.magnitude[drawn]}
        return sent

    def spec(self, layout: Layout, plan: Plan) -> dict[str, TensorSpec]:
        """Names, dtypes and largest lengths of an upload."""
        n = min(plan.steps * self.pool.how.samples, self.pool.K)
        spec = {"index": TensorSpec((n,), "uint16", at_most=True), "scalar": TensorSpec((n,), at_most=True)}
        if self.pool.decays:
            spec["decay"] = TensorSpec((1,), "int32")
        if self.pool.spares:
            spec["spared"] = TensorSpec((n,), at_most=True)
        if self.pool.pro:
            spec |= {"count": TensorSpec((n,), "uint16", at_most=True), "magnitude": TensorSpec((n,), at_most=True)}
        return spec

    def admit(self, delta: Tensors, plan: Plan) -> None:
        """Raise RejectedUpdate for pairs that no walk of the plan's steps can have made.

        Numbers j must increase strictly and stay below K; sums of |c_j|, probes, slopes and the decay must be within
        what clipped steps reach.
        """
        j, pool = delta["index"].to(torch.int64), self.pool
        if any(len(delta[n]) != len(j) for n in delta if n != "decay"):
            raise RejectedUpdate("spec_mismatch", "the pairs' tensors differ in length")
        if len(j) and (int(j.max()) >= pool.K or bool((j.diff() <= 0).any())):
            raise RejectedUpdate("seed_out_of_pool", f"seed numbers must increase strictly and stay below {pool.K}")
        for c in self._sums:
            check_scalars(delta[c], pool.how, plan, plan.learning_rate if pool.folded else 1.0)
        if pool.pro:
            _check_history(delta["count"].double(), delta["magnitude"].double(), pool, plan)
        least = (1 - plan.learning_rate * pool.weight_decay) ** plan.steps * (1 - 1e-5)
        if "decay" in delta and not least <= (f := factor_of(delta["decay"])) <= 1:
            raise RejectedUpdate("out_of_bounds", f"decay {f:g} is not in [{least:g}, 1]")

    def aggregate(self, updates: Iterable[Update]) -> dict[str, Tensor]:
        """The change of a round; updates are read once. Raises ValueError where there are none."""
        k, total, decay = self.pool.K, 0.0, 0.0
        sums = {n: torch.zeros(k, dtype=torch.float64) for n in self._sums}
        history = {n: torch.zeros(k, dtype=torch.float64) for n in ("count", "magnitude") if self.pool.pro}
        for u in updates:
            j = u.delta["index"].to(torch.int64)
            for n, c in sums.items():
                c[j] += u.num_examples * u.delta[n].double()
            for n, h in history.items():
                h[j] += u.delta[n].to(torch.float64)
            decay += u.num_examples * (factor_of(u.delta["decay"]) if "decay" in u.delta else 1.0)
            total += u.num_examples
        if not total:
            raise ValueError("expected at least one update, got none")
        change = {POOL_OF[n]: (c / total).float() for n, c in sums.items()} | {n: h.float() for n, h in history.items()}
        if self.pool.decays:
            change["rho"] = torch.tensor([decay / total])
        return change

    def summand(self, delta: Tensors, plan: Plan) -> dict[str, Tensor]:
        """An upload as tensors whose weighted sum is all that the server needs: each c_k as [K], and the decay."""
        j, dense = delta["index"].to(torch.int64), {}
        for n in self._sums:
            dense[n] = torch.zeros(self.pool.K).index_copy_(0, j, delta[n])
        return dense | ({"decay": torch.tensor([factor_of(delta["decay"])])} if "decay" in delta else {})

    def from_sum(self, mean: Tensors, plan: Plan) -> dict[str, Tensor]:
        """An upload that amounts to a mean of summands: all K pairs (j, c_j)."""
        return {"index": torch.arange(self.pool.K).to(torch.uint16), **mean}

    def reach(self, config: RunConfig, name: str) -> float:
        """The largest |c_j| that steps by the rule can come to; 1 for the decay."""
        if name == "decay":
            return 1.0
        rate = config.local.learning_rate if self.pool.folded else 1.0
        return config.local.steps * self.pool.how.largest_step() * rate


def _check_history(count: Tensor, size: Tensor, pool: SeedPool, plan: Plan) -> None:
    """Raise RejectedUpdate for more probes than the plan has, or slopes above the clip but for an int8's rounding."""
    if int(count.sum()) > (most := plan.steps * pool.how.samples):
        raise RejectedUpdate("too_many_steps", f"counts add up to more than {most} probes")
    most_each = 1.01 * pool.how.scalar_clip * count + (size.max() / 127 if len(size) else 0)
    if not bool(((size >= 0) & (size <= most_each)).all()):
        raise RejectedUpdate("scalar_bound", f"a magnitude is not in 0 .. {pool.how.scalar_clip:g} x its count")
