"""Batches in which every row is by a coin of its own: Poisson sampling, as the amplification of privacy supposes it.

    a row is in the batch of step s  where  b < q 2^53      b: 53 bits of the turn's secret stream, one for each row

So a batch may have any number of rows, and none at all. The shuffles of `batches.drawn` are not drawn so: no epsilon of
a sampled sum may be computed for them.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from fedft.contract import Batch, Data, Private, Turn


def drawn(rows: Sequence[Any], private: Private, step: int) -> list[Any]:
    """The rows that are in the batch of a step, in their order; each with `private.probability`, and maybe none.

    Args:
        rows: all rows of the client.
        private: the turn's noise: whoever has its stream draws the same rows.
        step: the step's number, from 0.
    """
    coins = private.stream.bits("batches", str(step), len(rows))
    return [rows[i] for i in (coins < private.probability * 2.0**53).nonzero().flatten().tolist()]


def batches(data: Data, turn: Turn, private: Private) -> Iterator[Batch | None]:
    """`turn.plan.steps` batches of the client's rows, drawn as in `drawn`; None for one without a row."""
    for step in range(turn.plan.steps):
        rows = drawn(data.rows, private, step)
        yield data.of_step(rows, step + 1) if rows else None
