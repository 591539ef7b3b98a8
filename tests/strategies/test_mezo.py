"""MeZO in a federation: scalars of fresh directions travel, and their sum is the mean of the clients' weights."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fedft import config
from fedft.adapters.lora import LoRA
from fedft.arithmetic import tensors
from fedft.config import Local
from fedft.contract import Layout, State, Turn
from fedft.errors import RejectedUpdate
from fedft.models.handle import ModelHandle
from fedft.randomness import families
from fedft.strategies.mezo import mezo
from fedft.strategies.zo_fedavg import zo_fedavg
from fedft.testing import RUN, SEED, Ready, strategy_contract, toy
from fedft.update import Plan, Update
from fedft.wire import messages

IN_SPAN = [
    {},
    {"space": "lora"},
    {"family": "rademacher"},
    {"family": "gaussian"},
    {"estimate": "one_sided"},
    {"estimate": "forward"},
    {"samples": 3},
    {"sparsity": 0.5},
    {"sparsity": 0.5, "variant": "reference"},
    {"rule": "momentum"},
    {"rule": "momentum", "samples": 2, "family": "gaussian"},
    {"rule": "adam"},
    {"rule": "adam", "space": "lora", "sparsity": 0.3},
    {"rule": "sign"},
    {"rule": "sign", "variant": "reference", "family": "gaussian", "samples": 2},
    {"rule": "conservative"},
    {"rule": "conservative", "samples": 2, "sparsity": 0.5},
]
in_span = pytest.mark.parametrize("options", IN_SPAN, ids=str)


def live(t) -> dict[str, torch.Tensor]:
    """The trained parameters as they stand, in their own scale, float64 copies."""
    return {n: p.detach().double().clone() for n, p in t.handle.parameters().items()}


def replayed(t, state: State) -> dict[str, torch.Tensor]:
    t.turn(t.plan(state, 0), 0)
    return live(t)


def one_round(t, state: State, steps=(4, 4, 4), lr: float = 0.05):
    """(the next state, the p_k-mean of the weights the clients ended with, the updates)."""
    updates, ends = [], []
    for k, n in enumerate(steps):
        updates.append(t.update(state, k, lr=lr, steps=n))
        ends.append(live(t))
    total = sum(u.num_examples for u in updates)
    mean = {n: sum(u.num_examples / total * e[n] for u, e in zip(updates, ends, strict=True)) for n in ends[0]}
    return t.step(state, updates), mean, updates


@in_span
def test_the_sum_over_all_scalars_is_the_mean_of_the_clients_end_weights(options):
    """Over two rounds, with unlike numbers of steps; 1e-5 of what moved since w0."""
    t = toy(mezo(**options))
    state = t.state()
    w0 = replayed(t, state)
    for _ in range(2):
        state, mean, _ = one_round(t, state, (5, 3, 6))
        now = replayed(t, state)
        moved = tensors.norm(tensors.sub(now, w0))
        assert moved > 1e-3
        assert tensors.norm(tensors.sub(now, mean)) <= 1e-5 * moved


@pytest.mark.parametrize("options", [{"rule": r} for r in ("sgd", "momentum", "adam", "sign", "conservative")], ids=str)
def test_what_travels_as_scalars_and_what_travels_whole_is_the_same_change(options):
    """The walks of zo_fedavg are those of mezo, direction by direction."""
    t, dense = toy(mezo(**options)), toy(zo_fedavg(space="full", **options))
    a, _, _ = one_round(t, t.state())
    b, _, _ = one_round(dense, dense.state())
    x, y = replayed(t, a), replayed(dense, b)
    w0 = replayed(t, t.state())
    assert tensors.norm(tensors.sub(x, y)) <= 1e-5 * tensors.norm(tensors.sub(y, w0))


@pytest.mark.parametrize("options", [{}, {"space": "lora"}], ids=str)
def test_no_history_is_w0_bit_for_bit_wherever_the_model_stood(options):
    t = toy(mezo(**options))
    w0 = replayed(t, t.state())
    state, _, _ = one_round(t, t.state())
    assert any(not torch.equal(x, w0[n]) for n, x in replayed(t, state).items())
    again = replayed(t, t.state())
    assert all(torch.equal(again[n], w0[n]) for n in w0)
    if options:
        drawn = LoRA().initial(t.layout, 2, SEED)
        assert all(torch.equal(x, drawn[n]) for n, x in t.handle.read().items())


@pytest.mark.parametrize("options", [{}, {"space": "lora", "rule": "momentum"}], ids=str)
def test_a_late_joiner_has_the_veterans_bits(options):
    """The veteran adds round by round, the newcomer all at once."""
    t = toy(mezo(**options))
    state = t.state()
    for _ in range(4):
        state, _, _ = one_round(t, state)
    veteran, newcomer = replayed(t, state), replayed(toy(mezo(**options)), state)
    assert all(torch.equal(veteran[n], newcomer[n]) for n in veteran)


def test_four_bytes_per_step_travel_and_a_seed():
    t = toy(mezo())
    update = t.update(t.state(), 0, steps=200)
    assert {n: (x.dtype, tuple(x.shape)) for n, x in update.delta.items()} == {
        "scalar": (torch.float32, (200,)),
        "seed": (torch.int32, (2,)),
    }
    assert 808 < len(messages.encode_update(update, "fp32")) < 808 + 208


def test_the_news_are_one_round_of_scalars_per_client():
    t = toy(mezo())
    state, _, _ = one_round(t, t.state())
    state, _, updates = one_round(t, state)
    news = t.plan(state, 0, have=1).tensors
    assert {n: tuple(x.shape) for n, x in news.items()} == {"1.scalar": (3, 4), "1.seed": (3, 2)}
    assert news["1.seed"].tolist() == sorted(
        (u.delta["seed"].tolist() for u in updates), key=lambda s: torch.tensor(s, dtype=torch.int32).view(torch.int64)
    )


def test_directions_are_fresh_for_every_client_and_round():
    t = toy(mezo())
    state, _, first = one_round(t, t.state())
    _, _, second = one_round(t, state)
    seeds = {tuple(u.delta["seed"].tolist()) for u in (*first, *second)}
    assert len(seeds) == 6


def test_scalars_are_weighted_by_examples_by_hand():
    """n = 3 and 1: rows 0.75 (4, 8) and 0.25 (-4, 0); the shorter row is filled up; ascending by seed."""
    a = Update({"scalar": torch.tensor([4.0, 8.0]), "seed": torch.tensor([9, 1], dtype=torch.int32)}, 3)
    b = Update({"scalar": torch.tensor([-4.0]), "seed": torch.tensor([5, 0], dtype=torch.int32)}, 1)
    for order in ([a, b], [b, a]):
        change = mezo().aggregate(iter(order))
        assert change["scalar"].tolist() == [[-1.0, 0.0], [3.0, 6.0]]
        assert change["seed"].tolist() == [[5, 0], [9, 1]]
        grown = mezo().server(State(7, {"6.scalar": torch.ones(1, 1)}), change)
        assert sorted(grown) == ["6.scalar", "7.scalar", "7.seed"]


def test_the_mean_over_nobody_is_refused():
    with pytest.raises(ValueError, match="none"):
        mezo().aggregate(iter([]))


class Line(nn.Module):
    """Two numbers w; the loss is <(1, 2), w>, or not a number."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([5.0, 5.0]))

    def forward(self, factor: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(loss=factor * (torch.tensor([1.0, 2.0]) * self.w).sum())


def by_hand(recipe, factors=(1.0,), steps: int = 3):
    """(upload, w at the end, the directions as [steps, 2]) of one turn at learning rate 0.1."""
    handle = ModelHandle(Line(), Layout(parameters={"w": (2,)}), recipe.space)
    turn = Turn(Plan(RUN, 0, 0, steps=steps, learning_rate=0.1), {}, "", Local(), SEED, 5)
    recipe.start(handle, turn)
    sent = recipe.local(handle, Ready(*({"factor": torch.tensor(f)} for f in factors)), turn).delta
    seed = int(sent["seed"].view(torch.int64))
    z = families.make("hadamard", seed, steps)
    return sent, handle.model.w.detach(), torch.stack([z.direction("w", j, (2,)) for j in range(steps)])


def test_scalars_on_a_linear_loss_by_hand():
    """g_s = z_s[0] + 2 z_s[1] exactly; c_s = 0.1 g_s; w = (5, 5) - sum_s c_s z_s."""
    sent, w, z = by_hand(mezo(epsilon=0.5))
    c = 0.1 * (z @ torch.tensor([1.0, 2.0]))
    assert torch.allclose(sent["scalar"], c, atol=1e-6)
    assert torch.allclose(w, 5 - c @ z, atol=1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_skipped_step_moves_nothing(bad):
    sent, w, z = by_hand(mezo(epsilon=0.5), factors=(1.0, bad, 1.0))
    c = 0.1 * (z @ torch.tensor([1.0, 2.0])) * torch.tensor([1.0, 0.0, 1.0])
    assert torch.allclose(sent["scalar"], c, atol=1e-6)
    assert torch.allclose(w, 5 - c @ z, atol=1e-5)


def test_a_client_that_trained_longer_than_steps_allow_is_refused():
    plan = Plan(RUN, 0, 0, steps=10, learning_rate=0.1)
    recipe, seed = mezo(scalar_clip=2.0), torch.zeros(2, dtype=torch.int32)
    recipe.admit({"scalar": torch.full((10,), -0.2), "seed": seed}, plan)  # 10 steps x clip 2 x 0.1
    for wrong in (torch.full((10,), 0.21), torch.full((10,), math.nan)):
        with pytest.raises(RejectedUpdate) as refusal:
            recipe.admit({"scalar": wrong, "seed": seed}, plan)
        assert refusal.value.code == "scalar_bound"


@pytest.mark.parametrize("rule", ["sign", "adam", "momentum"])
def test_honest_scalars_are_admitted_at_every_precision(rule):
    t = toy(mezo(rule=rule))
    update, plan = t.update(t.state(), 0, steps=50), t.plan(t.state(), 0, steps=50)
    for name in ("fp32", "fp16", "bf16", "int8"):
        got = messages.decode_update(messages.encode_update(update, name), t.recipe.spec(t.layout, plan), name)
        t.recipe.admit(got.delta, plan)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"rule": "adam"}, {"samples": 3, "sparsity": 0.5}, {"space": "lora"}], ids=str)
