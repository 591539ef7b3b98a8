"""The pool of K directions: which of them a turn goes along, and Pro's probabilities."""

import math

import pytest
import torch

from fedft.config import Local
from fedft.contract import Turn
from fedft.strategies.parts.seed_pool import SeedPool, probabilities
from fedft.testing import RUN, SEED
from fedft.training.zeroth_rules import Walk
from fedft.update import Plan

K = 64
POOL = SeedPool(K, Walk())


def turn_of(steps: int, seed: int = 5, **held) -> Turn:
    plan = Plan(RUN, 0, 0, steps=steps, learning_rate=0.1)
    return Turn(plan, held, "", Local(), SEED, seed)


def test_draws_depend_on_the_clients_seed_only():
    assert POOL.draws(turn_of(20)) == POOL.draws(turn_of(20))
    assert POOL.draws(turn_of(20)) != POOL.draws(turn_of(20, seed=6))


def test_draws_are_uniform():
    """6400 draws of 64: counts have mean 100 and standard deviation 10; five of them is one in a million."""
    count = torch.bincount(torch.tensor(POOL.draws(turn_of(6400))), minlength=K)
    assert (count - 100).abs().max() <= 50


def test_without_replacement_every_direction_comes_once_per_pass():
    pool = SeedPool(8, Walk(), sampling="without_replacement")
    drawn = pool.draws(turn_of(20))
    assert len(drawn) == 20
    assert sorted(drawn[:8]) == sorted(drawn[8:16]) == list(range(8))
    assert len(set(drawn[16:])) == 4
    assert drawn[:8] != drawn[8:16]


def test_pro_draws_by_the_probabilities_that_came_down():
    pool = SeedPool(4, Walk(), pro=True)
    q = torch.tensor([0.5, 0.0, 0.25, 0.25]).half().view(torch.uint16)
    count = torch.bincount(torch.tensor(pool.draws(turn_of(4000, q=q))), minlength=4)
    assert count[1] == 0
    assert abs(int(count[0]) - 2000) < 160  # five standard deviations of 32


def test_a_step_takes_as_many_directions_as_it_has_samples():
    assert len(SeedPool(K, Walk(samples=3)).draws(turn_of(10))) == 30


def q_of(count: list[float], magnitude: list[float]) -> torch.Tensor:
    return probabilities(torch.tensor(count), torch.tensor(magnitude))


@pytest.mark.parametrize("magnitudes", [[0.0, 1.0, 5.0, 2.0], [1e-3, 2e-3, 1e-3, 3e-3], [1e3, 0.0, 0.0, 9e2]], ids=str)
def test_probabilities_sum_to_one_and_span_exactly_e(magnitudes):
    q = q_of([3.0, 3.0, 3.0, 3.0], magnitudes)
    assert float(q.sum()) == pytest.approx(1, abs=1e-9)
    assert float(q.max() / q.min()) == pytest.approx(math.e, rel=1e-5)
    assert int(q.argmax()) == magnitudes.index(max(magnitudes))


@pytest.mark.parametrize(("count", "magnitude"), [([0.0] * 5, [0.0] * 5), ([2.0] * 5, [7.0] * 5)])
def test_equal_histories_give_uniform_probabilities(count, magnitude):
    assert torch.equal(q_of(count, magnitude), torch.full((5,), 0.2, dtype=torch.float64))


def test_each_history_starts_with_one_zero_by_hand():
    """Sums 6, 6, 3 over 2, 5, 1 draws: means 6/3 = 2, 6/6 = 1, 3/2 = 1.5, scaled 1, 0, 1/2, then a softmax."""
    q = q_of([2.0, 5.0, 1.0], [6.0, 6.0, 3.0])
    total = math.e + 1 + math.e**0.5
    assert q.tolist() == pytest.approx([math.e / total, 1 / total, math.e**0.5 / total], rel=1e-6)
