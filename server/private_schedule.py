"""Who may be in the noisy sum of which round, what the rounds cost, and how many of them the budget still holds."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from fedft.config import RunConfig
from fedft.privacy import spent_budget
from fedft.privacy.schedule import MEASURE_NOISE
from fedft.privacy.secure_sum import noise_shares, noisy_integers
from fedft.privacy.spent_budget import TRAINING, Charge
from fedft.server import private_cohort
from fedft.server.privacy_ledger import PrivacyLedger, Toss, name_of


class PrivateSchedule:
    """The rounds of one run with noise at the server. `seat` or `draw` come first. Used by the engine's thread."""

    def __init__(self, config: RunConfig, ledger: PrivacyLedger) -> None:
        """`ledger`: of the run; it is read only, but for secret draws."""
        self._config, self._said, self._ledger = config, config.privacy, ledger
        self._members: tuple[str, ...] = ()
        self._measures: tuple[str, ...] = ()
        self._drawn: tuple[str, ...] = ()
        self._drawn_in: dict[int, tuple[str, ...]] = {}
        """Who of the members of now may be in the sum of a round, where that is public: each is drawn once."""
        self._toss = Toss("", 1.0, [])
        self.over = False
        """A release was refused for its price: no further round begins."""

    def seat(self, members: Collection[str], measures: Collection[str] = ()) -> None:
        """Take these as the members of now; `measures` are what is released of each evaluation."""
        found = tuple(sorted(members, key=str.encode))
        if found != self._members:
            self._drawn_in.clear()
        self._members, self._measures = found, tuple(measures)

    @property
    def members(self) -> Sequence[str]:
        """All who take part, in roster order (bytewise by name)."""
        return self._members

    @property
    def expected(self) -> float:
        """m: how many parts a sum is divided by, whoever answers."""
        size = len(self._members)
        return float(min(self._config.clients.per_round or size, size))

    @property
    def secret(self) -> bool:
        """Whether who takes part in a round is the server's secret."""
        return self._said.cohort == "poisson"

    @property
    def most(self) -> float | None:
        """The epsilon that the run may come to; None: any."""
        return self._said.epsilon if self._said.max_epsilon is None else self._said.max_epsilon

    def draw(self, round: int, members: Collection[str]) -> list[str]:
        """Who of these members may be in the sum of a round, in roster order; the same at every call for a round."""
        self.seat(members, self._measures)
        if self.secret:
            self._toss = self._ledger.drawn(round, self._members, self._probability)
            return list(self._toss.asked)
        self._drawn = self._public(round)
        return list(self._drawn)

    def _public(self, round: int) -> tuple[str, ...]:
        kind, config = self._said.cohort, self._config
        assert kind != "poisson"
        if round not in self._drawn_in:
            found = private_cohort.drawn(kind, self._members, config.clients.per_round, config.server.seed, round)
            self._drawn_in[round] = tuple(found)
        return self._drawn_in[round]

    @property
    def _probability(self) -> float:
        return self.expected / len(self._members)

    def charge(self, round: int, z: float, deviation: float) -> Charge:
        """What the sum of the round that was drawn last costs; `deviation` is that of the noise on it."""
        if self.secret:
            return Charge(round, "poisson", z, q=self._toss.q, draw=self._toss.name, deviation=deviation)
        return Charge(round, "gaussian", z, asked=self._drawn, deviation=deviation)

    def _foreseen(self, round: int, z: float) -> Charge:
        """What the sum of a later round will cost, with the members of now."""
        if self.secret:
            return Charge(round, "poisson", z, q=self._probability, draw=str(round))
        return Charge(round, "gaussian", z, asked=self._public(round))

    def of_measure(self, version: int, measure: str, z: float) -> Charge:
        """What a measure of an evaluation costs: all members may be in it."""
        return Charge(version, "gaussian", MEASURE_NOISE * z, measure, asked=self._members)

    def of_first_state(self, z: float) -> list[Charge]:
        """What the evaluation of version 0 costs."""
        return [self.of_measure(0, measure, z) for measure in self._measures]

    def planned(self, rounds: range, z: float) -> list[Charge]:
        """What these rounds will be charged, and the evaluations behind them, with the members of now."""
        found, every, last = [], self._config.eval.every, self._config.server.rounds
        for r in rounds:
            found.append(self._foreseen(r, z))
            due = (r + 1) % every == 0 or r + 1 >= last
            found += [self.of_measure(r + 1, measure, z) for measure in self._measures if due]
        return found

    def affords(self, round: int) -> bool:
        """Whether the round may begin: `max_epsilon` has room for its charge, or it was begun before a kill."""
        if self.over or self.most is None:
            return not self.over
        return self._ledger.begun(name_of(round)) or self._fitting(range(round, round + 1), self.most) > 0

    def report(self, version: int, rounds: int) -> dict[str, Any]:
        """What the line of this version says: epsilon until here, delta, how many of all `rounds` may still come."""
        left = 0 if self.over else max(0, rounds - version)
        if left and self.most is not None:
            left = self._fitting(range(version, rounds), self.most)
        return {**self._spent(), "rounds_left": left}

    def _spent(self) -> dict[str, Any]:
        """Epsilon and delta, or why there is none; of noise in shares what is left of it where clients collude."""
        ledger, n = self._ledger.ledger, len(self._members)
        found = spent_budget.plain(ledger)
        if self._said.worthless:
            found |= {"epsilon": None, "epsilon_why": self._said.worthless}
        elif self._said.shared:
            count = noisy_integers.colluding(n)
            left = noise_shares.multiplier_against(1.0, n, count)
            weaker = [replace(c, z=left * c.z) for c in ledger.charges]
            found |= {"colluding": count, "epsilon_colluding": spent_budget.epsilon(weaker, ledger.header.delta)}
        return found

    def _fitting(self, rounds: range, most: float) -> int:
        """How many of these rounds fit, each with what is measured behind it."""
        ledger = self._ledger.ledger
        charges = self.planned(rounds, ledger.header.noise_multiplier)
        fit = spent_budget.fitting(ledger, charges, most)
        begins = [n for n, c in enumerate(charges) if c.of == TRAINING]
        return sum(end <= fit for end in [*begins[1:], len(charges)])
