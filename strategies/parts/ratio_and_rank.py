"""How much each client is asked to prune in a round, and at what rank: predicted time filters, a bandit chooses.

    sigma_k      median of the last three T_k / T_model of what k was asked for: how slow k is, its only unknown
    M            0.7 M + 0.3 median_k T_k, from round to round: the pace of the run
    admissible   sigma_k T_model(arm) <= 1.1 M
    draw         from k's own partition (`bandit`); if that is not admissible: a lower rank; if none is: the largest
                 increment. After a round in which k did not answer: the lowest rank
    R_k          w1 n(1 - loss after / before) + w2 increment / most + w3 n(|D_k|_F) - w4 |T_k - T| / T + 0.2, in [0, 1]
                 n(x) = x / max_j |x_j| and T = median_j T_j, over those whose updates counted in the round

T_k is from the server's letter to the client's answer, T_model the forecast of the work's operations; only ratios
count, so that no profile is needed. All is a function of what was seen in the last 128 rounds of each client: a run
that is begun anew plans the same. With the filter w4 is 0; rule "reference" has no filter: the bandit has all arms, and
late clients are paid less. "random" and "fixed", the largest increment and rank in every round, are there to compare
with. Rounds in which the adapter was still warming up are no pulls: nothing could be pruned in them.

Measured on 80 made-up devices (30, 40, 10 of slowness 1, 2.5, 6; 40 rounds, ratio 0.5; `test_many_devices`), seconds
of a round and gain, 1 being full rank with nothing pruned: fixed 4.59 and .517, random 5.30 and .553, reference 6.10
and .792, filtered 3.81 and .649. So it is the filter that shortens rounds, not a time term in the reward.

Source: our definition from the abstract of FedSpine, arXiv:2501.02438, see `fedspine`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from statistics import median
from typing import Literal, NamedTuple

from fedft.contract import Member, Seen
from fedft.randomness import philox
from fedft.recipe import Roster, Shape, Work
from fedft.strategies.parts.bandit import Arm, Box, Pull
from fedft.update import CUT, PREDICTED

RATIO, INCREMENT = "ratio", "increment"
"""In `Plan.extra`: the share to be pruned at the round's end, and the arm's part in it."""
BEFORE, AFTER = "loss.before", "loss.after"
"""Metrics of an update: the loss of the same records before and after the turn."""
GAIN, PRUNED, MOVED, LATE, SHIFT = 0.5, 0.2, 0.1, 0.2, 0.2  # w1 to w4, and what is added
TOLERANCE, SMOOTH, RECENT = 1.1, 0.7, 3
REMEMBERED = 128
"""Rounds of each client that a plan goes by. The pace has forgotten older ones (0.7^128), a bandit has 128 pulls; the
notes of a run do not grow beyond them."""
WARM = 20
"""Steps of the run before the first slice goes: while B is 0 the gradients say little."""

Rule = Literal["filtered", "reference", "random", "fixed"]


class Asked(NamedTuple):
    """What of a plan its time depends on; None: as in the run file."""

    rank: int
    steps: int | None = None
    batch: int | None = None
    bits: int | None = None
    cut: float = 0.0
    """The share of heads and channels that is cut away."""


@dataclass(frozen=True)
class Controller:
    """Chooses a ratio increment and a rank for every client of a roster."""

    box: Box
    """All arms; a client has those whose rank is not above the run file's for it."""
    target: float
    """The pruned share at which a client stops."""
    rule: Rule = "filtered"
    slices: bool = False
    """Whether clients cut away in a turn what they had pruned before it."""

    def plan(self, roster: Roster, pruned: Mapping[str, float]) -> dict[str, Work]:
        """The work of every client. `pruned`: the share that each has pruned by now; 0 where it is left out."""
        model = model_of(roster)
        paid, pace, slow = self.pulls(roster), pace_of(roster), slowness(roster, model)
        usual = median(slow.values()) if slow else 0.0
        works = {}
        for client, member in roster.items():
            now, box, sigma = pruned.get(client, 0.0), self.box_of(member), slow.get(client, usual)
            spared = {CUT: now} if self.slices and now else {}
            times = {r: sigma * model(asked_of(member, r, spared)) for r in box.ranks} if sigma else {}
            key = philox.derive(roster.seed, "plan", client, roster.round)
            along, across = philox.uniform(key, philox.SAMPLING, "arm", (2,)).tolist()
            arm = self._drawn(box, paid.get(client, []), along, across)
            if self.rule == "filtered" and pace is not None:
                arm = fast_enough(_after_silence(arm, box, member), box, times, TOLERANCE * pace)
            said = {INCREMENT: arm.increment, RATIO: max(now, min(self.target, now + arm.increment)), **spared}
            expected = {PREDICTED: times[arm.rank]} if times.get(arm.rank) else {}
            works[client] = Work(shape=Shape(arm.rank), extra={**said, **expected})
        return works

    def _drawn(self, box: Box, pulls: Sequence[Pull], along: float, across: float) -> Arm:
        """What the rule chooses from a box for a client with these pulls, by two numbers from [0, 1)."""
        if self.rule == "fixed":
            return Arm(box.most, box.ranks[-1])
        return box.partition(() if self.rule == "random" else pulls).choose(along, across)

    def box_of(self, member: Member) -> Box:
        """The arms of one client; its own rank where all others are above it."""
        return replace(self.box, ranks=tuple(r for r in self.box.ranks if r <= member.rank) or (member.rank,))

    def pulls(self, roster: Roster) -> dict[str, list[Pull]]:
        """By client: the arms that it was asked for in rounds in which its update counted, and what each paid."""
        found: dict[str, list[Pull]] = {}
        for cohort in _rounds(roster):
            for client, reward in self._rewards(cohort).items():
                seen, box = cohort[client], self.box_of(roster[client])
                arm = Arm(float(seen.extra.get(INCREMENT, -1.0)), seen.rank)
                known = 0 <= arm.increment <= box.most and arm.rank in box.ranks  # not, if by another run file
                if known and warming(seen.round, seen.steps) < seen.steps:
                    found.setdefault(client, []).append(Pull(arm, reward))
        return found

    def _rewards(self, cohort: Mapping[str, Seen]) -> dict[str, float]:
        """R_k of a round, by client."""
        gains = {c: _gain(s.metrics.get(BEFORE, 0.0), s.metrics.get(AFTER, 0.0)) for c, s in cohort.items()}
        norms = {c: s.norm or 0.0 for c, s in cohort.items()}
        largest, longest = (max(map(abs, x.values())) or 1.0 for x in (gains, norms))
        times = [s.seconds for s in cohort.values() if s.seconds]
        usual, late = median(times) if times else 0.0, LATE if self.rule == "reference" else 0.0
        found = {}
        for c, s in cohort.items():
            reward = GAIN * gains[c] / largest + MOVED * norms[c] / longest + SHIFT
            reward += PRUNED * float(s.extra.get(INCREMENT, 0.0)) / self.box.most
            reward -= late * abs(s.seconds - usual) / usual if s.seconds and usual else 0.0
            found[c] = min(1.0, max(0.0, reward))
        return found


