"""Who may be in a round's noisy sum, where that is public: drawn from all members, whatever they did in earlier rounds.

Were those drawn only who are not in quarantine, one site's updates would decide about the others' part in the sum. Who
is drawn and may not be asked adds nothing, as somebody who does not answer. `[privacy] cohort = "poisson"`, whose draws
are secret, is in `privacy_ledger`.
"""

from collections.abc import Sequence
from typing import Literal

from fedft.randomness import philox
from fedft.server.cohort import cohort

Public = Literal["asked", "cyclic"]


def drawn(kind: Public, members: Sequence[str], per_round: int | None, seed: int, round: int) -> list[str]:
    """The members of this round in roster order (bytewise by name): `per_round` of them, all if None.

    "asked": drawn by seed and round. "cyclic": one group after another of a shuffled order, which the names and the
    seed decide, so that everybody is in one round of N / per_round.

    >>> [drawn("cyclic", ["a", "b", "c", "d", "e"], 2, seed=0, round=n) for n in range(3)]
    [['a', 'e'], ['b', 'd'], ['c', 'e']]
    """
    size = len(members)
    if kind == "asked" or per_round is None or per_round >= size:
        return cohort(members, per_round, seed, round)
    order = sorted(members, key=lambda name: (philox.derive(seed, "cyclic", name), name))
    return sorted((order[(round * per_round + n) % size] for n in range(per_round)), key=str.encode)
