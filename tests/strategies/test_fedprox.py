"""FedProx: the pull towards where a round starts, in closed form on quadratics and against plain torch."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from quadratic import SGD, Quadratics, two_clients
from torch.nn.functional import linear

from fedft.arithmetic import tensors
from fedft.config import Local
from fedft.errors import ConfigError
from fedft.strategies.fedavg import fedavg
from fedft.strategies.fedit import fedit
from fedft.strategies.fedkseed import fedkseed
from fedft.strategies.fedprox import fedprox
from fedft.strategies.ffa_lora import ffa_lora
from fedft.strategies.flora import flora
from fedft.testing import Ready, ToyModel, strategy_contract, toy
from fedft.update import Plan

H = torch.tensor([[2.0, 0.5], [0.5, 1.0]])
OPTIMUM, X = torch.tensor([1.0, -1.0]), torch.tensor([4.0, 2.0])
BATCH = {"x": torch.linspace(-1, 1, 40).reshape(5, 8), "labels": torch.linspace(1, -1, 20).reshape(5, 4)}


def end_point(mu: float, lr: float, steps: int, local: Local = SGD) -> torch.Tensor:
    """y after one client's turn from X."""
    q = Quadratics(fedprox(mu=mu, on=fedavg()), [H], [OPTIMUM], local=local)
    return X + q.train(q.state(X), 0, lr, steps)[0].delta["y"]


def minimiser(mu: float) -> torch.Tensor:
    """(H + mu I)^-1 (H y_opt + mu x)."""
    h = H.double()
    return torch.linalg.solve(h + mu * torch.eye(2), h @ OPTIMUM.double() + mu * X.double())


@pytest.mark.parametrize("mu", [0.01, 0.5, 2.0, 10.0])
def test_a_quadratic_ends_where_the_closed_form_says(mu):
    assert (end_point(mu, lr=1 / (mu + 2.5), steps=1500) - minimiser(mu)).norm() < 1e-5


def test_a_larger_mu_ends_nearer_to_x_and_an_infinite_one_at_x():
    moved = [float((end_point(mu, lr=1 / (mu + 2.5), steps=300) - X).norm()) for mu in (0.1, 1.0, 10.0, 1e3, 1e5)]
    assert moved == sorted(moved, reverse=True)
    assert moved[-1] < 1e-4 < 1 < moved[0]


@pytest.mark.parametrize("on", [fedit(), fedavg(), ffa_lora(), flora()], ids=lambda r: r.name)
def test_with_mu_zero_it_is_the_wrapped_method_bit_for_bit(on):
    ours, theirs = toy(fedprox(mu=0, on=on)), toy(on)
    for k in range(3):
        a, b = ours.update(ours.state(), k), theirs.update(theirs.state(), k)
        assert tensors.digest(a.delta) == tensors.digest(b.delta)
    assert replace(ours.recipe, name=on.name) == on


def by_hand(mu: float, lr: float, steps: int, max_norm: float) -> torch.Tensor:
    y, x = X.double(), X.double()
    for _ in range(steps):
        grad = H.double() @ (y - OPTIMUM.double()) + mu * (y - x)
        y = y - lr * grad * min(1.0, max_norm / float(grad.norm()))
    return y


def test_the_pull_is_to_what_was_received_all_round_long():
    """A moving anchor would be pulled to the last point, where the pull is zero."""
    for steps in (2, 5):
        want = by_hand(3.0, 0.1, steps, float("inf"))
        assert (end_point(3.0, lr=0.1, steps=steps) - want).norm() < 1e-5
        assert (by_hand(0.0, 0.1, steps, float("inf")) - want).norm() > 0.1


def test_the_pull_comes_before_clipping():
    clipped = replace(SGD, max_grad_norm=1.5)
    assert (end_point(3.0, lr=0.2, steps=6, local=clipped) - by_hand(3.0, 0.2, 6, 1.5)).norm() < 1e-5


