"""What clients adapt in a round, by the scores of weights and by what each of them has; chosen anew now and then.

The round's time T is a quantile of the times that all clients are predicted to take for rank r0 in every weight, on
their own precision with the run's batch: who is slower adapts less. Only what a client adapts counts against T; what
it merely holds comes on top, and is in its prediction. A client does its last work again until the next of the rounds
`first` + j `replan`, and as long as its last three rounds took at most 25 % more or less than was predicted. What it
adapts stands in its plan (`RANKS` of `Work.extra`: a digit per weight, in order of names), and so comes back with what
is seen of it: choosing needs no memory of its own. Precision is chosen once; to change it a client would have to load
its base anew.

A weight is worth the root of its score: s = Ibar Ubar is of the size of a squared loss, its root of a loss, and that is
what adds up over weights. (AdaLoRA only orders by s, for which either will do.)

Weights that a client does not adapt are there at the rank that they have in the state, and do not learn; those that
nobody has adapted yet are not there.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

from fedft.arithmetic.lowrank import LowRank
from fedft.arithmetic.named_pairs import split
from fedft.contract import Forecast, Member, Roster, Seen, State, Work
from fedft.strategies.parts import client_limits
from fedft.strategies.parts.allocation import R0, Allocation, Infeasible, Limits, Ranks, Search
from fedft.update import Shape

RANKS = "ranks"
LADDER = (4, 8, 16, 32)
BATCHES = (256, 128, 64, 32, 16, 8, 4, 2, 1)  # of which those are tried that take less than the run file's own
OFF_BY = 1.25
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Works:
    """How works are chosen."""

    first: int
    """The first round of which they are."""
    replan: int
    bits: tuple[int, ...]
    """Precisions that a client may be asked for, descending, besides its own."""
    least: float
    """As `Search.least`."""
    quantile: float

    def of(self, state: State, scores: Mapping[str, float], roster: Roster) -> dict[str, Work]:
        """The work of every client that is asked; a pure function."""
        limits, at_r0 = client_limits.of_members(roster), roster.forecast(Work(shape=Shape(R0)))
        longest = _quantile([of.seconds_of(at_r0) for of in limits.values()], self.quantile)
        held = {m: _ranks_in_use(d) for m, d in split(state.tensors)[0].items()}
        now = _Round(self, state.version, scores, roster, held)
        return {c: now.work(c, roster[c], replace(limits[c], seconds=longest)) for c in roster.asked}


@dataclass(frozen=True)
class _Round:
    """The works of one round."""

    how: Works
    round: int
    known: Mapping[str, float]
    """Scores by weight."""
    roster: Roster
    held: Mapping[str, int]
    """Ranks in use, of each of them."""
    _searches: dict[tuple[tuple[int, ...], int | None], Search] = field(default_factory=dict)

    def work(self, client: str, member: Member, limits: Limits) -> Work:
        """The work of one client: the one that it has, or one that is chosen now."""
        ladder = tuple(r for r in LADDER if r <= member.rank) or (member.rank,)
        last = member.seen[-1] if member.seen and RANKS in member.seen[-1].extra else None
        if last is not None and self._stands(client, last, member):
            bits, batch, ranks = last.bits, last.batch, self._said(str(last.extra[RANKS]), ladder)
        else:
            bits, batch, ranks, *_ = self._chosen(
                client, self._search(ladder, None if last is None else last.bits), limits
            )
        digits = "".join(str(ladder.index(ranks[m]) + 1 if m in ranks else 0) for m in sorted(self.held))
        predicted = client_limits.told(limits, self._cost(bits, batch, ranks))
        return replace(self._work(bits, batch, ranks), extra={RANKS: digits, **predicted})

    def _said(self, digits: str, ladder: Sequence[int]) -> Ranks:
        """The ranks that stand in a plan."""
        return {m: ladder[int(at) - 1] for m, at in zip(sorted(self.held), digits, strict=True) if at != "0"}

    def _stands(self, client: str, last: Seen, member: Member) -> bool:
        """Whether the client's last work is to be done again."""
        first, every = self.how.first, self.how.replan
        if (last.round - first) // every != (self.round - first) // every:
            return False
        if (factor := client_limits.off_by(member)) > OFF_BY:
            said = "round %d: %s differs %.3g times from what was predicted of it; its work is chosen anew"
            log.info(said, self.round, client, factor)
            return False
        return True

    def _chosen(self, client: str, search: Search, limits: Limits) -> Allocation:
        try:
            return search.allocate(limits)
        except Infeasible as e:
            say_once(f"round {self.round}: {client}: {e}; it is asked for that all the same")
            return e.least

    def _search(self, ladder: tuple[int, ...], bits: int | None) -> Search:
        """The search for clients of this ladder; `bits`: what they are on already, None: nothing yet."""
        if (ladder, bits) not in self._searches:
            ask, least = self.roster.forecast, Shape(ladder[0])
            own = ask(Work(shape=least))
            batches = (0, *(b for b in BATCHES if ask(Work(shape=least, batch=b)).flops < own.flops))
            fewer = (b for b in self.how.bits if ask(Work(shape=least, bits=b)).memory < own.memory)
            precisions = (0, *fewer) if bits is None else (bits,)
            worth = {m: math.sqrt(self.known.get(m, 0.0)) for m in self.held}
            worth = worth if any(worth.values()) else dict.fromkeys(worth, 1.0)
            self._searches[ladder, bits] = Search(worth, self._counted, ladder, batches, precisions, self.how.least)
        return self._searches[ladder, bits]

    def _work(self, bits: int, batch: int, ranks: Ranks) -> Work:
        """The work of adapting these weights; others are at the rank in use. bits, batch: 0 for the run file's own."""
        there = {m: ranks.get(m) or r for m, r in self.held.items()}
        largest = max(there.values())
        chosen = () if len(ranks) == sum(r > 0 for r in there.values()) else tuple(sorted(ranks))
        shape = Shape(largest, {m: r for m, r in there.items() if r != largest}, chosen)
        return Work(shape=shape, batch=batch or None, bits=bits or None)

    def _cost(self, bits: int, batch: int, ranks: Ranks) -> Forecast:
        """What that takes."""
        return self.roster.forecast(self._work(bits, batch, ranks))

    def _counted(self, bits: int, batch: int, ranks: Ranks) -> Forecast:
        """The same, of which operations and bytes are those of the weights that are adapted alone."""
        alone = replace(self, held=dict.fromkeys(self.held, 0))._work(bits, batch, ranks)
        return self.roster.forecast(alone)._replace(memory=self._cost(bits, batch, ranks).memory)


@lru_cache(1024)
def say_once(text: str) -> None:
    """Warn of something; a round's works are asked for again where its state is measured."""
    log.warning("%s", text)


def _ranks_in_use(d: LowRank) -> int:
    """How many of the first ranks of a pair change anything."""
    used = d.B.any(dim=0).nonzero()
    return int(used.max()) + 1 if len(used) else 0


def _quantile(values: Sequence[float], share: float) -> float:
    """The value that about this share of the values is not above."""
    return sorted(values)[int(share * (len(values) - 1) + 0.5)]
