"""FedAvg: a gradient step on all data where clients take one step, local training where there is one client."""

import pytest
import torch
from quadratic import SGD, best, two_clients
from torch.nn.functional import linear

from fedft.adapters.full import Full
from fedft.adapters.lora import LoRA
from fedft.arithmetic import tensors
from fedft.contract import Layout, State, Turn
from fedft.models.handle import ModelHandle
from fedft.strategies.fedavg import fedavg
from fedft.strategies.fedit import fedit
from fedft.testing import SEED, Ready, ToyModel, strategy_contract, toy
from fedft.update import Plan, TensorSpec, Update

ROWS = (3, 1, 8)
SHAPES = {n: tuple(p.shape) for n, p in sorted(ToyModel().named_parameters())}


def rows(client: int) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(client)
    return {"x": torch.randn(ROWS[client], 8, generator=rng), "labels": torch.randn(ROWS[client], 4, generator=rng)}


def together(clients) -> dict[str, torch.Tensor]:
    return {n: torch.cat([rows(k)[n] for k in clients]) for n in ("x", "labels")}


def after_a_round(space: str, clients, lr: float, steps: int) -> dict[str, torch.Tensor]:
    """The state after one round of full-batch SGD of these clients from version 0."""
    recipe = fedavg(space=space)
    modules = {"first": (6, 8), "second": (4, 6)} if space == "lora" else {}
    layout = Layout(modules=modules, parameters=SHAPES)
    handle = ModelHandle(ToyModel(), layout, recipe.space)
    state, updates = recipe.first_state(layout, 2, SEED), []
    for k in clients:
        plan = Plan("", 0, 0, rank=2, steps=steps, learning_rate=lr, tensors=state.tensors)
        turn = Turn(plan, state.tensors, "", SGD, SEED, k)
        recipe.start(handle, turn)
        updates.append(Update(recipe.local(handle, Ready(rows(k)), turn).delta, ROWS[k]))
    return dict(recipe.server(state, recipe.aggregate(iter(updates))))


def centralised(space: str, clients, lr: float, steps: int) -> dict[str, torch.Tensor]:
    """The same from plain torch on all rows at once: changes of parameters, or unit-scale factors (scale 2)."""
    base = {n: p.detach().double() for n, p in ToyModel().named_parameters()}
    values = {n: torch.zeros_like(p) for n, p in base.items()}
    if space == "lora":
        values = {n: x.double() for n, x in fedavg(space="lora").first_state(
            Layout(modules={"first": (6, 8), "second": (4, 6)}), 2, SEED).tensors.items()}  # fmt: skip
        values = {n: x / 2 if n.endswith("lora_B") else x for n, x in values.items()}
    data = {n: x.double() for n, x in together(clients).items()}
    for _ in range(steps):
        leaves = {n: x.clone().requires_grad_() for n, x in values.items()}
        if space == "lora":
            w = {
                m: base[m + ".weight"] + 2 * leaves[m + ".lora_B"] @ leaves[m + ".lora_A"] for m in ("first", "second")
            }
            bias = base["first.bias"]
        else:
            w = {m: base[m + ".weight"] + leaves[m + ".weight"] for m in ("first", "second")}
            bias = base["first.bias"] + leaves["first.bias"]
        out = linear(torch.tanh(linear(data["x"], w["first"], bias)), w["second"])
        ((out - data["labels"]) ** 2).mean().backward()
        values = {n: (x - lr * x.grad).detach() for n, x in leaves.items()}
    return {n: 2 * x if n.endswith("lora_B") else x for n, x in values.items()}


def close(x, y, tolerance=1e-5) -> bool:
    return all(bool((x[n] - y[n]).norm() <= tolerance * (1e-3 + y[n].norm())) for n in y)


@pytest.mark.parametrize("space", ["full", "lora"])
def test_one_full_batch_step_of_everybody_is_a_step_on_all_data(space):
    """Unlike numbers of rows: the mean of means, weighted by rows, is the mean over rows."""
    assert close(after_a_round(space, (0, 1, 2), lr=0.3, steps=1), centralised(space, (0, 1, 2), lr=0.3, steps=1))


