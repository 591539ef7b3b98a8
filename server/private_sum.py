"""The sum of a round with noise that hides each client's part: `[privacy] mode = "central-dp"`.

    mean = g (sum_k s_k + Z) / m        s_k: update k clipped to C, on a grid of integers; Z: Gaussian, z C on the sum

m is how many are expected: as many as are asked, or q N with coins, never who answered; all weigh the same. The roster
is public and a client's rows are not: without them its part is zero, so the sum moves by C at most. Who does not answer
adds zero. It is the server that clips, what it has decoded: no client is believed.

McMahan, Ramage, Talwar, Zhang, "Learning Differentially Private Recurrent Language Models", ICLR 2018,
arXiv:1710.06963.
"""

import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedft.config import RunConfig
from fedft.contract import State
from fedft.errors import ConfigError
from fedft.privacy import balance, clipping, integer_noise, schedule, spent_budget
from fedft.privacy.adaptive_clip import AdaptiveClip
from fedft.privacy.keyed_stream import Stream
from fedft.privacy.secure_sum import noisy_integers
from fedft.privacy.spent_budget import TRAINING, Charge, Header
from fedft.recipe import nothing
from fedft.server.guard import Sum, Summed
from fedft.server.privacy_ledger import PrivacyLedger, digest_of, name_of
from fedft.server.private_facts import PrivateFacts
from fedft.server.private_schedule import PrivateSchedule
from fedft.update import Update

log = logging.getLogger(__name__)

EVALUATION = "evaluation"
"""What a release is of that is of no updates."""
RECORD = "privacy"
"""Of a round's record: clip, next_clip, and noise, the standard deviation of each number of the mean."""


