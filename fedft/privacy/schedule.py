"""What a run's privacy will cost, before it begins: what goes out of one unit's data, and epsilon of all of it.

    unit      "central-dp", "local-dp": a client with all its rows;  "example-dp", "zo-dp": one record
    central   one release of z in every round that the client may be asked in; with secret coins, in all rounds with q
    local     one release in every round, of z / 2: one data set may be any other, which is twice as far as none
    record    as many releases as steps, each with q = batch_size / rows of its client

What is spent in fact stands in the ledgers of server and sites; this is the same arithmetic on what is planned.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from fedft.errors import ConfigError
from fedft.privacy import accountant
from fedft.privacy.accountant import Release
from fedft.privacy.secure_sum import noise_shares, noisy_integers
from fedft.privacy.secure_sum.context import threshold
from fedft.privacy.tables import OF_RECORDS, Privacy

MEASURE_NOISE = 4.0
"""Noise multiplier of a measure of an evaluation, in that of training."""
MEASURES = 2
"""Measures that are released of an evaluation with noise: loss and accuracy."""
ROUGH = 1.0, 10.0
"""Noise over signal up to which a run learns well, and up to which it learns slowly."""


@dataclass(frozen=True)
class Schedule:
    """The rounds of a run under a mode of `[privacy]`."""

    privacy: Privacy
    rounds: int
    clients: int
    """N."""
    asked: int
    """m: how many are asked in a round."""
    turns: Callable[[int], int]
    """After so many rounds, how many of them any one client was asked in at most."""
    steps: int = 1
    """Of one client in a round."""
    batch: int = 1
    """Records of a step, expected."""
    rows: Mapping[str, int] = field(default_factory=dict)
    """Records by client, of whom it is known."""
    measures: int = 0
    """Noisy measures of held-out rows in all rounds together, which z has to leave room for."""
    measured: bool = True
    """Whether these are released; a simulation looks at the rows themselves, outside of epsilon."""

    @property
    def of_records(self) -> bool:
        """Whether the unit is a record, and so what it costs differs by client."""
        return self.privacy.mode in OF_RECORDS

    @property
    def none(self) -> str:
        """Why there is no epsilon whatever the noise; "" where there is one."""
        return self.privacy.worthless

    def probability(self, rows: int) -> float:
        """Of a record being in a step, at a client with so many; by their number in two digits."""
        return min(1.0, self.batch / two_digits(rows))

    def releases(self, z: float, rounds: int, rows: int = 1, *, planned: bool = False) -> list[Release]:
        """What leaves of one unit in so many rounds with the noise multiplier z.

        `rows`: of its client, where the unit is a record; `planned`: with what z has to leave room for.
        """
        mode, turns = self.privacy.mode, self.turns(rounds)
        if self.of_records:
            return [Release(z, self.probability(rows), turns * self.steps)]
        if mode == "local-dp":
            return [accountant.of_whole_updates(z, turns)]
        measures = self.measures if self.measured or planned else 0
        measured = Release(MEASURE_NOISE * z, 1.0, measures * rounds // max(1, self.rounds))
        if self.privacy.cohort == "poisson":
            return [Release(z, self.asked / self.clients, rounds), measured]
        return [Release(z, 1.0, turns), measured]

    def noise(self, rows: int = 1) -> float:
        """z: as the run file says it, or so that all rounds cost its epsilon.

        Raises ConfigError where no noise is enough, or dp-accounting is not installed.
        """
        said = self.privacy
        if said.shared:
            return noisy_integers.noise_multiplier(said)
        if said.noise_multiplier is not None:
            return said.noise_multiplier
        if said.epsilon is None or said.delta is None:
            raise ConfigError(f"[privacy] mode = {said.mode!r} says neither noise_multiplier nor epsilon")
        rounds = said.rounds or self.rounds
        return accountant.noise_for(lambda z: self.releases(z, rounds, rows, planned=True), said.epsilon, said.delta)

    def epsilon(self, rounds: int, z: float, rows: int = 1) -> float:
        """What so many rounds cost with this noise. Raises ConfigError where dp-accounting is not installed."""
        return accountant.epsilon(self.releases(z, rounds, rows), self.privacy.delta or 0.0)

    def against_colluding(self, z: float) -> tuple[int, float]:
        """(how many clients may tell the server their shares of the noise, epsilon of all rounds against them)."""
        count = noisy_integers.colluding(self.clients)
        left = noise_shares.multiplier_against(z, self.clients, count)
        return count, self.epsilon(self.rounds, left)

    def fitting(self, most: float, z: float) -> int:
        """How many rounds with this noise cost at most so much; all of them, if they do."""
        return accountant.fitting(lambda rounds: self.epsilon(rounds, z), self.rounds, most)

    @property
    def smallest(self) -> list[int]:
        """The three smallest numbers of rows that clients have, and the largest: who pays most, and least."""
        found = sorted(set(self.rows.values()))
        return found if len(found) <= 4 else [*found[:3], found[-1]]


def most_turns(cohort: str, clients: int, asked: int, drawn: Callable[[int], list[str]]) -> Callable[[int], int]:
    """After so many rounds, how many of them any one client was asked in at most.

    Args:
        cohort: as `[privacy] cohort`.
        clients: how many there are.
        asked: how many of them are asked in a round.
        drawn: who is asked in a round, where that follows from the run's seed; called for "asked" only.
    """
    counts: dict[str, int] = {}
    after = [0]

    def most(rounds: int) -> int:
        if asked >= clients or cohort == "poisson":
            return rounds
        if cohort == "cyclic":
            return math.ceil(rounds * asked / clients)
        while len(after) <= rounds:
            for client in drawn(len(after) - 1):
                counts[client] = counts.get(client, 0) + 1
            after.append(max(counts.values(), default=0))
        return after[rounds]

    return most


def check_delta(privacy: Privacy, clients: int, rows: Mapping[str, int]) -> None:
    """Raise ConfigError for a delta at which giving away one whole unit would count as hidden.

    Args:
        privacy: of the run file.
        clients: how many there are.
        rows: records by client, of whom it is known.
    """
    if not privacy.on or privacy.delta is None:
        return
    units, what = clients, "clients"
    if privacy.mode in OF_RECORDS:
        who = max(rows, key=lambda name: rows[name], default="")
        units, what = rows.get(who, 0), f"records of {who}"
    if units and privacy.delta > 1 / units:
        raise ConfigError(
            f"[privacy] delta = {privacy.delta:g} is above 1 / {units:,}, of {units:,} {what}; "
            f"wanted about 1 / (10 N) = {1 / (10 * units):.1g}"
        )


def noise_to_signal(schedule: Schedule, z: float, numbers: int) -> float:
    """Norm of the noise over the largest norm that the signal can have: in a round's mean, or in a step's gradient.

    `numbers`: d, of the vector that is summed.
    """
    mode, root = schedule.privacy.mode, math.sqrt(numbers)
    if mode == "zo-dp":
        return z / schedule.batch
    if mode == "example-dp":
        return z * root / schedule.batch
    more = math.sqrt(schedule.clients / threshold(schedule.clients)) if schedule.privacy.shared else 1.0
    return more * z * root / (math.sqrt(schedule.asked) if mode == "local-dp" else schedule.asked)


def verdict(ratio: float) -> str:
    """What a ratio of noise to signal means for learning, in words."""
    if ratio < ROUGH[0]:
        return "good"
    return "learns slowly" if ratio <= ROUGH[1] else "too much to learn"


def two_digits(rows: int) -> int:
    """A number of records, rounded down to two digits: it stays as it is while few come or go; at least 1.

    >>> two_digits(4197), two_digits(326), two_digits(40)
    (4100, 320, 40)
    """
    unit = 10 ** max(0, len(str(rows)) - 2)
    return max(1, rows // unit * unit)
