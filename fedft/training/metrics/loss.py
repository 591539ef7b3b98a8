"""Loss, accuracy and their like: the columns of what `fedft.training.evaluate.evaluate` gives in one pass.

`loss` and `accuracy` of a state are means over clients, in which each client counts once; `token_loss` is the loss over
all held-out tokens of all clients, in which a client counts by how many it has. They differ where clients are unlike.
`perplexity` is exp(`token_loss`), so of all held-out tokens of all clients as one text, per token of the base model's
tokenizer, of those that are learned. Only runs whose loss is the likelihood of tokens have it.
"""

import math
from collections.abc import Collection, Mapping

from fedft.config import RunConfig
from fedft.models import tasks
from fedft.registry import named
from fedft.reports import columns
from fedft.reports.columns import Column, declare

LOSS = declare(Column("loss", "loss", better="lower"))
ACCURACY = declare(Column("accuracy", "accuracy", better="higher"))
MICRO_F1 = declare(Column("micro_f1", "micro F1", better="higher"))
MAE = declare(Column("mae", "abs. error", better="lower"))
TOKEN_LOSS = declare(Column("token_loss", "loss over tokens", better="lower"))
"""Over rows where a row has one label."""
PERPLEXITY = declare(Column("perplexity", "perplexity", better="lower", form=".3f"))
MOST = 700.0  # of a loss whose exponential is still a number


def of_tokens(config: RunConfig) -> bool:
    """Whether the loss of a run is the mean negative log-likelihood of tokens, whose exponential is a perplexity."""
    return tasks.of(config.model.task).generates and named(config.local.objective, "objective")[0] == "likelihood"


def over_clients(found: Collection[Mapping[str, float]], perplexity: bool = False) -> dict[str, float]:
    """The metrics of a state from those of its clients: means over clients (`columns.averaged`), and `token_loss`.

    Args:
        found: metrics by name, one mapping per client; `count` is the number of places that its `loss` is a mean of.
            Where a client with a loss has no such number, there is no `token_loss`.
        perplexity: whether there is one, too: the losses are `of_tokens`.

    >>> over_clients([{"loss": 1.0, "count": 30.0}, {"loss": 2.0, "count": 10.0}])
    {'loss': 1.5, 'token_loss': 1.25}
    """
    of_all = (TOKEN_LOSS.name, PERPLEXITY.name)
    means = {name: x for name, x in columns.averaged(found).items() if name not in of_all}
    counts = [(m.get("count", 0.0), m[LOSS.name]) for m in found if LOSS.name in m]
    if counts and all(0 < n < math.inf for n, _ in counts):
        means[TOKEN_LOSS.name] = sum(n * loss for n, loss in counts) / sum(n for n, _ in counts)
        if perplexity and means[TOKEN_LOSS.name] < MOST:
            means[PERPLEXITY.name] = math.exp(means[TOKEN_LOSS.name])
    return means