class PrivateSum:
    """How a run with noise at the server sums. Used by the engine's thread.

    `begin` comes first, with the newest state; then for each round `schedule.draw`, `sum`, and `stands` once its state
    is committed.
    """

    def __init__(self, config: RunConfig, folder: Path) -> None:
        """`folder`: of the run's state. Nothing is read or written."""
        self._said, self._rounds = config.privacy, config.server.rounds
        self._seeded = config.privacy.noise == "seeded"
        self._clip = config.privacy.clip or 0.0
        self.facts = PrivateFacts(folder)
        self.ledger = PrivacyLedger(folder, config.server.seed if self._seeded else None)
        self.schedule = PrivateSchedule(config, self.ledger)

    def begin(
        self, members: Collection[str], state: State, record: Mapping[str, Any], measures: Collection[str] = ()
    ) -> None:
        """Take up the ledger where the newest state stands, or begin it: z is computed from an epsilon then.

        Args:
            members: who takes part.
            state: the newest.
            record: of the round that led to it.
            measures: what is released of each evaluation.
        Raises:
            ConfigError: delta is above 1 / N, no noise is enough for the epsilon, or there is nothing to balance.
            StateDamaged: see `PrivacyLedger.open`.
        """
        schedule.check_delta(self._said, len(members), {})
        if self._said.balance and not balance.scales(state.tensors):
            raise ConfigError("[privacy] balance: the strategy trains no pairs of factors; leave it out")
        self.schedule.seat(members, measures)
        self.ledger.open(state.version, self._header)
        self.stands(state.version, record)

    def _header(self) -> Header:
        said, z, of = self._said, self._said.noise_multiplier, self.schedule
        if said.shared:
            z = noisy_integers.noise_multiplier(said)
        if z is None:
            planned = of.planned(range(self._rounds), 1.0) + of.of_first_state(1.0)
            z = spent_budget.noise_for(planned, said.epsilon or 0.0, said.delta or 0.0)
            log.info("[privacy] epsilon = %g over %d rounds: noise_multiplier %.4g", said.epsilon, self._rounds, z)
        size, delta = len(of.members), said.delta or 0.0
        return Header(said.mode, self._clip, z, delta, size, of.expected, said.cohort, said.noise)

    def stands(self, version: int, record: Mapping[str, Any]) -> None:
        """The state of this version is durable, to which the round of this record has led: its noise is forgotten."""
        self._clip = record.get(RECORD, {}).get("next_clip", self._said.clip)
        self.ledger.erase(version)

    def is_fixed(self, round: int, digests: Mapping[str, str]) -> bool:
        """Whether the round's set was fixed before a kill, as these updates (SHA-256 by client): nobody is asked."""
        return self.ledger.is_fixed(name_of(round), digest_of(round, TRAINING, digests))

    def measured(self, version: int) -> None:
        """The line of this version is written: the noise of its evaluation is forgotten."""
        self.ledger.forget(name_of(version, EVALUATION))

    def dropped(self, round: int) -> None:
        """The round's updates were dropped: what is summed next is another release."""
        self.ledger.forget(name_of(round))

    @property
    def noise_multiplier(self) -> float:
        """z: of a round's releases together."""
        return self.ledger.ledger.header.noise_multiplier

    def sum(self, of: Sum) -> Summed:
        """The mean with noise, as the recipe's aggregate makes a change of it. Its charge is durable before.

        Raises BudgetSpent where the charge would be above `max_epsilon`.
        """
        round, adaptive = of.state.version, self._adaptive()
        multiplier, stream = self._of_sum(adaptive), self.charged(round, of.digests)
        scales = balance.scales(of.state.tensors) if self._said.balance else {}
        total, within, clipped = self._total(of, scales)
        drawn = integer_noise.noise(stream, {n: x.shape for n, x in total.items()}, multiplier)
        total = {n: s.add_(drawn.pop(n)) for n, s in total.items()}
        mean = balance.undone(clipping.off_grid(total, self._clip, self.schedule.expected), scales)
        update = Update(of.recipe.from_sum(mean, of.plan), 1, round, of.plan.run, roster=of.roster, cohort=1)
        said = {"clip": self._clip, "noise": multiplier * self._clip / self.schedule.expected}
        if adaptive:
            said["next_clip"] = adaptive.after(self._clip, within, clipped, stream)
        return Summed(of.recipe.aggregate([update]), {RECORD: said})

    def charged(self, round: int, digests: Mapping[str, str]) -> Stream:
        """The noise of the round's sum of these updates (SHA-256 by client), once its charge is durable.

        Raises BudgetSpent where the charge would be above `max_epsilon`.
        """
        deviation = self._of_sum(self._adaptive()) * self._clip
        return self.stream(round, TRAINING, digests, self.schedule.charge(round, self.noise_multiplier, deviation))

    def _of_sum(self, adaptive: AdaptiveClip | None) -> float:
        """Noise multiplier of the sum itself; what is left of z beside that of the clip."""
        return adaptive.sum_multiplier if adaptive else self.noise_multiplier

    def stream(self, round: int, what: str, digests: Mapping[str, str], charge: Charge) -> Stream:
        """The noise of a release, charged; `digests` are of the parts by client. See `PrivacyLedger.release`."""
        whole = digest_of(round, what, digests)
        # bytes of updates say which attempt they answer: seeded noise is that of any run with the same clients
        salt = digest_of(round, what, dict.fromkeys(digests, "")) if self._seeded else whole
        return self.ledger.release(name_of(round, what), whole, salt, charge, self.schedule.most)

    def _adaptive(self) -> AdaptiveClip | None:
        said, z = self._said, self.noise_multiplier
        if said.adaptive_quantile is None:
            return None
        return AdaptiveClip(said.adaptive_quantile, said.clip_learning_rate, z, self.schedule.expected)

    def _total(self, of: Sum, scales: dict[str, float]) -> tuple[dict[str, Tensor], int, int]:
        """(sum of all clipped parts on the grid, how many norms were within the clip, how many above)."""
        within = clipped = 0
        empty = of.recipe.summand(nothing(of.recipe.spec(of.layout, of.plan)), of.plan)
        total = {n: torch.zeros(empty[n].shape, dtype=torch.int64) for n in sorted(empty)}
        for update in of.updates():
            parts = balance.scaled(of.recipe.summand(update.delta, of.plans[update.client]), scales)
            if {n: x.shape for n, x in parts.items()} != {n: x.shape for n, x in total.items()}:
                raise ValueError(f"{of.recipe.name}: summands of unlike names or shapes in round {of.state.version}")
            inside = clipping.length(parts) <= self._clip
            within, clipped = within + inside, clipped + (not inside)
            for n, s in clipping.on_grid(parts, self._clip).items():
                total[n] += s
        return total, within, clipped
