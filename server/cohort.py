"""Who is asked in a round: a draw without replacement from the run's seed, so that a resumed run asks the same ones."""

from collections.abc import Sequence

import torch

from fedft.randomness import philox


def cohort(clients: Sequence[str], per_round: int | None, seed: int, round: int) -> list[str]:
    """Names of `per_round` of the clients (all if None), in roster order (bytewise by name).

    Drawn by run seed and round alone: the order of `clients` and what happened before do not matter.
    """
    roster = sorted(clients, key=str.encode)
    if per_round is None or per_round >= len(roster):
        return roster
    rng = torch.Generator().manual_seed(philox.derive(seed, "cohort", round))
    chosen = torch.randperm(len(roster), generator=rng)[:per_round].tolist()
    return [roster[i] for i in sorted(chosen)]


def panel(clients: Sequence[str], size: int | None, seed: int) -> list[str]:
    """Names of `size` clients that evaluate (all if None), the same ones in every round, in roster order."""
    return cohort(clients, size, philox.derive(seed, "panel"), 0)
