"""SCAFFOLD: the control variates add up, one client is plain SGD, and unlike optima no longer pull the result aside."""

import logging
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from quadratic import SGD, Quadratics, best, two_clients

from fedft.arithmetic import tensors
from fedft.config import Local
from fedft.contract import Layout, State, Turn
from fedft.privacy.tables import Privacy
from fedft.strategies.fedavg import fedavg
from fedft.strategies.fedit import fedit
from fedft.strategies.fedkseed import fedkseed
from fedft.strategies.fedprox import fedprox
from fedft.strategies.ffa_lora import ffa_lora
from fedft.strategies.flora import flora
from fedft.strategies.scaffold import scaffold
from fedft.testing import Ready, strategy_contract, toy
from fedft.training.control_variates import CONTROL, OWNER, controls, without_controls
from fedft.training.first_order import FirstOrder
from fedft.update import Plan, Update

SPACES = pytest.mark.parametrize("on", [fedit(), fedavg(), ffa_lora()], ids=lambda r: r.name)
BATCH = {"x": torch.linspace(-1, 1, 40).reshape(5, 8), "labels": torch.linspace(1, -1, 20).reshape(5, 4)}
C = CONTROL + "y"


def alone(recipe, rounds: int) -> list[dict[str, torch.Tensor]]:
    """x after each round of one client with plain SGD on the toy."""
    t, state, kept, found = toy(recipe), toy(recipe).state(), {}, []
    for _ in range(rounds):
        turn = replace(t.turn(t.plan(state, 0, lr=0.1, steps=5), 0), local=SGD, kept=kept)
        delta, _, kept = recipe.local(t.handle, Ready(BATCH), turn)
        change = recipe.aggregate([Update(delta, 12, roster=1)])
        state = recipe.next_state(state, change)
        found.append(without_controls(state.tensors))
    return found


@SPACES
def test_with_one_client_it_is_sgd_bit_for_bit(on):
    """c_k = c in every bit after any number of rounds, so the correction is zero, not small."""
    for ours, theirs in zip(alone(scaffold(on=on), 5), alone(on, 5), strict=True):
        assert tensors.digest(ours) == tensors.digest(theirs)


def mean_of_controls(q: Quadratics) -> torch.Tensor:
    """(1 / N) sum_k c_k over all clients; those never asked are at 0."""
    return sum((x[OWNER]["y"].double() for x in q.kept.values()), torch.zeros(2, dtype=torch.float64)) / len(q.optimum)


def test_with_everybody_the_mean_of_all_client_controls_is_the_server_s():
    q = two_clients(scaffold(on=fedavg()), examples=(7, 1))
    state = q.state()
    for _ in range(6):
        state = q.round(state, lr=0.05, steps=4)
        assert torch.allclose(mean_of_controls(q), state.tensors[C].double(), rtol=1e-6, atol=1e-6)
        assert state.tensors[C].norm() > 0.01


def five_clients(recipe) -> Quadratics:
    rng = torch.Generator().manual_seed(3)
    return Quadratics(recipe, [torch.eye(2) * (k + 1) for k in range(5)], list(torch.randn(5, 2, generator=rng)))


def test_it_stays_so_when_only_some_are_asked():
    """N is the number of all clients: those that were not asked, or never yet, count with the c_k they have."""
    q = five_clients(scaffold(on=fedavg()))
    state = q.state()
    for cohort in ((0, 1), (1, 3), (2,), (0, 3), (1,)):
        before = dict(q.kept)
        state = q.round(state, lr=0.05, steps=3, cohort=cohort)
        assert torch.allclose(mean_of_controls(q), state.tensors[C].double(), rtol=1e-6, atol=1e-6)
        assert all(q.kept[k] is before[k] for k in before.keys() - set(cohort))  # who is away keeps its c_k
    assert 4 not in q.kept


def test_a_client_that_drops_out_of_a_round_changes_nothing():
    """Its turn was for nothing: neither c nor its c_k moves, and its next turn starts from the old c_k."""
    q = two_clients(scaffold(on=fedavg()))
    state = q.round(q.state(), lr=0.1, steps=3)
    q.train(state, 1, lr=0.1, steps=3)  # lost on the way
    after = q.round(state, lr=0.1, steps=3, cohort=(0,))
    assert torch.allclose(mean_of_controls(q), after.tensors[C].double(), rtol=1e-6, atol=1e-6)


def test_identical_clients_need_no_correction_after_the_first_round_of_all():
    q = two_clients(scaffold(on=fedavg()))
    q.curvature, q.optimum = [q.curvature[0]] * 2, [q.optimum[0]] * 2
    plain = replace(q, recipe=fedavg(), kept={})
    state, without = q.state(), plain.state()
    for _ in range(4):
        state, without = q.round(state, lr=0.1, steps=5), plain.round(without, lr=0.1, steps=5)
        assert torch.equal(state.tensors["y"], without.tensors["y"])
        assert all(torch.equal(kept[OWNER]["y"], state.tensors[C]) for kept in q.kept.values())
        assert state.tensors[C].any()


