"""What increment and rank pay for one device: an upper-confidence bandit on a box that is partitioned as it learns.

    arms    points of [0, most] x ranks; a leaf is an interval of increments with some neighbouring ranks
    N_l     = sum_s g^(t-s) 1[arm_s in l],      Q_l = (1 / N_l) sum_s g^(t-s) R_s 1[arm_s in l]
    U_l     = Q_l + c sqrt(2 log(sum_l N_l) / N_l);   infinite in a leaf without a pull
    choose  the leaf of the largest U (the first of equal ones), and an arm in it, uniformly
    learn   a leaf that is wider than theta is cut at the arm that was played, along its wider side

All is a function of the pulls, oldest first: a partition that is made of them anew is the partition that saw them come.
Sides are measured as shares of the box's. Rewards are 0 to 1.

Source: our definition from the abstract of FedSpine (Yao, Xu, Xu, Liao, Xie 2025, arXiv:2501.02438), which has a rule
of this family; the exact one is not known. Mean regret on a static concave reward (noise 0.05, most 0.1, four ranks, 20
seeds; of a random arm .251), in pulls 1 to 100, 101 to 200, 201 to 300, 301 to 400:

    g 1, c 0.1, theta 0.2, the defaults     .079 .046 .027 .022
    g 0.99, c 0.1, theta 0.2                .098 .106 .107 .110      it forgets as fast as its leaves grow
    g 0.95, c 0.5, theta 0.05               .179 .207 .232 .238
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple


class Arm(NamedTuple):
    """What a device may be asked for in a round."""

    increment: float
    """By how much its pruned share grows, 0 to the box's `most`."""
    rank: int
    """Of its adapter."""


class Pull(NamedTuple):
    """An arm that was played, and what it paid."""

    arm: Arm
    reward: float
    """0 to 1."""


@dataclass
class Leaf:
    """One part of the box: increments from `low` up to `high`, and ranks."""

    low: float
    """The least increment, as a share of the box's `most`; it is in the leaf."""
    high: float
    """The end, as such a share; it is in the leaf only where it is 1."""
    ranks: tuple[int, ...]
    """Ascending."""
    pulls: list[tuple[int, Pull]] = field(default_factory=list)
    """Those whose arm is in the leaf, each with its number, from 0."""

    def statistics(self, now: int, discount: float) -> tuple[float, float]:
        """(N, Q) with `now` pulls in all, of which the last counts 1; Q is 0 where N is."""
        shares = [discount ** (now - 1 - at) for at, _ in self.pulls]
        n = math.fsum(shares)
        return n, math.fsum(w * pull.reward for w, (_, pull) in zip(shares, self.pulls, strict=True)) / n if n else 0.0


@dataclass(frozen=True)
class Box:
    """All arms, and how they are learned about."""

    most: float
    """The largest ratio increment, above 0."""
    ranks: tuple[int, ...]
    """Ascending, at least one."""
    discount: float = 1.0
    """g: above 0, at most 1 (nothing is forgotten)."""
    exploration: float = 0.1
    """c: at least 0."""
    finest: float = 0.2
    """theta: a leaf that is no wider, on its wider side, is cut no more."""

    def partition(self, pulls: Iterable[Pull] = ()) -> "Partition":
        """The partition that these pulls lead to, oldest first."""
        made = Partition(self)
        for pull in pulls:
            made.learn(pull)
        return made

    def width(self, ranks: Sequence[int]) -> float:
        """How wide neighbouring ranks are, as a share of all: 0 for one, 1 for all of them."""
        return (len(ranks) - 1) / (len(self.ranks) - 1) if len(ranks) > 1 else 0.0


class Partition:
    """The leaves of one device's box after some pulls."""

    def __init__(self, box: Box) -> None:
        """One leaf, the box, which nobody has pulled."""
        self.box, self.count = box, 0
        self.leaves = [Leaf(0.0, 1.0, box.ranks)]

    def leaf(self, arm: Arm) -> Leaf:
        """The leaf that an arm is in. Raises ValueError for one that is in none."""
        share = arm.increment / self.box.most
        for leaf in self.leaves:
            if leaf.low <= share and (share < leaf.high or share == leaf.high == 1) and arm.rank in leaf.ranks:
                return leaf
        raise ValueError(f"expected an increment from 0 to {self.box.most} and a rank of {self.box.ranks}, got {arm}")

    def learn(self, pull: Pull) -> None:
        """Take in the pull that came next: it counts in its leaf, which is then cut if it is wide."""
        leaf = self.leaf(pull.arm)
        leaf.pulls.append((self.count, pull))
        self.count += 1
        along, across = leaf.high - leaf.low, self.box.width(leaf.ranks)
        if max(along, across) > self.box.finest:
            place = self.leaves.index(leaf)
            halves = self._cut_increments(leaf, pull.arm) if along >= across else self._cut_ranks(leaf, pull.arm)
            self.leaves[place : place + 1] = halves
            for number, seen in leaf.pulls:
                self.leaf(seen.arm).pulls.append((number, seen))

    def bounds(self) -> list[float]:
        """U of every leaf, in their order."""
        found = [leaf.statistics(self.count, self.box.discount) for leaf in self.leaves]
        total, c = math.fsum(n for n, _ in found), self.box.exploration
        return [q + c * math.sqrt(2 * max(0.0, math.log(total)) / n) if n else math.inf for n, q in found]

    def choose(self, along: float, across: float) -> Arm:
        """An arm of the leaf of the largest bound: `along` and `across`, uniform in [0, 1), say where in the leaf."""
        bounds = self.bounds()
        leaf = self.leaves[bounds.index(max(bounds))]
        increment = leaf.low + along * (leaf.high - leaf.low)
        return Arm(increment * self.box.most, leaf.ranks[int(across * len(leaf.ranks))])

    def _cut_increments(self, leaf: Leaf, arm: Arm) -> list[Leaf]:
        """Below and from the arm's increment; at the middle where the arm is at an end."""
        at = arm.increment / self.box.most
        if not leaf.low < at < leaf.high:
            at = (leaf.low + leaf.high) / 2
        return [Leaf(leaf.low, at, leaf.ranks), Leaf(at, leaf.high, leaf.ranks)]

    def _cut_ranks(self, leaf: Leaf, arm: Arm) -> list[Leaf]:
        """Up to the arm's rank and above it; below the largest rank and that one where the arm has it."""
        at = min(leaf.ranks.index(arm.rank) + 1, len(leaf.ranks) - 1)
        return [Leaf(leaf.low, leaf.high, leaf.ranks[:at]), Leaf(leaf.low, leaf.high, leaf.ranks[at:])]