def test_under_adamw_it_is_a_gradient_and_no_weight_decay():
    """Against torch on the explicit loss L + mu/2 |y - x|^2."""
    y = torch.nn.Parameter(X.clone())
    optimizer = torch.optim.AdamW([y], lr=0.1, weight_decay=0.02)
    for _ in range(9):
        optimizer.zero_grad()
        ((y - OPTIMUM) @ H @ (y - OPTIMUM) / 2 + 0.7 / 2 * (y - X).square().sum()).backward()
        optimizer.step()
    got = end_point(0.7, lr=0.1, steps=9, local=Local(optimizer="adamw", weight_decay=0.02, max_grad_norm=None))
    assert (got - y.detach()).norm() < 1e-5


def trained_pairs(recipe, lr: float, steps: int) -> dict[str, torch.Tensor]:
    """Unit-scale factors after one turn of the toy from a state whose pairs are not zero."""
    t = toy(recipe)
    state = t.step(t.state(), [t.update(t.state(), 0, lr=0.1)])
    turn = replace(t.turn(t.plan(state, 0, lr=lr, steps=steps), 0), local=SGD)
    return state.tensors, tensors.add(turn.held, recipe.local(t.handle, Ready(BATCH), turn).delta)


def pairs_by_hand(start: dict, mu: float, prox: str, lr: float, steps: int) -> dict[str, torch.Tensor]:
    """Autograd in float64 on the explicit loss: dense weights w0 + 2 B A, penalty on factors or on dense changes."""
    base = {n: p.detach().double() for n, p in ToyModel().named_parameters()}
    x = {n: (v / 2 if n.endswith("B") else v).double() for n, v in start.items()}  # as the adapter holds them
    y = {n: v.clone() for n, v in x.items()}
    data = {n: v.double() for n, v in BATCH.items()}
    for _ in range(steps):
        leaf = {n: v.clone().requires_grad_() for n, v in y.items()}
        d = {m: 2 * leaf[m + ".lora_B"] @ leaf[m + ".lora_A"] for m in ("first", "second")}
        d_x = {m: 2 * x[m + ".lora_B"] @ x[m + ".lora_A"] for m in d}
        hidden = torch.tanh(linear(data["x"], base["first.weight"] + d["first"], base["first.bias"]))
        loss = ((linear(hidden, base["second.weight"] + d["second"]) - data["labels"]) ** 2).mean()
        apart = [(leaf[n] - x[n]) for n in x] if prox == "factors" else [d[m] - d_x[m] for m in d]
        (loss + mu / 2 * sum(a.square().sum() for a in apart)).backward()
        y = {n: (v - lr * v.grad).detach() for n, v in leaf.items()}
    return {n: 2 * v if n.endswith("B") else v for n, v in y.items()}


@pytest.mark.parametrize("prox", ["factors", "product"])
def test_on_pairs_it_is_the_gradient_of_the_penalty_written_out(prox):
    start, got = trained_pairs(fedprox(mu=2.0, prox=prox), lr=0.1, steps=8)
    want = pairs_by_hand(start, 2.0, prox, lr=0.1, steps=8)
    free = pairs_by_hand(start, 0.0, prox, lr=0.1, steps=8)
    assert all((got[n] - want[n]).norm() <= 1e-5 * want[n].norm() for n in want)
    assert any((free[n] - want[n]).norm() > 1e-3 * want[n].norm() for n in want)


def test_the_two_penalties_differ():
    one, two = (trained_pairs(fedprox(mu=2.0, prox=p), lr=0.1, steps=8)[1] for p in ("factors", "product"))
    assert tensors.norm(tensors.sub(one, two)) > 1e-3 * tensors.norm(one)


def test_on_flora_the_anchor_is_the_client_s_own_fresh_draw():
    """mu lr = 1 at a large mu: what is sent is the fresh A and B = 0, but for a step without a pull."""
    t, lr = toy(fedprox(mu=1e4, on=flora())), 1e-4
    turn = replace(t.turn(t.plan(t.state(), 1, lr=lr, steps=5), 1), local=SGD)
    drawn = t.handle.read()
    sent = t.recipe.local(t.handle, Ready(BATCH), turn).delta
    assert all((sent[n] - drawn[n]).abs().max() < 1e-3 for n in drawn)
    assert any(drawn[n].norm() > 0.1 for n in drawn)


