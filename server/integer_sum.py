"""The guard of secure sums: what the server makes of the sum of all clients' integers, which is all that it needs."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from fedft.config import RunConfig
from fedft.errors import ConfigError, RunPaused
from fedft.privacy.secure_sum import noisy_integers
from fedft.privacy.secure_sum.context import MOST, Spec, threshold
from fedft.privacy.secure_sum.integer_uploads import RING, Integers, masked_of, of_ring
from fedft.server.guard import Sum, Summed
from fedft.update import MEMBERS, Update

log = logging.getLogger(__name__)

CODE = "secagg_out_of_range"
BAD_ROUNDS = 2, 5  # so many sums out of range, in so many rounds, and the run pauses: somebody sends rubbish


@dataclass
class IntegerSum:
    """The sum of the clients' integers."""

    integers: Integers
    masked: "Callable[[Mapping[str, np.ndarray]], np.ndarray] | None" = None
    """(masked vectors by client) -> the sum of what they hide, int64, beyond all bounds where it is none; None: nothing
    is masked, which is for tests and comparisons."""
    _bad: list[int] = field(default_factory=list)
    """Rounds whose sum was none."""

    def sum(self, of: Sum, expected: float | None = None) -> Summed:
        """The change that the mean of the integers makes, over as many as are `expected`; None: as there are.

        Where they add up to what no clients can have sent, nobody has moved in this round, which cannot be done again:
        of one work a client opens one sum. Raises RunPaused where that goes on.
        """
        plan, number = of.plans[next(iter(of.weights))], of.state.version
        spec = self.integers.spec(of.layout, plan)
        record: dict[str, Any] = {}
        total, like = self._total(of, spec)
        count = len(of.weights)
        if np.abs(total).max(initial=0) > spec.most(count, threshold(int(plan.extra.get(MEMBERS, count)))):
            self._note(number)
            log.warning("round %d: %s: no clients can have sent this sum; the model stays as it was", number, CODE)
            total, record = np.zeros_like(total), {"sum_refused": CODE}
        change, loss = self.integers.change(total, expected or count, of.layout, plan, like)
        return Summed(change, record or ({} if loss is None else {"train_loss": loss}))

    def _total(self, of: Sum, spec: Spec) -> tuple[np.ndarray, Update]:
        """(the sum over the clients of the round, int64 [spec.length]; an update of one, for what else it says)."""
        total, update = np.zeros(spec.length, np.int64), Update({}, 1)
        vectors: dict[str, np.ndarray] = {}
        for update in of.updates():
            if self.masked is None:
                total += of_ring(update.delta[RING])
            else:
                vectors[update.client] = masked_of(update.delta[RING])
        return total if self.masked is None else self.masked(vectors), update

    def _note(self, number: int) -> None:
        most, rounds = BAD_ROUNDS
        self._bad = [r for r in self._bad if r > number - rounds] + [number]
        if len(self._bad) >= most:
            raise RunPaused(
                f"round {number}: {CODE}, {most} times in {rounds} rounds: a client sends rubbish, and nobody can see "
                "which one: two runs of half of the clients each show in which half it is; running again goes on"
            )


def check_clients(config: RunConfig, clients: int) -> None:
    """Return None if so many clients can have secure sums. Raises ConfigError in one line."""
    privacy, per_round = config.privacy, config.clients.per_round
    if privacy.secagg == "off":
        return
    said = f"[privacy] secagg = {privacy.secagg!r}"
    if clients < privacy.min_cohort:
        raise ConfigError(f"{said}: {clients} clients, [privacy] min_cohort is {privacy.min_cohort}")
    if clients > MOST:
        raise ConfigError(f"{said}: {clients} clients, at most {MOST} can share masks")
    if per_round is not None and per_round < threshold(clients):
        raise ConfigError(
            f"{said}: [clients] per_round = {per_round}, wanted {threshold(clients)} of {clients} or more: whoever is "
            "not asked counts as lost"
        )
    spec = Spec(privacy.value_bits, 1.0, privacy.ring_bits, (("", (1,)),))
    if privacy.shared:
        spec = replace(spec, noise=noisy_integers.noise_multiplier(privacy) * spec.largest)
    try:
        spec.check_fits(clients)
    except ValueError as e:
        raise ConfigError(f"[privacy] value_bits = {privacy.value_bits}, ring_bits = {privacy.ring_bits}: {e}") from e
