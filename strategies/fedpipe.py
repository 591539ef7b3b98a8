"""FedPipe: which weights each client adapts, at what ranks, batch and precision, chosen from probes and resources.

    probe      rounds 0 to T0 - 1: every weight has a triplet P diag(lam) Q of rank r0 = 4; only its scores are sent,
               S_m = sum_k p_k S_m^k (`parts.sensitivity`), and the triplets are thrown away
    allocate   client k: max sum_m S_m (1 - 2^(-r_m / r0)) over bits, batch and r_m in {0, 4, 8, 16, 32}
               within its memory and the round's time T (`parts.allocation`)
    local      pairs of the weights with r_m > 0; the others stay as they came
    server     D*_m = sum_{k in S(m)} n_k B_k A_k / sum_{j in S(m)} n_j            over those who trained m, as factors
               S_m := 0.7 S_m + 0.3 S'_m, with scores of the pairs, made of one sum with S
    down       D*_m cut to r_m (FlexLoRA's rule); of m that the client does not train, at the rank that it has; nothing
               of m that nobody has trained yet

T is a quantile, the median if nothing else is said, of the times that clients are predicted to take for rank r0 in
every weight: who is slower adapts less. Times and speeds are of `parts.client_limits`. A client's work is chosen anew
every five rounds behind the probe, and where its last three rounds took 25 % more or less than was predicted; its
precision stays. Where not even the smallest work fits, the client is given that, and a warning says so.

Up go 4 r0 bytes per weight from a probe, then the pairs that the client trains and 4 bytes for the score of each.

Fang, Lin, Chen, Chen, Gao, Fang, "Automated Federated Pipeline for Parameter-Efficient Fine-Tuning of Large Language
Models", 2024, arXiv:2404.06448. Only its abstract and a summary were at hand, and no code: known from there are the two
stages, importance by sensitivity of an SVD-shaped adapter, ranks and batch under a budget per server, quantised bases,
and partial aggregation per weight. All else is this project's own definition, and no result is a reproduction.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from fedft import check
from fedft.adapters.triplet import TripletShape
from fedft.aggregation.factor_means import stacked_mean
from fedft.aggregation.mean import mean
from fedft.arithmetic import lowrank
from fedft.arithmetic.lowrank import LowRank
from fedft.arithmetic.named_pairs import A_SUFFIX, split, to_names
from fedft.config import RunConfig
from fedft.contract import Forecast, Seen
from fedft.recipe import (
    FirstOrder, Handle, Layout, Member, Next, Plan, Recipe, Roster, Shape, Spec, State, Tensors, Turn, Update, Work,
    cut_to_rank, product_norm, write_all,
)  # fmt: skip
from fedft.strategies.parts import client_limits, sensitivity
from fedft.strategies.parts.allocation import Allocation, Infeasible, Limits, Ranks, Search
from fedft.strategies.parts.probed_pairs import ProbedPairs
from fedft.strategies.parts.sensitivity import SCORE, Orthogonal, Scores
from fedft.update import TensorSpec

OWNER, RANKS, PROBE = "fedpipe", "ranks", "probe"  # the last two in `Plan.extra`
R0 = 4  # rank of a probe, and that at which a weight has half its use
LADDER = (4, 8, 16, 32)
BATCHES = (256, 128, 64, 32, 16, 8, 4, 2, 1)
OFF_BY = 1.25
log = logging.getLogger(__name__)


def fedpipe(
    *,
    probe_rounds: int = 1,
    replan: int = 5,
    bits: list[int] = [],  # noqa: B006
    least: float = 0.5,
    quantile: float = 0.5,
    keep: float = 0.7,
    gamma: float = 0.1,
    normalise: Literal["holders", "cohort"] = "holders",
) -> Recipe:
    """Partial adapters by importance and resources; a head, if there is one, is averaged and replaced.

    Args:
        probe_rounds: T0, at least 1; the model is as it was behind them.
        replan: rounds after which works are chosen anew.
        bits: precisions of the base that a client may be asked for where its own does not fit its memory, some of 16, 8
            and 4. A client whose base is in another one refuses.
        least: share, from 0 to 1, of what all weights at the highest rank are worth that a work must reach before a
            smaller batch or fewer bits are not looked at; with 0 the largest batch that fits any weight is taken.
        quantile: of predicted times, from 0 to 1: T.
        keep: share of S_m that stays when it is renewed, from 0 to 1.
        gamma: strength of the probe's penalty |P^T P - I|^2 + |Q Q^T - I|^2.
        normalise: `holders` as above, or `cohort`: divided by the n_j of all, so that what few train moves less.
    """
    check.at_least(1, probe_rounds=probe_rounds, replan=replan)
    check.at_least(0, gamma=gamma)
    for share in ({"least": least}, {"quantile": quantile}, {"keep": keep}):
        check.between(0, 1, **share)
    if wrong := [b for b in bits if b not in (16, 8, 4)]:
        raise ValueError(f"bits: expected some of 16, 8 and 4, got {wrong[0]}")
    pipe = Pipe(probe_rounds, replan, tuple(sorted(set(bits), reverse=True)), least, quantile, keep)
    return Recipe(
        "fedpipe",
        ProbedPairs(),
        aggregate=lambda updates: aggregate(updates, dilute=normalise == "cohort"),
        local=FirstOrder("value", terms=(Scores(), Orthogonal(gamma))),
        server=pipe.server,
        downlink=cut_to_rank,
        start=start,
        upload=upload,
        plan=pipe.plan,
        check=pipe.check,
        linear=False,
        unlike_ranks=True,
        unlike_modules=True,
        bases="any",
        upload_kind="values",
        norm=product_norm,
    )


def start(handle: Handle, turn: Turn) -> None:
    """Put the model at what is held; before anything is adapted at the base, with triplets drawn from the seed."""
    if turn.plan.shape.largest:
        write_all(handle, turn)
        return
    shape = TripletShape(int(turn.plan.extra.get(PROBE, R0)))
    handle.write({**handle.kind.initial(handle.layout, shape, turn.run_seed), **turn.held}, ())


def upload(layout: Layout, plan: Plan) -> Spec:
    """Scores of all weights from a probe; else the pairs that learn, a score of each, and a head."""
    if not plan.shape.largest:
        return {SCORE + m: TensorSpec((int(plan.extra.get(PROBE, R0)),)) for m in layout.modules}
    spec = ProbedPairs().spec(layout, plan.shape)
    return spec | {SCORE + n.removesuffix(A_SUFFIX): TensorSpec((1,)) for n in spec if n.endswith(A_SUFFIX)}


def aggregate(updates: Iterable[Update], dilute: bool) -> dict[str, Tensor]:
    """Of every weight the mean of products over those who sent it, as stacked factors; means of scores and of a head.

    `dilute`: divide by the weights of all who answered instead.
    """
    scores, holders, everybody = list[Update](), dict[str, float](), 0.0

    def trained() -> Iterator[Update]:
        nonlocal everybody
        for u in updates:
            of = {n: x for n, x in u.delta.items() if n.startswith(SCORE)}
            scores.append(replace(u, delta=of))
            everybody += u.num_examples
            for n in u.delta:
                if n.endswith(A_SUFFIX):
                    holders[m] = holders.get(m := n.removesuffix(A_SUFFIX), 0.0) + u.num_examples
            yield replace(u, delta={n: x for n, x in u.delta.items() if n not in of})

    pairs, rest = split(stacked_mean(trained()))
    if dilute:
        pairs = {m: (holders[m] / everybody) * d for m, d in pairs.items()}
    return to_names(pairs) | rest | mean(scores)


@dataclass(frozen=True)
class Pipe:
    """The server's side, see `fedpipe` for the fields."""

    probe_rounds: int
    replan: int
    bits: tuple[int, ...]
    least: float
    quantile: float
    keep: float

    def check(self, config: RunConfig) -> None:
        """Raises ValueError for a run that ends with its probes."""
        if config.server.rounds <= self.probe_rounds:
            raise ValueError(
                f"[server] rounds = {config.server.rounds}: the first {self.probe_rounds} only measure; wanted more"
            )

    def server(self, state: State, change: Tensors) -> Next:
        """The state with the factors of the change, each cut to the state's rank; and the scores, in its own drawer."""
        known, news = sensitivity.said(state.drawer(OWNER)), sensitivity.said(change)
        if state.version >= self.probe_rounds:
            scores = sensitivity.renewed(known, news, self.keep)
        else:
            scores = {m: self.keep * known[m] + (1 - self.keep) * s if m in known else s for m, s in news.items()}
        old, (pairs, rest) = split(state.tensors)[0], split(change)
        new = {m: _cut(d, old[m]) for m, d in pairs.items()}
        head = {n: x for n, x in rest.items() if not n.startswith(SCORE)}
        drawer = {SCORE + m: torch.tensor([s], dtype=torch.float64) for m, s in scores.items()}
        return Next({**state.tensors, **to_names(new), **head}, {OWNER: drawer})

    def plan(self, state: State, roster: Roster) -> dict[str, Work]:
        """The work of every client that is asked: a probe, or what it adapts."""
        held = {m: _ranks_in_use(d) for m, d in split(state.tensors)[0].items()}
        limits = client_limits.of_members(roster)
        if state.version < self.probe_rounds:
            rank = min(R0, *(d.rank for d in split(state.tensors)[0].values()))
            cost = roster.forecast(Work(shape=Shape(rank)))
            probe = {PROBE: rank}
            return {c: Work(shape=Shape(0), extra=probe | client_limits.told(limits[c], cost)) for c in roster.asked}
        at_r0 = roster.forecast(Work(shape=Shape(R0)))
        longest = _quantile([of.seconds_of(at_r0) for of in limits.values()], self.quantile)
        planner = _Planner(self, state, roster, held)
        return {c: planner.work(c, roster[c], replace(limits[c], seconds=longest)) for c in roster.asked}


