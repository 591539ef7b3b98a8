"""How far what the server applied is from the mean of what the clients trained: |applied - exact| / |exact|.

    exact     sum_k p_k B_k A_k, the mean of the clients' products; p_k = n_k / sum n_j, also where a weight is cut
    applied   what the model at the new state differs by from the base that the clients trained on

Zero, up to float32, for a method whose aggregate is exact, where `[limits] max_share` cuts no weight; for FedIT it is
the covariance of the factors, |sum_k p_k (B_k - B)(A_k - A)| / |sum_k p_k B_k A_k|. All products stay factored. Where a
strategy puts a model `beginnings` finds, so no strategy has code for this.

Where the factors of all clients would take much memory, or their products much time (it grows with the square of the
clients), a sample of modules is measured in place of all.
"""

import hashlib
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedft.aggregation.beginnings import Beginnings
from fedft.arithmetic import lowrank
from fedft.arithmetic.lowrank import LowRank
from fedft.arithmetic.named_pairs import A_SUFFIX, B_SUFFIX
from fedft.arithmetic.stacks import stack
from fedft.arithmetic.tensors import Tensors
from fedft.arithmetic.weight_changes import Change, plus
from fedft.contract import Layout, State
from fedft.update import Plan, Shape, Update

log = logging.getLogger(__name__)

HELD = 2**26  # numbers of clients' factors that are held: 256 MiB
WORK = 4e10  # multiplications of the factors' products: some seconds of a core


def sampled(layout: Layout, rank: int, clients: int) -> list[str]:
    """The modules that a round of so many clients with adapters of this rank is measured on; all, where that is cheap.

    Else as many as are, the same ones in every run: those whose names have the smallest digests.

    >>> layout = Layout(modules={f"layers.{k}": (4096, 4096) for k in range(32)}, parameters={})
    >>> len(sampled(layout, 8, 4)), len(sampled(layout, 16, 100))
    (32, 1)
    """
    sizes = {m: sum(shape) for m, shape in layout.modules.items()}
    total, r = sum(sizes.values()), rank * clients
    share = min(1.0, HELD / max(1, total * r), WORK / max(1, total * r * r))
    kept = sorted(sizes, key=lambda m: hashlib.sha256(m.encode()).digest())[: max(1, int(share * len(sizes)))]
    return [m for m in layout.modules if m in set(kept)]


@dataclass
class AggregationAudit:
    """Measures one round, where that is `possible`: `see` each update that counts, then ask for the `error`.

    Holds their factors till then.
    """

    begun: Beginnings
    """Where its clients began."""
    modules: Sequence[str] = ()
    """That are measured; none named: all."""
    _trained: list[tuple[dict[str, LowRank], float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.modules = self.modules or [*self.begun.layout.modules]

    def possible(self, plans: Iterable[Plan]) -> bool:
        """Whether the strategy sends factors of LoRA pairs whose other half is known here, and all clients all of them.

        `plans` are of those whose updates count: where one does not train every module there is no mean over all.
        """
        return not any(p.chosen or p.shape.without for p in plans) and self.begun.of_pairs()

    def sampled(self, clients: int) -> "AggregationAudit":
        """This, of as many modules as can be measured for so many clients; that it is a sample is logged."""
        layout = self.begun.layout
        self.modules = sampled(layout, self.begun.plan.shape.largest, clients)
        if len(self.modules) < len(layout.modules):
            log.info("round %d: aggregation_error is of %d of %d modules; [eval] exactness = false measures none",
                     self.begun.state.version, len(self.modules), len(layout.modules))  # fmt: skip
        return self

    def see(self, update: Update, plan: Plan) -> None:
        """Take one update that counts, and the plan that its client was sent. Neither is modified."""
        begun, now = self.begun.of(plan.shape).values, {}
        wanted = {m + s for m in self.modules for s in (A_SUFFIX, B_SUFFIX)}
        for name in wanted & begun.keys():
            x, sent = begun[name], update.delta.get(name)
            now[name] = x if sent is None else sent if self.begun.recipe.upload_kind == "values" else x + sent
        self._trained.append((self._pairs(now), update.num_examples))

    def error(self, after: State, rank: int) -> float | None:
        """|applied - exact| / |exact| of the round that led to `after`; None where nothing was trained."""
        begun, new = self.begun.of(self.begun.plan.shape), self.begun.at(after, Shape(rank))
        applied = self._pairs(new.values)
        wrong, right = 0.0, 0.0
        for m in self.modules:
            exact = stack([(pairs[m], n) for pairs, n in self._trained])
            moved = plus(applied[m], _minus(new.change.get(m), begun.change.get(m), self.begun.layout.modules[m]))
            wrong += _distance(moved, exact) ** 2
            right += exact.norm() ** 2
        return (wrong / right) ** 0.5 if right else None

    def _pairs(self, values: Tensors) -> dict[str, LowRank]:
        return {m: LowRank(values[m + A_SUFFIX], values[m + B_SUFFIX]) for m in self.modules}


def _minus(new: Change | None, old: Change | None, shape: tuple[int, int]) -> Change:
    """new - old; where the new factors begin with the old ones (a sum that was appended to), what follows them."""
    new, old = (lowrank.zero(*shape) if d is None else d for d in (new, old))
    if isinstance(new, Tensor) or isinstance(old, Tensor):
        return plus(new, -old)
    r = old.rank
    if new.rank >= r and torch.equal(new.A[:r], old.A) and torch.equal(new.B[:, :r], old.B):
        return LowRank(new.A[r:], new.B[:, r:])
    return new + -old


def _distance(x: Change, y: LowRank) -> float:
    """|x - y|, the Frobenius norm in float64."""
    return float((x.double() - y.double().dense()).norm()) if isinstance(x, Tensor) else (x + -y).norm()
