"""Loss, accuracy and their like: the columns of what `fedft.training.evaluate.evaluate` gives in one pass.

`loss` and `accuracy` of a state are means over clients, in which each client counts once; `token_loss` is the loss over
all held-out tokens of all clients, in which a client counts by how many it has. They differ where clients are unlike.
"""

import math
from collections.abc import Collection, Mapping

from fedft.reports import columns
from fedft.reports.columns import Column, declare

LOSS = declare(Column("loss", "loss", better="lower"))
ACCURACY = declare(Column("accuracy", "accuracy", better="higher"))
MICRO_F1 = declare(Column("micro_f1", "micro F1", better="higher"))
MAE = declare(Column("mae", "abs. error", better="lower"))
TOKEN_LOSS = declare(Column("token_loss", "loss over tokens", better="lower"))
"""Over rows where a row has one label."""


def over_clients(found: Collection[Mapping[str, float]]) -> dict[str, float]:
    """The metrics of a state from those of its clients: means over clients (`columns.averaged`), and `token_loss`.

    Args:
        found: metrics by name, one mapping per client; `count` is the number of places that its `loss` is a mean of.
            Where a client with a loss has no such number, there is no `token_loss`.

    >>> over_clients([{"loss": 1.0, "count": 30.0}, {"loss": 2.0, "count": 10.0}])
    {'loss': 1.5, 'token_loss': 1.25}
    """
    means = {name: x for name, x in columns.averaged(found).items() if name != TOKEN_LOSS.name}
    counts = [(m.get("count", 0.0), m[LOSS.name]) for m in found if LOSS.name in m]
    if counts and all(0 < n < math.inf for n, _ in counts):
        means[TOKEN_LOSS.name] = sum(n * loss for n, loss in counts) / sum(n for n, _ in counts)
    return means
