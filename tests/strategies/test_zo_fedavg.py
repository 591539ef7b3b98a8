"""ZO-FedAvg: dense changes of zeroth-order walks are averaged, whatever the rule."""

import pytest
import torch

from fedft import config
from fedft.adapters.lora import LoRA
from fedft.arithmetic import tensors
from fedft.config import Local
from fedft.randomness import families, philox
from fedft.randomness.source import Source
from fedft.strategies.parts.fresh_walks import Fresh
from fedft.strategies.zo_fedavg import zo_fedavg
from fedft.testing import Ready, strategy_contract, toy
from fedft.training import directional_derivatives
from fedft.training.zeroth_rules import Walk
from fedft.update import Update

BATCH = {"x": torch.linspace(-1, 1, 40).reshape(5, 8), "labels": torch.linspace(1, -1, 20).reshape(5, 4)}
OUT_OF_SPAN = [
    {"rule": "adam", "family": "gaussian"},
    {"rule": "adam", "samples": 2},
    {"rule": "sign", "family": "gaussian"},
    {"rule": "sign", "samples": 2},
    {"blocks": True},
    {"blocks": True, "coordinate": True, "rule": "momentum"},
    {"sparsity": 0.5, "resample": 2},
    {"sparsity": 0.5, "resample": 2, "rule": "momentum"},
]


def test_changes_are_weighted_by_examples_by_hand():
    """(3 * 2 + 1 * -2) / 4 = 1."""
    updates = [Update({"w": torch.tensor(x)}, n) for x, n in ((2.0, 3), (-2.0, 1))]
    assert zo_fedavg().aggregate(iter(updates))["w"].item() == 1.0


@pytest.mark.parametrize("space", ["full", "lora"])
def test_what_is_sent_is_where_the_walk_led(space):
    """By hand: fresh direction s in step s, of the seed that derives from the client's own."""
    t = toy(zo_fedavg(space=space))
    state = t.state()
    plan = t.plan(state, 1, steps=3)
    sent = t.recipe.local(t.handle, Ready(BATCH), t.turn(plan, 1)).delta
    turn = t.turn(plan, 1)
    z = families.make("hadamard", philox.derive(turn.seed, "zo"), 3)
    received = t.handle.read()
    for j in range(3):
        g, _ = directional_derivatives.two_point(t.handle, BATCH, z, j, 1e-3)
        directional_derivatives.step(t.handle, z, j, -0.05 * g)
    want = tensors.sub(t.handle.read(), received)
    assert all(torch.equal(x, want[n]) for n, x in sent.items())
    assert sent.keys() == t.recipe.spec(t.layout, t.plan(state, 1)).keys()


def test_directions_differ_by_client_and_round_and_repeat_with_the_turn():
    t = toy(zo_fedavg())
    turns = [t.turn(t.plan(t.state(), k), k) for k in (0, 1)]
    seed = Fresh(Walk(), Source()).seed
    assert seed(turns[0]) != seed(turns[1])
    assert seed(turns[0]) == seed(t.turn(t.plan(t.state(), 0), 0))


def test_a_mask_is_the_same_for_all_clients_and_rounds():
    t = toy(zo_fedavg(space="full", sparsity=0.5, rule="sign"))
    state = t.state()
    still = []
    for _ in range(2):
        updates = [t.update(state, k, steps=1) for k in range(3)]
        still += [torch.cat([u.delta[n].flatten() for n in sorted(u.delta)]) == 0 for u in updates]
        state = t.step(state, updates)
    assert all(torch.equal(x, still[0]) for x in still)
    assert 0.3 < float(still[0].double().mean()) < 0.7


def test_new_masks_differ_by_client():
    t = toy(zo_fedavg(space="full", sparsity=0.5, resample=1, rule="sign"))
    still = [torch.cat([x.flatten() for x in t.update(t.state(), k, steps=1).delta.values()]) == 0 for k in range(2)]
    assert not torch.equal(*still)


@pytest.mark.slow
@pytest.mark.parametrize("options", OUT_OF_SPAN, ids=str)
def test_the_contract_holds_for_what_others_cannot_send(options):
    strategy_contract(zo_fedavg(**options))


@pytest.mark.parametrize("options", OUT_OF_SPAN, ids=str)
def test_a_learning_rate_of_zero_sends_zeros(options):
    t = toy(zo_fedavg(**options))
    assert not any(x.any() for x in t.update(t.state(), 0, lr=0.0).delta.values())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"space": "head"}, "space"),
        ({"family": "uniform"}, "family"),
        ({"coordinate": True}, "blocks"),
        ({"resample": 2}, "sparsity"),
        ({"momentum": 1.0}, "momentum"),
        ({"objective": "accuracy", "estimate": "forward"}, "forward"),
    ],
    ids=str,
)
def test_options_that_make_no_sense_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        zo_fedavg(**options)


def test_more_directions_than_a_family_has_are_refused_when_the_run_file_is_read():
    run = config.RunConfig(local=Local(steps=4096))
    zo_fedavg().check(run)
    zo_fedavg(samples=2, family="gaussian").check(run)
    with pytest.raises(ValueError, match="8192"):
        zo_fedavg(samples=2).check(run)


def test_it_is_an_average_of_changes():
    recipe = zo_fedavg()
    assert recipe.linear
    assert not recipe.reveals_clients
    assert recipe.space == LoRA()