def test_the_contract_holds_for_options_that_go_together(options):
    strategy_contract(mezo(**options))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rule": "adam", "samples": 2}, "samples = 1"),
        ({"rule": "sign", "family": "gaussian"}, "signs"),
        ({"rule": "adam", "family": "gaussian"}, "signs"),
        ({"space": "head"}, "space"),
        ({"family": "uniform"}, "family"),
        ({"estimate": "forward", "objective": "f1"}, "f1"),
        ({"epsilon": 0.0}, "epsilon"),
    ],
    ids=str,
)
def test_options_that_make_no_sense_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        mezo(**options)


def test_more_directions_than_a_family_has_are_refused_when_the_run_file_is_read():
    run = config.RunConfig(local=Local(steps=1000))
    mezo(samples=4).check(run)
    mezo(samples=5, family="rademacher").check(run)
    with pytest.raises(ValueError, match="5000"):
        mezo(samples=5).check(run)


def test_scalars_and_seeds_survive_a_restart_of_the_server():
    """The state is float32 and int32: what was saved replays to the same bits."""
    t = toy(mezo())
    state, _, _ = one_round(t, t.state())
    plan = replace(t.plan(state, 0), tensors={n: x.clone() for n, x in state.tensors.items()})
    t.turn(plan, 0)
    assert all(torch.equal(x, y) for x, y in zip(live(t).values(), replayed(t, state).values(), strict=True))
