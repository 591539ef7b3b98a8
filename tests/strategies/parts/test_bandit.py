"""The bandit: its statistics by brute force, what it learns on a static reward, and that its pulls are all it knows."""

import math
import random

import pytest

from fedft.strategies.parts.bandit import Arm, Box, Pull

RANKS = (4, 8, 16, 32)
BOX = Box(0.1, RANKS)


def gain(arm: Arm) -> float:
    """A static concave reward, largest at three tenths of the box's increments and rank 16: 0.1 to 0.9."""
    x, y = arm.increment / BOX.most, RANKS.index(arm.rank) / 3
    return 0.9 - 0.8 * ((x - 0.3) ** 2 / 0.49 + (y - 2 / 3) ** 2 / (4 / 9)) / 2


def played(box: Box, seed: int, pulls: int) -> list[Pull]:
    """A run of the bandit on `gain` with noise of 0.05."""
    rng, partition, found = random.Random(seed), box.partition(), list[Pull]()
    for _ in range(pulls):
        arm = partition.choose(rng.random(), rng.random())
        found.append(Pull(arm, min(1.0, max(0.0, gain(arm) + rng.gauss(0, 0.05)))))
        partition.learn(found[-1])
    return found


def at_random(seed: int, pulls: int) -> list[Pull]:
    rng = random.Random(seed)
    arms = [Arm(rng.random() * BOX.most, rng.choice(RANKS)) for _ in range(pulls)]
    return [Pull(arm, gain(arm)) for arm in arms]


def regret(pulls: list[Pull]) -> float:
    """Mean distance from the best arm that there is."""
    return sum(0.9 - gain(p.arm) for p in pulls) / len(pulls)


@pytest.mark.parametrize("discount", [1.0, 0.9])
def test_statistics_of_every_leaf_are_those_of_its_definition(discount):
    """Counted again from all pulls and the leaf's bounds, after every one of them."""
    box = Box(0.1, RANKS, discount)
    partition, seen = box.partition(), list[Pull]()
    for pull in at_random(3, 80):
        partition.learn(pull)
        seen.append(pull)
        for leaf in partition.leaves:
            n = q = 0.0
            for s, (arm, reward) in enumerate(seen):
                share, top = arm.increment / 0.1, leaf.high == 1
                if leaf.low <= share and (share < leaf.high or top) and arm.rank in leaf.ranks:
                    n += discount ** (len(seen) - 1 - s)
                    q += discount ** (len(seen) - 1 - s) * reward
            assert leaf.statistics(partition.count, discount) == pytest.approx((n, q / n if n else 0.0))
    assert len(partition.leaves) > 12


def test_leaves_part_the_box():
    """Every arm is in one leaf: their areas, in increments and ranks, add up to the box's."""
    partition = BOX.partition(at_random(1, 200))
    assert math.fsum((leaf.high - leaf.low) * len(leaf.ranks) for leaf in partition.leaves) == pytest.approx(4)
    for arm in [p.arm for p in at_random(2, 200)] + [Arm(x, r) for x in (0.0, 0.1) for r in RANKS]:
        share = arm.increment / 0.1
        holders = [
            leaf for leaf in partition.leaves
            if arm.rank in leaf.ranks and leaf.low <= share and (share < leaf.high or share == leaf.high == 1)
        ]  # fmt: skip
        assert len(holders) == 1
        assert partition.leaf(arm) is holders[0]
    with pytest.raises(ValueError, match="expected an increment"):
        partition.leaf(Arm(0.2, 4))


def test_no_leaf_is_finer_than_it_may_be_cut():
    partition = BOX.partition(at_random(7, 2000))
    for leaf in partition.leaves:
        assert max(leaf.high - leaf.low, BOX.width(leaf.ranks)) <= BOX.finest


def test_arms_at_the_ends_leave_no_empty_leaf():
    partition = BOX.partition(Pull(Arm(x, r), 0.5) for x in (0.0, 0.1) for r in (4, 32) for _ in range(9))
    assert all(leaf.low < leaf.high and leaf.ranks for leaf in partition.leaves)


def test_with_one_leaf_and_nothing_forgotten_it_is_the_running_mean():
    box = Box(0.1, (8,), finest=1.0)
    rewards = [0.2, 0.9, 0.4]
    partition = box.partition(Pull(Arm(0.05, 8), r) for r in rewards)
    assert [leaf.statistics(3, 1.0) for leaf in partition.leaves] == [(3, pytest.approx(0.5))]


def test_by_hand():
    """Two pulls in a box that is cut once, at the first: U = Q + 0.1 sqrt(2 log 2 / 1) in both halves."""
    box = Box(1.0, (8,), finest=0.7)
    partition = box.partition([Pull(Arm(0.4, 8), 0.25), Pull(Arm(0.1, 8), 0.75)])
    assert [(leaf.low, leaf.high) for leaf in partition.leaves] == [(0.0, 0.4), (0.4, 1.0)]
    assert partition.bounds() == pytest.approx([0.75 + 0.1 * math.sqrt(2 * math.log(2)), 0.25 + 0.1177410])
    assert partition.choose(0.5, 0.0) == Arm(0.2, 8)


def test_a_leaf_that_nobody_pulled_comes_first():
    partition = Box(1.0, (8,), finest=0.7).partition([Pull(Arm(0.4, 8), 1.0)])
    assert partition.bounds()[0] == math.inf
    assert partition.choose(0.0, 0.0).increment == 0.0


def test_its_regret_falls_to_a_quarter_of_randoms():
    """Pulls 201 to 400, mean of five seeds, and every one of them."""
    pulls = [played(BOX, seed, 400)[200:] for seed in range(5)]
    random_arm = sum(regret(at_random(seed, 400)) for seed in range(5)) / 5
    assert random_arm > 0.2
    assert sum(map(regret, pulls)) / 5 <= random_arm / 4
    assert max(map(regret, pulls)) <= random_arm / 3


def test_a_partition_made_anew_of_its_pulls_goes_on_as_the_one_that_saw_them_come():
    pulls = played(BOX, 5, 60)
    grown = BOX.partition()
    for n, pull in enumerate(pulls):
        assert BOX.partition(pulls[:n]).choose(0.3, 0.6) == grown.choose(0.3, 0.6)
        grown.learn(pull)