@pytest.mark.parametrize("space", ["full", "lora"])
def test_with_one_client_it_is_local_training(space):
    assert close(after_a_round(space, (2,), lr=0.1, steps=7), centralised(space, (2,), lr=0.1, steps=7))


def test_many_local_steps_on_unlike_data_settle_beside_the_optimum():
    """The drift that FedProx and SCAFFOLD are about; with one step per round there is none."""
    ends = {}
    for steps in (1, 20):
        q = two_clients(fedavg())
        state = q.state()
        for _ in range(60):
            state = q.round(state, lr=0.1, steps=steps)
        ends[steps] = float((state.tensors["y"] - best(q)).norm())
    assert ends[1] < 1e-3
    assert ends[20] > 0.3


def test_weights_are_examples_of_those_who_answered_by_hand():
    """Deltas 2 and -2 from 3 and 1 examples: 1. With the second absent: 2, whoever else there is."""
    two = Update({"w": torch.full((1,), 2.0)}, 3, roster=7)
    minus = Update({"w": torch.full((1,), -2.0)}, 1, roster=7)
    assert fedavg().aggregate([two, minus])["w"].item() == 1.0
    assert fedavg().aggregate([two])["w"].item() == 2.0


def test_uniform_weights_count_everybody_once():
    updates = [Update({"w": torch.tensor([d])}, n) for d, n in ((2.0, 3), (-2.0, 1), (6.0, 90))]
    assert fedavg(weights="uniform").aggregate(iter(updates))["w"].item() == 2.0
    assert not fedavg(weights="uniform").linear  # weighted sums made elsewhere are by examples


@pytest.mark.parametrize("server_lr", [0.25, 1.0, 3.0])
def test_the_server_adds_its_rate_times_the_mean_change(server_lr):
    recipe, state = fedavg(server_lr=server_lr), State(3, {"w": torch.tensor([10.0, -1.0]), "other": torch.ones(2)})
    change = recipe.aggregate([Update({"w": torch.tensor([4.0, 8.0])}, 1), Update({"w": torch.tensor([0.0, -4.0])}, 1)])
    after = recipe.server(state, change)
    assert after["w"].tolist() == [10 + server_lr * 2, -1 + server_lr * 2]
    assert after["other"] is state.tensors["other"]


def test_on_lora_it_is_fedit():
    updates = [toy(fedit()).update(toy(fedit()).state(), k) for k in range(3)]
    ours, theirs = fedavg(space="lora").aggregate(updates), fedit().aggregate(updates)
    assert tensors.digest(ours) == tensors.digest(theirs)
    assert fedavg(space="lora").space == LoRA()


def test_every_parameter_travels_once_each_way():
    layout = Layout(parameters=SHAPES)
    recipe, plan = fedavg(), Plan("", 0, 0)
    assert recipe.space == Full()
    assert recipe.spec(layout, plan) == {n: TensorSpec(s) for n, s in SHAPES.items()}
    state = recipe.first_state(layout, 0, SEED)
    assert {n: tuple(x.shape) for n, x in recipe.downlink(state, None, plan).items()} == SHAPES
    assert recipe.downlink(state, 0, plan) == {}


def test_nonsense_is_refused():
    for bad in ({"server_lr": 0.0}, {"server_lr": float("nan")}, {"space": "half"}, {"weights": "equal"}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            fedavg(**bad)
    for weights in ("examples", "uniform"):
        with pytest.raises(ValueError, match="none"):
            fedavg(weights=weights).aggregate(iter([]))


@pytest.mark.parametrize("options", [{"space": "lora"}, {"server_lr": 0.5, "weights": "uniform"}], ids="-".join)
def test_it_keeps_every_strategy_s_promises(options):
    strategy_contract(fedavg(**options))
