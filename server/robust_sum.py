"""A guard for sums that a few dishonest clients cannot move as they like: weights by distances, or entry by entry.

    by weight    Update.num_examples := round(2^20 w_k), then the recipe's own aggregate; examples do not count
    by entry     the middle of all summands, as one update

Where uploads are changes, weights may add up to less than one: the rest is no change. Other uploads have no such rest,
there weights count relative to their sum.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor

from fedft.aggregation import entrywise, robust_weights
from fedft.aggregation.beginnings import Beginnings
from fedft.aggregation.robust_rules import BY_ENTRY
from fedft.aggregation.robust_weights import NoSum, Weighed
from fedft.aggregation.round_gram import RoundGram
from fedft.config import RunConfig
from fedft.errors import RunPaused
from fedft.server.guard import Sum, Summed
from fedft.update import Plan, Update

log = logging.getLogger(__name__)

ONE = 2**20
"""The integer weight of a client that counts wholly, alone."""


@dataclass
class RobustSum:
    """The sum of `[robust] rule`."""

    config: RunConfig
    root: Callable[[Sum], tuple[Update, Plan]] | None = None
    """Makes an honest change, for the rule that goes by one."""

    def sum(self, of: Sum) -> Summed:
        """The change by the rule; the round's line says the rule, and of rules by weight each client's weight and
        score.

        Raises RunPaused where there are too few updates for the rule, or none that it lets count.
        """
        updates = list(of.updates())  # long ones lie in the journal, and are read tensor by tensor
        try:
            return self._by_entry(of, updates) if self.config.robust.rule in BY_ENTRY else self._by_weight(of, updates)
        except NoSum as e:
            raise RunPaused(f"round {of.state.version}: nothing is committed: {e}") from e

    def _by_weight(self, of: Sum, updates: Sequence[Update]) -> Summed:
        robust, plans = self.config.robust, [of.plans[c] for c in of.weights]
        begun = Beginnings(of.recipe, of.layout, of.state, plans[0], self.config.local, self.config.server.seed)
        if self.root is not None:
            update, plan = self.root(of)
            H = RoundGram(begun, [*updates, update], [*plans, plan]).find()
        else:
            H = RoundGram(begun, updates, plans).find()
        sums = of.recipe.linear and of.recipe.upload_kind == "changes"
        found = self._weighed(H, grow=sums)
        whole = [round(w * ONE) for w in found.weights.tolist()]
        if not any(whole):
            raise NoSum("no update points the way of a turn on [robust] root; are these records like the clients'?")
        kept = [replace(u, num_examples=n) for u, n in zip(updates, whole, strict=True) if n]
        change = of.recipe.aggregate(replace(u, cohort=len(kept)) for u in kept)
        if sums and robust.rule in ("norm_clip", "fltrust"):
            change = {n: x * (sum(whole) / ONE) for n, x in change.items()}
        said: dict[str, Any] = {"weights": dict(zip(of.weights, [n / ONE for n in whole], strict=True))}
        if not self.config.privacy.on:  # scores are numbers of single clients
            said["scores"] = dict(zip(of.weights, found.scores.tolist(), strict=True))
        return Summed(change, {"robust": {"rule": robust.rule, **said}})

    def _weighed(self, H: Tensor, *, grow: bool) -> Weighed:
        """What the rule by weight makes of H; `grow`: short updates may count for more than they are."""
        robust = self.config.robust
        if robust.rule == "fltrust":
            return robust_weights.fltrust(H, grow=grow)
        if robust.rule == "multi_krum":
            f = robust_weights.most_dishonest(len(H)) if robust.f is None else robust.f
            return robust_weights.multi_krum(H, f)
        return robust_weights.norm_clip(H) if robust.rule == "norm_clip" else robust_weights.geometric_median(H)

    def _by_entry(self, of: Sum, updates: Sequence[Update]) -> Summed:
        robust, recipe = self.config.robust, of.recipe
        terms = [recipe.summand(u.delta, of.plans[c]) for c, u in zip(of.weights, updates, strict=True)]
        rule = entrywise.median if robust.rule == "median" else partial(entrywise.trimmed_mean, trim=robust.trim)
        middle = entrywise.of_clients_tensors(terms, rule)
        if not any(bool(x.any()) for x in middle.values()) and any(bool(x.any()) for t in terms for x in t.values()):
            said = "round %d: the %s of all updates is zero in every entry: of each entry most clients say nothing"
            log.warning(said, of.state.version, robust.rule)
        plan = next(iter(of.plans.values()))
        only = replace(updates[0], delta=recipe.from_sum(middle, plan), num_examples=1, cohort=1)
        return Summed(recipe.aggregate(iter([only])), {"robust": {"rule": robust.rule}})