@pytest.mark.parametrize("examples", [(1, 1), (1, 3)])
def test_unlike_optima_are_no_bias_at_constant_rate_and_many_local_steps(examples):
    """Two quadratics, 20 steps a round: SCAFFOLD ends where sum_k grad L_k = 0; FedAvg beside any optimum.

    Every client counts once there, whatever its weight in the mean of x: corrections vanish on average only if c = 0.
    """
    ends = {}
    for recipe in (fedavg(), scaffold(on=fedavg())):
        q = two_clients(recipe, examples=examples)
        state = q.state()
        for _ in range(25):
            state = q.round(state, lr=0.1, steps=20)
        optima = best(q), best(replace(q, examples=()))
        ends[recipe.name] = [float((state.tensors["y"] - o).norm()) for o in optima]
    assert ends["scaffold"][1] < 1e-4
    assert min(ends["fedavg"]) > 0.2


def test_on_plain_sgd_the_mean_gradient_is_the_paper_s_option_two():
    """c_k' = c_k - c + (x - y_k) / (tau eta)."""
    q, lr, steps = two_clients(scaffold(on=fedavg())), 0.1, 6
    state = q.round(q.round(q.state(), lr, 3), lr, 3)
    for k in (0, 1):
        update, kept = q.train(state, k, lr, steps)
        option_two = q.kept[k][OWNER]["y"] - state.tensors[C] - update.delta["y"] / (steps * lr)
        assert torch.allclose(kept[OWNER]["y"], option_two, rtol=1e-5, atol=1e-5)
        assert torch.allclose(update.delta[C], kept[OWNER]["y"] - q.kept[k][OWNER]["y"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("max_norm", [math.inf, 0.8])
def test_the_correction_is_inside_every_step_and_before_clipping(max_norm):
    """Against the recursion in float64; what is averaged is the gradient as it came."""
    q, lr, steps = two_clients(scaffold(on=fedavg())), 0.1, 5
    q.local = replace(SGD, max_grad_norm=max_norm)
    q.kept = {0: {OWNER: {"y": torch.tensor([0.5, -0.25])}}}
    x, c = torch.tensor([2.0, 1.0]), torch.tensor([-1.0, 0.5])
    update, kept = q.train(State(0, {"y": x, C: c}), 0, lr, steps)
    y, seen = x.double(), []
    for _ in range(steps):
        g = q.curvature[0].double() @ (y - q.optimum[0].double())
        seen.append(g)
        g = g - q.kept[0][OWNER]["y"] + c
        y = y - lr * g * min(1.0, max_norm / float(g.norm()))
    assert (x + update.delta["y"] - y).norm() < 1e-5
    assert (kept[OWNER]["y"] - sum(seen) / steps).norm() < 1e-5


def test_a_step_that_was_left_out_is_not_in_the_mean():
    q = two_clients(scaffold(on=fedavg()))
    good = {"h": q.curvature[0], "optimum": q.optimum[0]}
    bad = {"h": q.curvature[0], "optimum": torch.tensor([math.nan, 0.0])}
    state = q.state()
    plan = Plan("", 0, 0, steps=3, learning_rate=0.1, tensors=state.tensors)
    found = []
    for batches in ([good, bad, good], [good, good]):
        turn = replace(q_turn(q, plan), plan=replace(plan, steps=len(batches)))
        found.append(q.recipe.local(q.handle, Ready(*batches), turn))
    assert found[0].metrics["steps"] == 2
    assert tensors.digest(found[0].delta) == tensors.digest(found[1].delta)
    assert torch.isfinite(found[0].kept[OWNER]["y"]).all()


def q_turn(q: Quadratics, plan: Plan) -> Turn:
    """A turn at version 0 with nothing kept."""
    turn = Turn(plan, plan.tensors, "", SGD, 0, 0)
    q.recipe.start(q.handle, turn)
    return turn


def test_x_moves_by_examples_and_c_by_clients_by_hand():
    """x: (3 * 2 + 1 * -2) / 4 = 1. c: (8 + 4) / 6 = 2 with six clients on the roster, (8 + 4) / 2 = 6 with only two."""
    for roster, moved in ((6, 2.0), (0, 6.0)):
        updates = [
            Update({"w": torch.tensor([2.0]), CONTROL + "w": torch.tensor([8.0])}, 3, roster=roster),
            Update({"w": torch.tensor([-2.0]), CONTROL + "w": torch.tensor([4.0])}, 1, roster=roster),
        ]
        recipe = scaffold(server_lr=0.5)
        state = State(4, {"w": torch.tensor([10.0]), CONTROL + "w": torch.tensor([1.0])})
        after = recipe.next_state(state, recipe.aggregate(iter(updates))).tensors
        assert after["w"].item() == 10.5  # the server's rate is x's alone
        assert after[CONTROL + "w"].item() == 1.0 + moved


def test_a_server_rate_of_the_wrapped_method_is_x_s_alone():
    """On FedAvg with a rate of 1/2 it is SCAFFOLD with that rate on FedAvg, bit for bit; c moves by its whole mean."""
    ends = []
    for recipe in (scaffold(on=fedavg(server_lr=0.5)), scaffold(on=fedavg(), server_lr=0.5)):
        q = two_clients(recipe, examples=(7, 1))
        state = q.state()
        for _ in range(3):
            state = q.round(state, lr=0.05, steps=4)
            assert torch.allclose(mean_of_controls(q), state.tensors[C].double(), rtol=1e-6, atol=1e-6)
        ends.append(state)
    assert ends[0].digest == ends[1].digest
    assert ends[0].tensors["y"].norm() > 0.01


@SPACES
def test_both_ways_cost_twice_the_bytes(on):
    t, recipe = toy(on), scaffold(on=on)
    plan, state = Plan("", 0, 0, rank=2), recipe.first_state(toy(on).layout, 2, 7)
    single = on.spec(t.layout, plan)
    assert recipe.spec(t.layout, plan) == {**single, **{CONTROL + n: s for n, s in single.items()}}
    down = recipe.downlink(state, None, plan)
    assert sum(x.numel() for x in down.values()) == 2 * sum(x.numel() for x in t.state().tensors.values())
    assert not any(x.any() for x in controls(down).values())  # everybody starts at 0
    assert recipe.downlink(state, 0, plan) == {}


def test_the_wrapped_method_sees_no_control():
    seen = []

    def start(handle, turn):
        seen.append(set(turn.held))
        fedit().start(handle, turn)

    def admit(delta, plan):
        seen.append(set(delta))

    t = toy(scaffold(on=replace(fedit(), start=start, admit=admit)))
    t.recipe.admit(t.update(t.state(), 0).delta, t.plan(t.state(), 0))
    assert seen == [set(toy(fedit()).state().tensors)] * 2


def test_a_pull_of_the_wrapped_method_is_part_of_the_gradient():
    """Option two holds with FedProx inside: what is averaged is the gradient of what the client minimises."""
    q, lr, steps = two_clients(scaffold(on=fedprox(mu=1.0, on=fedavg()))), 0.1, 6
    state = q.round(q.state(), lr, 3)
    update, kept = q.train(state, 0, lr, steps)
    option_two = q.kept[0][OWNER]["y"] - state.tensors[C] - update.delta["y"] / (steps * lr)
    assert torch.allclose(kept[OWNER]["y"], option_two, rtol=1e-5, atol=1e-5)


def test_a_run_file_without_plain_sgd_is_warned_of(caplog):
    with caplog.at_level(logging.WARNING):
        scaffold().check(SimpleNamespace(local=Local(optimizer="adamw"), privacy=Privacy()))
    assert "mean gradients" in caplog.text


def test_what_cannot_be_wrapped_is_refused_with_the_reason():
    alternating = replace(fedit(), local=FirstOrder(trains=lambda plan: (".lora_A",)))
    for on, reason in (
        (fedkseed(K=8), "not plain back-propagation"),
        (flora(), "one space for all"),
        (fedit(padding="zero"), "one space for all"),
        (alternating, "stale"),
        (replace(fedit(), personal=True), "same for all"),
        (replace(fedit(), downlink=lambda state, have, plan: state.tensors), "the whole state"),
    ):
        with pytest.raises(ValueError, match=f"scaffold cannot be on {on.name}: .*{reason}"):
            scaffold(on=on)
    with pytest.raises(ValueError, match="server_lr"):
        scaffold(server_lr=0.0)
    with pytest.raises(ValueError, match=r"begin with 'control\."):
        scaffold(on=fedavg()).first_state(Layout(parameters={"control.gate": (2,)}), 0, 0)
    with pytest.raises(ValueError, match="none"):
        scaffold().aggregate(iter([]))


def test_what_is_declared_is_so():
    recipe = scaffold()
    assert (recipe.name, recipe.keeps, recipe.linear, recipe.ring_summable) == ("scaffold", True, False, False)


@pytest.mark.parametrize("options", [{"on": fedavg()}, {"on": ffa_lora(), "server_lr": 0.5}], ids=["full", "half"])
def test_it_keeps_every_strategy_s_promises(options):
    strategy_contract(scaffold(**options))


def test_it_refuses_plans_by_which_some_modules_do_not_learn() -> None:
    """Their control variates would be stale, and a client's own of them lost."""
    assert fedit().unlike_modules
    assert not scaffold(on=fedit()).unlike_modules
