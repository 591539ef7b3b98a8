"""FedPipe: which weights each client adapts, at what ranks, batch and precision, chosen from probes and resources.

    probe      rounds 0 to T0 - 1: every weight has a triplet P diag(lam) Q of rank r0 = 4; only its scores are sent,
               S_m = sum_k p_k S_m^k (`parts.sensitivity`), and the triplets are thrown away; batches come in pieces
               that fit the client's memory (`parts.probes`)
    allocate   client k: max sum_m sqrt(S_m) (1 - 2^(-r_m / r0)) over bits, batch and r_m in {0, 4, 8, 16, 32}
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

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
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
from fedft.recipe import (
    FirstOrder,
    Handle,
    Layout,
    Next,
    Plan,
    Recipe,
    Roster,
    Shape,
    Spec,
    State,
    Tensors,
    Turn,
    Update,
    Work,
    cut_to_rank,
    product_norm,
    work_of,
    write_all,
)  # fmt: skip
from fedft.strategies.parts import probes, sensitivity
from fedft.strategies.parts.allocation import R0
from fedft.strategies.parts.probed_pairs import ProbedPairs
from fedft.strategies.parts.sensitivity import SCORE, Orthogonal, Scores
from fedft.strategies.parts.works_by_resources import Works
from fedft.update import TensorSpec

OWNER = "fedpipe"
PROBE = "probe"  # in `Plan.extra`: the rank of a probe's triplets


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
    precisions = tuple(sorted(set(bits), reverse=True))
    pipe = Pipe(probe_rounds, keep, Works(probe_rounds, replan, precisions, least, quantile))
    return Recipe(
        "fedpipe",
        ProbedPairs(),
        aggregate=partial(aggregate, dilute=normalise == "cohort"),
        local=FirstOrder("value", terms=(Scores(), Orthogonal(gamma))),
        server=pipe.server,
        downlink=cut_to_rank,
        start=start,
        upload=upload,
        plan=pipe.plan,
        takes=takes,
        check=pipe.check,
        linear=False,
        unlike_ranks=True,
        unlike_modules=True,
        bases="any",
        upload_kind="values",
        admit=admit,
        norm=norm,
    )


def start(handle: Handle, turn: Turn) -> None:
    """Put the model at what is held; before anything is adapted at the base, with triplets drawn from the seed."""
    if turn.plan.shape.largest:
        write_all(handle, turn)
        return
    shape = TripletShape(probe_rank(turn.plan))
    handle.write({**handle.kind.initial(handle.layout, shape, turn.run_seed), **turn.held}, ())


def probe_rank(plan: Plan) -> int:
    """The rank of a probe's triplets; R0 where a plan says something else than 1 to R0, as no server of ours does."""
    said = plan.extra.get(PROBE, R0)
    return said if isinstance(said, int) and 1 <= said <= R0 else R0


def takes(plan: Plan) -> Work:
    """What the turn of a plan takes: a probe as much as pairs of its rank in every weight."""
    work = work_of(plan)
    return work if plan.shape.largest else replace(work, shape=Shape(probe_rank(plan)))


def upload(layout: Layout, plan: Plan) -> Spec:
    """Scores of all weights from a probe; else the pairs that learn, a score of each, and a head."""
    if not plan.shape.largest:
        return {SCORE + m: TensorSpec((probe_rank(plan),)) for m in layout.modules}
    spec = ProbedPairs().spec(layout, plan.shape)
    return spec | {SCORE + n.removesuffix(A_SUFFIX): TensorSpec((1,)) for n in spec if n.endswith(A_SUFFIX)}


def admit(delta: Tensors, plan: Plan) -> None:
    """Raise RejectedUpdate for scores that no client of ours sends."""
    sensitivity.check_mean(delta)


def norm(delta: Tensors, plan: Plan) -> float:
    """The norm of the products and of a head; a probe, which moves nothing, has 0."""
    return product_norm({n: x for n, x in delta.items() if not n.startswith(SCORE)}, plan)


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
            for m in split(u.delta)[0]:
                holders[m] = holders.get(m, 0.0) + u.num_examples
            yield replace(u, delta={n: x for n, x in u.delta.items() if n not in of})

    pairs, rest = split(stacked_mean(trained()))
    if dilute:
        pairs = {m: (holders[m] / everybody) * d for m, d in pairs.items()}
    return to_names(pairs) | rest | mean(scores)


@dataclass(frozen=True)
class Pipe:
    """The server's side, see `fedpipe` for the fields."""

    probe_rounds: int
    keep: float
    works: Works

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
        """The work of every client that is asked: a probe, which has no pairs, or what it adapts."""
        if state.version >= self.probe_rounds:
            return self.works.of(state, sensitivity.said(state.drawer(OWNER)), roster)
        rank = min(R0, *(d.rank for d in split(state.tensors)[0].values()))
        return probes.works(rank, self.works.bits, {PROBE: rank}, roster)


def _cut(d: LowRank, old: LowRank) -> LowRank:
    """The best approximation of `d` at the rank of `old`; ranks that it does not need stay `old`'s, at zero."""
    return lowrank.padded_to(lowrank.pad(d.truncate(old.rank, 0.0), old.rank), old)