def test_pulls_of_a_method_that_pulls_already_add_up():
    twice = fedprox(mu=0.5, on=fedprox(mu=1.5, on=fedavg()))
    a, b = (Quadratics(r, [H], [OPTIMUM]) for r in (twice, fedprox(mu=2.0, on=fedavg())))
    one, two = (q.train(q.state(X), 0, 0.1, 6)[0].delta["y"] for q in (a, b))
    assert (one - two).norm() < 1e-6


def test_partial_work_is_averaged_as_it_is():
    """A client that managed one step of ten counts by its examples, with what it did."""
    q = two_clients(fedprox(mu=1.0, on=fedavg()), examples=(3, 1))
    slow, fast = q.train(q.state(), 0, 0.1, 1)[0], q.train(q.state(), 1, 0.1, 10)[0]
    change = q.recipe.aggregate([slow, fast])["y"]
    assert torch.allclose(change, 0.75 * slow.delta["y"] + 0.25 * fast.delta["y"])
    assert (slow.metrics["steps"], fast.metrics["steps"]) == (1, 10)


@pytest.mark.parametrize("on", [fedit(), fedavg(), ffa_lora(), flora()], ids=lambda r: r.name)
def test_bytes_and_server_are_the_wrapped_method_s(on):
    t, recipe = toy(on), fedprox(on=on)
    plan = Plan("", 0, 0, rank=2)
    assert recipe.spec(t.layout, plan) == on.spec(t.layout, plan)
    assert (recipe.aggregate, recipe.server, recipe.downlink) == (on.aggregate, on.server, on.downlink)
    assert (recipe.name, recipe.linear, recipe.unlike_ranks) == ("fedprox", on.linear, on.unlike_ranks)


def run_file(lr: float, momentum: float = 0.0, optimizer: str = "sgd"):
    return SimpleNamespace(local=Local(learning_rate=lr, momentum=momentum, optimizer=optimizer))


def test_a_pull_that_overshoots_is_refused_with_the_run_file():
    """On L = 0, y - x is multiplied by 1 - mu lr in every step."""
    recipe = fedprox(mu=10.0)
    recipe.check(run_file(0.19))
    recipe.check(run_file(0.5, optimizer="adamw"))
    recipe.check(run_file(0.2, momentum=0.5))
    with pytest.raises(ValueError, match=r"mu x learning_rate is 2"):
        recipe.check(run_file(0.2))


def test_the_wrapped_method_s_own_rules_hold():
    def no(config):
        raise ValueError("not on a Monday")

    for mu in (0.0, 0.1):
        with pytest.raises(ValueError, match="Monday"):
            fedprox(mu=mu, on=replace(fedit(), check=no)).check(run_file(0.1))


def test_what_cannot_be_wrapped_is_refused():
    with pytest.raises(ValueError, match="fedprox cannot be on fedkseed: it adds to gradients"):
        fedprox(on=fedkseed(K=8))
    with pytest.raises(ValueError, match="A and B both learn; those of ffa_lora do not"):
        fedprox(on=ffa_lora(), prox="product")
    with pytest.raises(ValueError, match="those of fedavg do not"):
        fedprox(on=fedavg(), prox="product")
    with pytest.raises(ValueError, match="mu >= 0"):
        fedprox(mu=-1.0)
    with pytest.raises(ValueError, match="prox"):
        fedprox(prox="weights")
    with pytest.raises(ConfigError, match="fedit"):
        fedprox(on="fedid")


@pytest.mark.parametrize("on", [fedavg(), ffa_lora(), flora()], ids=lambda r: r.name)
def test_it_keeps_every_strategy_s_promises(on):
    strategy_contract(fedprox(mu=0.1, on=on))


def test_it_keeps_them_on_products():
    strategy_contract(fedprox(mu=0.1, prox="product"))