def _gain(before: float, after: float) -> float:
    """By which part of itself a loss fell, -1 to 1, whatever a client says."""
    return min(1.0, max(-1.0, 1 - after / before)) if before > 0 else 0.0


def warming(round: int, steps: int) -> int:
    """In how many of a round's steps nothing is pruned yet, where every round so far had as many."""
    return max(0, WARM - round * steps)


def _after_silence(arm: Arm, box: Box, member: Member) -> Arm:
    """The arm, at the lowest rank where the client did not answer last time: else its speed may never be learned."""
    silent = member.seen and not member.seen[-1].admitted and member.seen[-1].seconds is None
    return arm._replace(rank=box.ranks[0]) if silent else arm


def fast_enough(arm: Arm, box: Box, times: Mapping[int, float], most: float) -> Arm:
    """The arm itself if it takes at most so many seconds; else the same at the largest lower rank that does.

    Where none does, the largest increment at the lowest rank: it is fast in a later round. `times`: seconds by rank; a
    rank of which nothing is known is fast.
    """
    lower = (r for r in reversed(box.ranks) if r <= arm.rank and times.get(r, 0.0) <= most)
    rank = next(lower, None)
    return Arm(box.most, box.ranks[0]) if rank is None else arm._replace(rank=rank)


def slowness(roster: Roster, model: Callable[[Asked], float]) -> dict[str, float]:
    """sigma_k, seconds per operation, of the clients of whom seconds are known and whose work has a forecast."""
    found = {}
    for client, member in roster.items():
        recent = [(s.seconds, model(_asked(s))) for s in member.seen[-RECENT:] if s.seconds]
        if timed := [seconds / operations for seconds, operations in recent if operations]:
            found[client] = median(timed)
    return found


def pace_of(roster: Roster) -> float | None:
    """M in seconds: the rounds' medians, smoothed from the oldest on; None where no seconds are known."""
    pace: float | None = None
    for cohort in _rounds(roster):
        if times := [s.seconds for s in cohort.values() if s.seconds]:
            pace = median(times) if pace is None else SMOOTH * pace + (1 - SMOOTH) * median(times)
    return pace


def model_of(roster: Roster) -> Callable[[Asked], float]:
    """T_model: the forecast of the operations that a turn takes; each is made once."""

    @cache
    def operations(asked: Asked) -> float:
        spared = {CUT: asked.cut} if asked.cut else {}
        work = Work(Shape(asked.rank), asked.steps, batch=asked.batch, bits=asked.bits, extra=spared)
        return roster.forecast(work).flops

    return operations


def asked_of(member: Member, rank: int, spared: Mapping[str, float]) -> Asked:
    """What a client would be asked for at this rank: as many steps as last time, in which its rows may have a say."""
    last = _asked(member.seen[-1]) if member.seen else Asked(rank)
    return last._replace(rank=rank, cut=spared.get(CUT, 0.0))


def _asked(seen: Seen) -> Asked:
    cut = float(seen.extra.get(CUT, 0.0))
    return Asked(seen.rank, seen.steps, seen.batch or None, seen.bits or None, cut)


def _rounds(roster: Roster) -> list[dict[str, Seen]]:
    """Of each round that anybody remembers, oldest first: what was seen of those whose updates counted, by client."""
    found: dict[int, dict[str, Seen]] = {}
    for client in sorted(roster, key=str.encode):
        for seen in roster[client].seen:
            if seen.admitted:
                found.setdefault(seen.round, {})[client] = seen
    return [found[n] for n in sorted(found)]
