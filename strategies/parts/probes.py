"""How each client is asked for a probe that fits its memory: the run's own batch, in pieces and on bits that fit.

    (own bits, then fewer)  x  (whole batch, pieces of 256, 128, ... 1 rows)        the first one whose forecast fits
    nothing fits            a batch of one row, on the fewest bits; a warning says so
    no memory is said       pieces of one row, which take least: the client may have a limit that it does not tell

Scores of unlike pieces are alike by themselves. The gradient of a batch that is taken in pieces is the batch's,

    grad = sum_i (n_i / n) grad_i        n_i the learned places of piece i, n their sum (`fedft.data.micro_batches`)

so I = |theta * grad| is read of the same gradient, and s with it. Of a batch of fewer rows it is not: with b rows the
gradient is mu + e / sqrt(b). Where e outweighs mu, I and its spread fall as 1 / sqrt(b), and s as 1 / b. That is one
factor for all weights, which goes where a client divides its scores by their mean (`sensitivity.to_mean_1`); what stays
is that scores of fewer rows are less sure. So the batch is the last to give.

Small pieces take longer than as many operations at once. Whoever was asked in smaller ones, and says no speed, is taken
to be slower than it is until its next rounds are seen.
"""

from collections.abc import Iterator, Mapping

from fedft.contract import Forecast, Member, Roster, Work
from fedft.strategies.parts import client_limits
from fedft.strategies.parts.works_by_resources import say_once
from fedft.update import ROWS_AT_ONCE, Scalar, Shape

PIECES = (256, 128, 64, 32, 16, 8, 4, 2, 1)  # rows, of which those are tried that take less than the whole batch


def works(rank: int, bits: tuple[int, ...], extra: Mapping[str, Scalar], roster: Roster) -> dict[str, Work]:
    """The probe of every client that is asked, on triplets of this rank; a pure function.

    Args:
        rank: of the triplets; forecasts take them for pairs of that rank, which are as large.
        bits: precisions that a client may be asked for, descending, besides its own.
        extra: what else the work of each says to the client.
        roster: the run's clients, and what works take.
    """
    tried = [(work, roster.forecast(work)) for work in _probes(Shape(rank), bits, roster)]
    smallest = next(n for n, (work, _) in reversed([*enumerate(tried)]) if not work.bits and not work.batch)
    limits = client_limits.of_members(roster)

    def one(client: str, member: Member) -> Work:
        if "memory" not in member.profile:
            work, cost = tried[smallest]
        else:
            work, cost = _first_that_fits(client, limits[client].memory, tried, roster.round)
        told = client_limits.told(limits[client], cost)
        return Work(Shape(0), batch=work.batch, bits=work.bits, extra={**extra, **work.extra, **told})

    return {c: one(c, roster[c]) for c in roster.asked}


def _probes(shape: Shape, bits: tuple[int, ...], roster: Roster) -> Iterator[Work]:
    """The probes that are tried, in order; none takes more memory than the one before it on as many bits."""
    ask = roster.forecast
    own = ask(Work(shape=shape)).memory
    for b in (None, *(b for b in bits if ask(Work(shape=shape, bits=b)).memory < own)):
        whole = ask(Work(shape=shape, bits=b)).memory
        yield Work(shape=shape, bits=b)
        for rows in PIECES:
            piece = Work(shape=shape, bits=b, extra={ROWS_AT_ONCE: rows})
            if ask(piece).memory < whole:
                yield piece
    yield Work(shape=shape, batch=1, bits=b)


def _first_that_fits(
    client: str, memory: float, tried: list[tuple[Work, Forecast]], round: int
) -> tuple[Work, Forecast]:
    """The first of the works that fits into so many bytes; the last one where none does."""
    for work, cost in tried:
        if cost.memory <= memory:
            return work, cost
    work, cost = tried[-1]
    say_once(
        f"round {round}: {client}: a probe of one record takes {cost.memory / 1e6:.4g} MB, there are "
        f"{memory / 1e6:.4g} MB; it is asked for that all the same"
    )
    return work, cost
