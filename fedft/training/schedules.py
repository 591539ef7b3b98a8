"""How the learning rate moves along the rounds of a run, or along the steps of a round.

unit k of n (k from 0), of which the first w = round(warmup n) warm up
k < w      (k + 1) / (w + 1)
else       constant 1;  linear 1 - (k - w) / (n - w);  cosine (1 + cos(pi (k - w) / (n - w))) / 2
"""

import math

from fedft.config import Local


def factor(local: Local, k: int, n: int) -> float:
    """What unit `k` of `n` multiplies the learning rate by, from 0 to 1; beyond the last unit as the last.

    >>> [round(factor(Local(schedule="linear", warmup=0.25), k, 8), 3) for k in range(8)]
    [0.333, 0.667, 1.0, 0.833, 0.667, 0.5, 0.333, 0.167]
    """
    warm, k = round(local.warmup * n), min(k, n - 1)
    if k < warm:
        return (k + 1) / (warm + 1)
    gone = (k - warm) / (n - warm)
    if local.schedule == "linear":
        return 1 - gone
    return (1 + math.cos(math.pi * gone)) / 2 if local.schedule == "cosine" else 1.0


def of_round(local: Local, round_: int, rounds: int) -> float:
    """The learning rate of a round, from 0, of a run of so many rounds."""
    rate = local.learning_rate * local.learning_rate_decay**round_
    return rate * factor(local, round_, rounds) if local.schedule_over == "run" else rate


def of_step(local: Local, step: int, steps: int) -> float:
    """What multiplies the round's learning rate in a local step, from 0, of so many."""
    return factor(local, step, steps) if local.schedule_over == "round" else 1.0


def moves_in_rounds(local: Local) -> bool:
    """Whether the learning rate is another one from step to step of a round."""
    return local.schedule_over == "round" and (local.schedule != "constant" or local.warmup > 0)
