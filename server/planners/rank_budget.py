"""Ranks go where the run has moved most, within a budget of numbers: unlike ranks of one client's modules.

    maximise   sum_m S_m (1 - 2^(-r_m / 4))        S_m = |B_m A_m|_F of the state
    over       r_m in {0, 4, 8, 16, 32, ...}, at most the client's own rank r
    with       sum_m r_m (out_m + in_m)  <=  budget x sum_m r (out_m + in_m)

by the moves of the highest gain per number, ties by name; what one number more is worth falls with the rank. With
`score = "sensitivity"` S_m is the smoothed |theta * grad| that clients report of the module, in one number a round
(`parts.sensitivity`, `parts.reported_scores`). A client's ranks stay for `every` rounds. While nothing has moved, or is
reported, ranks are the run file's. Ranks by importance within a budget are AdaLoRA's idea inside one training run, and
sensitivity is its score; |B_m A_m| is TriAdaptLoRA's.

Zhang et al., "AdaLoRA: Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning", ICLR 2023, arXiv:2303.10512.
"""

from collections.abc import Mapping
from functools import partial
from typing import Literal

from fedft import check
from fedft.arithmetic.lowrank import LowRank
from fedft.arithmetic.named_pairs import split
from fedft.contract import Member, Planner, Roster, State, Work
from fedft.strategies.parts import sensitivity
from fedft.strategies.parts.reported_scores import with_scores
from fedft.update import Shape

LADDER = (0, 4, 8, 16, 32, 64, 128, 256)
HALVED_BY = 4  # ranks by which what is left to gain is halved
OWNER = "rank_budget"  # of the drawer that scores are in
RANKED_IN = "ranked_in"
"""In `Work.extra`: the round in which a client was given its ranks."""


def rank_budget(*, budget: float = 0.5, every: int = 5, score: Literal["norm", "sensitivity"] = "norm") -> Planner:
    """A planner that deals ranks by module.

    Args:
        budget: share of the numbers of an adapter of one rank in all modules.
        every: rounds for which a client's ranks stay.
        score: S_m, see above.
    """
    check.above(0, budget=budget)
    check.between(0, 1, budget=budget)
    check.at_least(1, every=every)
    check.one_of(("norm", "sensitivity"), score=score)

    def plan(state: State, roster: Roster) -> Mapping[str, Work]:
        pairs = split(state.tensors)[0]
        if score == "norm":
            scores = {m: d.norm() for m, d in pairs.items()}
        else:
            said = sensitivity.said(state.drawer(OWNER))
            scores = {m: said.get(m, 0.0) for m in pairs}
        if not any(scores.values()):
            return {}
        by_rank: dict[int, Shape] = {}
        works = {}
        for client, member in roster.items():
            if (kept := _still(member, roster.round, every)) is not None:
                works[client] = kept
                continue
            if member.rank not in by_rank:
                by_rank[member.rank] = Shape(member.rank, ranks_within(pairs, scores, member.rank, budget))
            works[client] = Work(by_rank[member.rank], extra={RANKED_IN: roster.round})
        return works

    plan.unlike_ranks = True  # type: ignore[attr-defined]
    if score == "sensitivity":
        plan.reported = partial(with_scores, owner=OWNER)  # type: ignore[attr-defined]
    return plan


def ranks_within(
    pairs: Mapping[str, LowRank], scores: Mapping[str, float], largest: int, budget: float
) -> dict[str, int]:
    """Rank by module, each of the ladder and at most `largest`, of at most `budget` of the numbers of rank `largest`.

    At least the module of the highest score has one, of the smallest rank, where the budget is too small for any.
    """
    cost = {m: sum(d.shape) for m, d in pairs.items()}
    left = budget * largest * sum(cost.values())
    ladder = [r for r in LADDER if r < largest] + [largest]
    ranks = dict.fromkeys(sorted(pairs, key=str.encode), 0)

    def gain(module: str, rank: int) -> float:
        """Per number that going on to `rank` takes."""
        more = 2 ** (-ranks[module] / HALVED_BY) - 2 ** (-rank / HALVED_BY)
        return scores[module] * more / (cost[module] * (rank - ranks[module]))

    while True:
        moves = [(m, r) for m, now in ranks.items() for r in ladder if r > now and cost[m] * (r - now) <= left]
        if not moves:
            break
        module, rank = max(moves, key=lambda move: gain(*move))
        left -= cost[module] * (rank - ranks[module])
        ranks[module] = rank
    if not any(ranks.values()):
        ranks[max(ranks, key=lambda m: scores[m])] = ladder[1] if len(ladder) > 1 else largest
    return ranks


def _still(member: Member, round: int, every: int) -> Work | None:
    """The client's last work, if its ranks are not `every` rounds old yet."""
    last = member.seen[-1] if member.seen else None
    if last is None or last.shape is None or not isinstance(since := last.extra.get(RANKED_IN), int):
        return None
    return Work(last.shape, extra={RANKED_IN: since}) if round - since < every else None