@dataclass(frozen=True)
class _Planner:
    """Chooses the works of one round, all but its first `probe_rounds`."""

    pipe: Pipe
    state: State
    roster: Roster
    held: Mapping[str, int]
    """Ranks in use by weight, of all weights that could be adapted."""
    _searches: dict[tuple[tuple[int, ...], tuple[int, ...]], Search] = field(default_factory=dict)

    def work(self, client: str, member: Member, limits: Limits) -> Work:
        """The work of one client: the one that it has, or one that is chosen now."""
        ladder = tuple(r for r in LADDER if r <= member.rank) or (member.rank,)
        last = member.seen[-1] if member.seen and RANKS in member.seen[-1].extra else None
        if last is not None and self._stands(last, member):
            digits = zip(sorted(self.held), str(last.extra[RANKS]), strict=True)
            bits, batch, ranks = last.bits, last.batch, {m: ladder[int(at) - 1] for m, at in digits if at != "0"}
        else:
            chosen = self._chosen(client, self._search(ladder, None if last is None else last.bits), limits)
            bits, batch, ranks = chosen.bits, chosen.batch, chosen.ranks
        cost = self._cost(bits, batch, ranks)
        digits = "".join(str(ladder.index(ranks[m]) + 1 if m in ranks else 0) for m in sorted(self.held))
        return replace(self._work(bits, batch, ranks), extra={RANKS: digits} | client_limits.told(limits, cost))

    def _stands(self, last: Seen, member: Member) -> bool:
        """Whether the client's last work is to be done again."""
        first, every = self.pipe.probe_rounds, self.pipe.replan
        if (last.round - first) // every != (self.state.version - first) // every:
            return False
        if (factor := client_limits.off_by(member)) > OFF_BY:
            log.info("round %d: rounds of a client differ %.3g times from what was predicted; its work is chosen anew",
                     self.state.version, factor)  # fmt: skip
            return False
        return True

    def _chosen(self, client: str, search: Search, limits: Limits) -> Allocation:
        try:
            return search.allocate(limits)
        except Infeasible as e:
            log.warning("round %d: %s: %s; it is asked for that all the same", self.state.version, client, e)
            return e.least

    def _search(self, ladder: tuple[int, ...], bits: int | None) -> Search:
        """The search for clients of this ladder; `bits`: what they are on already, None: nothing yet."""
        ask, least = self.roster.forecast, Shape(ladder[0])
        own = ask(Work(shape=least))
        smaller = tuple(b for b in BATCHES if ask(Work(shape=least, batch=b)).flops < own.flops)
        fewer = tuple(b for b in self.pipe.bits if ask(Work(shape=least, bits=b)).memory < own.memory)
        precisions = (0, *fewer) if bits is None else (bits,)
        if (ladder, precisions) not in self._searches:
            said = sensitivity.said(self.state.drawer(OWNER))
            scores = {m: said.get(m, 0.0) for m in self.held} if any(said.values()) else dict.fromkeys(self.held, 1.0)
            self._searches[ladder, precisions] = Search(
                scores, self._cost, ladder, (0, *smaller), precisions, self.pipe.least, R0
            )
        return self._searches[ladder, precisions]

    def _work(self, bits: int, batch: int, ranks: Ranks) -> Work:
        """The work of adapting these weights; others are at the rank in use. bits, batch: 0 for the run file's own."""
        there = {m: ranks.get(m) or r for m, r in self.held.items()}
        largest = max(there.values())
        chosen = () if len(ranks) == sum(r > 0 for r in there.values()) else tuple(sorted(ranks))
        shape = Shape(largest, {m: r for m, r in there.items() if r != largest}, chosen)
        return Work(shape=shape, batch=batch or None, bits=bits or None)

    def _cost(self, bits: int, batch: int, ranks: Ranks) -> Forecast:
        """What that takes, with the accumulators of the scores."""
        cost, pairs = self.roster.forecast(self._work(bits, batch, ranks)), split(self.state.tensors)[0]
        return cost._replace(memory=cost.memory + sensitivity.BYTES * sum(r * sum(pairs[m].shape) for m, r in ranks.items()))


def _cut(d: LowRank, old: LowRank) -> LowRank:
    """The best approximation of `d` at the rank of `old`; ranks that it does not need stay `old`'s, at zero."""
    return lowrank.padded_to(lowrank.pad(d.truncate(old.rank, 0.0), old.rank), old)


def _ranks_in_use(d: LowRank) -> int:
    """How many of the first ranks of a pair change anything."""
    used = d.B.any(dim=0).nonzero()
    return int(used.max()) + 1 if len(used) else 0


def _quantile(values: Sequence[float], share: float) -> float:
    """The value that about this share of the values is not above."""
    return sorted(values)[int(share * (len(values) - 1) + 0.5)]
