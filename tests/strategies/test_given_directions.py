"""Published numbers by hand: `strategies.make` takes directions and draws in place of the generator's.

Two clients of 30 and 10 examples, losses |y - o|^2 / 2 from y = 0, o = (3, 1) and (-1, 1); along (1, -1), then (1, 1),
at learning rate 0.1. A two-sided slope of a quadratic is exact at every epsilon:

    o = (3, 1)     slope -3 + 1 = -2, y = (0.2, -0.2);    slope -2.8 - 1.2 = -4, y = (0.6, 0.2)
    o = (-1, 1)    slope 1 + 1 = 2,   y = (-0.2, 0.2);    slope 0.8 - 0.8 = 0,   y = (-0.2, 0.2)
    mean           0.75 (0.6, 0.2) + 0.25 (-0.2, 0.2) = (0.4, 0.2)
"""

import pytest
import torch
from quadratic import Quadratics

from fedft import strategies
from fedft.contract import State
from fedft.errors import ConfigError
from fedft.randomness.independent import Table
from fedft.recipe import Recipe
from fedft.update import Update

FIRST, SECOND = [1.0, -1.0], [1.0, 1.0]
MEAN = [0.4, 0.2]
BY_TURN = {"table": Table({"y": torch.tensor([FIRST, SECOND])})}


def one_round(recipe: Recipe, steps: int, lr: float = 0.1) -> tuple[list[Update], State, list[float]]:
    """(the uploads, the next state, its model) of the two clients."""
    both = Quadratics(recipe, [torch.eye(2)] * 2, [torch.tensor([3.0, 1.0]), torch.tensor([-1.0, 1.0])], [30, 10])
    sent = [both.train(both.state(), k, lr, steps)[0] for k in range(2)]
    after = recipe.next_state(both.state(), recipe.aggregate(iter(sent)))
    both.train(after, 0, 0.0, 1)  # at rate zero the model stays where the state puts it
    return sent, after, both.handle.read()["y"].tolist()


def test_two_steps_of_fedkseed():
    """Direction 1 of the pool first, then 0: c = (-0.4, -0.2) and (0, 0.2); a = (-0.3, -0.1)."""
    table = Table({"y": torch.tensor([SECOND, FIRST])})
    recipe = strategies.make("fedkseed", {"K": 2, "epsilon": 0.5}, table=table, draws=[1, 0])
    sent, after, y = one_round(recipe, 2)
    assert [dict(zip(u.delta["index"].tolist(), u.delta["scalar"].tolist(), strict=True)) for u in sent] == [
        pytest.approx({0: -0.4, 1: -0.2}, abs=1e-6),
        pytest.approx({0: 0.0, 1: 0.2}, abs=1e-6),
    ]
    assert after.tensors["pool"].tolist() == pytest.approx([-0.3, -0.1], abs=1e-6)
    assert y == pytest.approx(MEAN, abs=1e-5)


def test_two_steps_of_mezo():
    """The scalars of both steps, times 0.75 and 0.25 in the history; the same walk as FedKSeed's."""
    sent, after, y = one_round(strategies.make("mezo", {"epsilon": 0.5}, **BY_TURN), 2)
    assert sent[0].delta["scalar"].tolist() == pytest.approx([-0.2, -0.4], abs=1e-5)
    assert sent[1].delta["scalar"].tolist() == pytest.approx([0.2, 0.0], abs=1e-5)
    rows = sorted(after.tensors["0.scalar"].tolist())
    assert rows == [pytest.approx([-0.15, -0.3], abs=1e-5), pytest.approx([0.05, 0.0], abs=1e-5)]
    assert y == pytest.approx(MEAN, abs=1e-5)


def test_two_steps_of_zo_fedavg():
    sent, _, y = one_round(strategies.make("zo_fedavg", {"space": "full", "epsilon": 0.5}, **BY_TURN), 2)
    assert sent[0].delta["y"].tolist() == pytest.approx([0.6, 0.2], abs=1e-5)
    assert sent[1].delta["y"].tolist() == pytest.approx([-0.2, 0.2], abs=1e-5)
    assert y == pytest.approx(MEAN, abs=1e-5)


def test_one_step_of_ferret():
    """Updates 0.1 o = (0.3, 0.1) and (-0.1, 0.1) on (1, -1), (1, 1): gamma = (0.1, 0.2), (-0.1, 0); mean (0.2, 0.1)."""
    sent, after, y = one_round(strategies.make("ferret", {"K": 2}, **BY_TURN), 1)
    assert sent[0].delta["coordinates"].tolist() == pytest.approx([0.1, 0.2], abs=1e-6)
    assert sent[1].delta["coordinates"].tolist() == pytest.approx([-0.1, 0.0], abs=1e-6)
    assert after.tensors["0.coordinates"].tolist() == pytest.approx([0.05, 0.15], abs=1e-6)
    assert y == pytest.approx([0.2, 0.1], abs=1e-6)


@pytest.mark.parametrize("name", ["fedkseed", "mezo", "zo_fedavg", "ferret"])
def test_a_run_file_has_no_directions(name):
    for option in ("table", "draws") if name in ("fedkseed", "ferret") else ("table",):
        with pytest.raises(ConfigError, match=rf"^\[strategy\] {name}: {option} is \[1\], but .* leave it out$"):
            strategies.make(name, {option: [1]})


@pytest.mark.parametrize(
    ("name", "options", "given", "said"),
    [
        ("fedkseed", {"K": 2}, {"draws": [0, 2]}, "numbers from 0 to 1"),
        ("fedkseed", {"K": 3}, BY_TURN, "K = 3 directions, got 2"),
        ("ferret", {"K": 3, "variant": "reference"}, {"draws": [0, 1, 1]}, "each of 0 .. 2 once"),
        ("ferret", {"K": 3}, {"draws": [0, 1, 2]}, "of variant 'reference'"),
        ("mezo", {"rule": "sign"}, {"table": Table({"y": torch.tensor([[3.0, 4.0]])})}, "signs"),
        ("mezo", {}, {"draws": [0]}, "draws"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused_in_one_line(name, options, given, said):
    with pytest.raises(ConfigError, match=rf"^\[strategy\] {name}: .*{said}"):
        strategies.make(name, options, **given)


@pytest.mark.parametrize("name", ["mezo", "zo_fedavg", "fedkseed"])
def test_more_steps_than_were_given_are_refused(name):
    given = {"table": Table({"y": torch.ones(1, 2)})} if name != "fedkseed" else {"draws": [0]}
    with pytest.raises(ValueError, match=r"at least 2 .*, got 1"):
        one_round(strategies.make(name, {"space": "full"}, **given), 2)
