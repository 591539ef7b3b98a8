"""FedKSeed: the model is w0 and K scalars; replaying them is the mean of the clients' weights."""

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
from fedft.randomness import families, philox
from fedft.randomness.independent import Table
from fedft.strategies.fedkseed import fedkseed
from fedft.strategies.parts.seed_pool import SeedPool
from fedft.testing import RUN, SEED, Ready, strategy_contract, toy
from fedft.training import directional_derivatives
from fedft.training.zeroth_rules import Walk
from fedft.update import Plan, Update
from fedft.wire import messages

K = 64


def live(t) -> dict[str, torch.Tensor]:
    """The trained parameters as they stand, in their own scale, float64 copies."""
    return {n: p.detach().double().clone() for n, p in t.handle.parameters().items()}


def replayed(t, state: State, **plan) -> dict[str, torch.Tensor]:
    t.turn(t.plan(state, 0, **plan), 0)
    return live(t)


def one_round(t, state: State, steps=(4, 4, 4), lr: float = 0.05) -> tuple[State, dict[str, torch.Tensor]]:
    """(the next state, the p_k-mean of the weights the clients ended with)."""
    updates, ends = [], []
    for k, n in enumerate(steps):
        updates.append(t.update(state, k, lr=lr, steps=n))
        ends.append(live(t))
    total = sum(u.num_examples for u in updates)
    mean = {n: sum(u.num_examples / total * e[n] for u, e in zip(updates, ends, strict=True)) for n in ends[0]}
    return t.step(state, updates), mean


# -- replay


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({}, (1, 1, 1)),
        ({}, (30, 30, 30)),
        ({"family": "rademacher", "K": 8}, (9, 9, 9)),
        ({"family": "gaussian", "K": 8}, (9, 9, 9)),
        ({"space": "lora"}, (9, 9, 9)),
        ({"pro": True}, (9, 9, 9)),
        ({"sampling": "without_replacement", "K": 8}, (19, 19, 19)),
        ({"weight_decay": 0.3}, (1, 1, 1)),
        ({"weight_decay": 0.3}, (20, 20, 20)),
        ({"weight_decay": 0.3}, (3, 11, 7)),
        ({"weight_decay": 0.3, "space": "lora", "pro": True}, (3, 11, 7)),
        ({"weight_decay": 0.3, "no_decay": ["bias"]}, (3, 11, 7)),
        ({"weight_decay": 0.3, "no_decay": ["bias"], "rule": "momentum", "pro": True}, (3, 11, 7)),
        ({"estimate": "one_sided"}, (9, 9, 9)),
        ({"estimate": "forward"}, (9, 9, 9)),
        ({"samples": 3, "pro": True}, (3, 11, 7)),
        ({"sparsity": 0.5}, (9, 9, 9)),
        ({"rule": "momentum"}, (3, 11, 7)),
        ({"rule": "momentum", "K": 8, "samples": 2, "family": "gaussian"}, (9, 9, 9)),
        ({"rule": "adam", "weight_decay": 0.3}, (3, 11, 7)),
        ({"rule": "adam", "K": 8, "family": "rademacher"}, (9, 9, 9)),
        ({"rule": "sign", "space": "lora", "sparsity": 0.4}, (3, 11, 7)),
        ({"rule": "conservative", "pro": True}, (3, 11, 7)),
    ],
    ids=str,
)
def test_the_replayed_model_is_the_mean_of_the_clients_end_weights(options, steps):
    """Over three rounds, so that clients also start from a model that is not w0; 1e-5 of |w(a) - w0|."""
    t = toy(fedkseed(**{"K": K, **options}))
    state = t.state()
    w0 = replayed(t, state)
    for _ in range(3):
        state, mean = one_round(t, state, steps)
        now = replayed(t, state)
        moved = tensors.norm(tensors.sub(now, w0))
        assert moved > 1e-3
        assert tensors.norm(tensors.sub(now, mean)) <= 1e-5 * moved


def test_the_replayed_model_is_written_out_in_its_formula():
    """w = rho w0 - sum_j a_j z_j, one direction after the other in float64."""
    t = toy(fedkseed(K=K, weight_decay=0.1))
    rng = torch.Generator().manual_seed(1)
    a = torch.randn(K, generator=rng) * (torch.rand(K, generator=rng) < 0.5)
    w0 = replayed(t, t.state())
    now = replayed(t, State(3, {"pool": a, "rho": torch.tensor([0.75])}))
    z = families.make("hadamard", SEED, K)
    for name, w in now.items():
        want = 0.75 * w0[name]
        for j in range(K):
            want = want - float(a[j]) * z.direction(name, j, w.shape).double()
        assert (w - want).norm() <= 1e-5 * (w - w0[name]).norm()


@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.3}, {"space": "lora"}, {"variant": "reference"}], ids=str)
def test_an_empty_pool_is_w0_bit_for_bit_wherever_the_model_stood(options):
    t = toy(fedkseed(K=K, **options))
    w0 = replayed(t, t.state())
    state, _ = one_round(t, t.state())
    assert any(not torch.equal(x, w0[n]) for n, x in replayed(t, state).items())
    again = replayed(t, t.state())
    assert all(torch.equal(again[n], w0[n]) for n in w0)


def test_w0_is_the_base_model_in_the_full_space():
    t = toy(fedkseed(K=K))
    base = {n: p.detach().clone() for n, p in t.handle.model.named_parameters()}
    t.turn(t.plan(t.state(), 0), 0)
    assert all(torch.equal(p, base[n]) for n, p in t.handle.parameters().items())


def test_w0_is_the_seeded_a_and_a_zero_b_in_the_lora_space():
    t = toy(fedkseed(K=K, space="lora"))
    t.turn(t.plan(t.state(), 0), 0)
    drawn = LoRA().initial(t.layout, 2, SEED)
    assert all(torch.equal(x, drawn[n]) for n, x in t.handle.read().items())


@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.3}, {"pro": True}, {"space": "lora"}], ids=str)
def test_a_learning_rate_of_zero_leaves_the_weights_bit_for_bit(options):
    t = toy(fedkseed(K=K, **options))
    w0 = replayed(t, t.state())
    update = t.update(t.state(), 1, lr=0.0, steps=10)
    assert all(torch.equal(x, w0[n]) for n, x in live(t).items())
    assert len(update.delta["index"]) > 0
    assert not update.delta["scalar"].any()


@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.3}, {"space": "lora"}], ids=str)
def test_a_late_joiner_has_the_veterans_bits(options):
    t = toy(fedkseed(K=K, **options))
    state = t.state()
    for _ in range(5):
        state, _ = one_round(t, state)
    veteran, newcomer = replayed(t, state), replayed(toy(fedkseed(K=K, **options)), state)
    assert all(torch.equal(veteran[n], newcomer[n]) for n in veteran)


def test_all_rounds_stay_in_the_space_of_the_k_directions():
    """K = 3 and 78 parameters: the changes of six rounds since w0 have rank 3."""
    t = toy(fedkseed(K=3))
    state = t.state()
    w0, changes = replayed(t, state), []
    for _ in range(6):
        state, _ = one_round(t, state)
        now = replayed(t, state)
        changes.append(torch.cat([(now[n] - w0[n]).flatten() for n in sorted(now)]))
    values = torch.linalg.svdvals(torch.stack(changes))
    assert values[2] > 1e-3 * values[0]
    assert values[3] < 1e-5 * values[0]


# -- what travels


def test_only_drawn_directions_are_sent_and_the_rest_of_the_pool_is_zero():
    t = toy(fedkseed(K=K))
    plan = t.plan(t.state(), 1, steps=10)
    drawn = SeedPool(K, Walk()).draws(t.turn(plan, 1))
    update = t.update(t.state(), 1, steps=10)
    assert update.delta["index"].tolist() == sorted(set(drawn))
    pool = t.recipe.aggregate([update])["pool"]
    undrawn = sorted(set(range(K)) - set(drawn))
    assert not pool[undrawn].any()
    assert torch.equal(pool[sorted(set(drawn))], update.delta["scalar"])


@pytest.mark.parametrize("options", [{}, {"pro": True, "weight_decay": 0.1}], ids=str)
def test_no_tensor_of_the_models_size_travels(options):
    t = toy(fedkseed(K=8, **options))
    state, _ = one_round(t, t.state())
    for sent in (t.update(state, 0, steps=5).delta, t.plan(state, 0).tensors):
        assert all(x.numel() <= 8 for x in sent.values())


def test_the_pool_is_the_weighted_sum_of_what_was_sent_by_hand():
    """n = 3 and 1: a_2 = (3 * 4 + 1 * 8) / 4 = 5, a_0 = 3 * 2 / 4 = 1.5, a_3 = -4 / 4 = -1."""

    def pairs(index, scalar):
        return {"index": torch.tensor(index, dtype=torch.uint16), "scalar": torch.tensor(scalar)}

    updates = [Update(pairs([0, 2], [2.0, 4.0]), 3), Update(pairs([2, 3], [8.0, -4.0]), 1)]
    change = fedkseed(K=4).aggregate(iter(updates))
    assert change["pool"].tolist() == [1.5, 0.0, 5.0, -1.0]
    state = State(7, {"pool": torch.tensor([1.0, 1.0, 1.0, 1.0])})
    assert fedkseed(K=4).server(state, change)["pool"].tolist() == [2.5, 1.0, 6.0, 0.0]


def test_decay_scales_the_old_pool_and_w0_by_the_mean_decay_by_hand():
    """decays 0.5 and 1 with n = 3 and 1: f = 0.625; a = 0.625 * 8 + (3 * 4 + 0) / 4 = 8; rho = 0.625 * 0.5."""

    def sent(decay, scalar):
        index = torch.tensor([0], dtype=torch.uint16)
        return {"index": index, "scalar": torch.tensor([scalar]), "decay": torch.tensor([decay])}

    recipe = fedkseed(K=1, weight_decay=0.1)
    change = recipe.aggregate([Update(sent(0.5, 4.0), 3), Update(sent(1.0, 0.0), 1)])
    after = recipe.server(State(0, {"pool": torch.tensor([8.0]), "rho": torch.tensor([0.5])}), change)
    assert (after["pool"].item(), after["rho"].item()) == (8.0, 0.3125)


def test_a_round_of_4096_directions_and_200_steps_stays_below_18_kilobytes():
    """4 * 4096 down and 200 pairs of 2 + 4 bytes up are 17,584; the two headers and tables take less than 416."""
    recipe = fedkseed()
    layout = Layout(parameters={"w": (1000, 1000)})
    state = State(3, {"pool": torch.randn(4096, generator=torch.Generator().manual_seed(1))})
    plan = Plan(RUN, 3, 3, steps=200, learning_rate=3e-7)
    plan = replace(plan, tensors=recipe.downlink(state, None, plan))
    delta = {"index": torch.arange(5, 4005, 20).to(torch.uint16), "scalar": torch.full((200,), 1e-5)}
    update = Update(delta, 1000, 3, RUN, metrics={"loss": 2.3456789, "steps": 200.0})
    recipe.admit(delta, plan)
    down, up = messages.encode_plan(plan, "fp32"), messages.encode_update(update, "fp32")
    assert messages.decode_update(up, recipe.spec(layout, plan), "fp32").num_examples == 1000
    assert 17_584 < len(down) + len(up) < 18_000


# -- FedKSeed-Pro


def test_the_first_round_of_pro_is_uniform_and_the_history_adds_up():
    t = toy(fedkseed(K=K, pro=True))
    sent = t.plan(t.state(), 0).tensors["q"].view(torch.float16)
    assert torch.equal(sent, torch.full((K,), 1 / K, dtype=torch.float16))
    updates = [t.update(t.state(), k, steps=6) for k in range(3)]
    after = t.step(t.state(), updates).tensors
    assert float(after["count"].sum()) == 18
    want = sum(float(u.delta["magnitude"].double().sum()) for u in updates)
    assert float(after["magnitude"].sum()) == pytest.approx(want, rel=1e-6)


# -- a model small enough for paper


class Vector(nn.Module):
    """One parameter vector w; the loss is <slope, w> + |w|^2 curvature / 2, or NaN where the batch says so."""

    def __init__(self, w: list[float], slope: list[float], curvature: float, dtype=torch.float32) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(w, dtype=dtype))
        self.slope, self.curvature = torch.tensor(slope), curvature

    def forward(self, factor: torch.Tensor) -> SimpleNamespace:
        w = self.w.float()
        return SimpleNamespace(loss=factor * ((self.slope * w).sum() + self.curvature * (w * w).sum() / 2))


def by_hand(recipe, model: nn.Module, steps: int, lr: float, factors=(1.0,), **held) -> tuple[dict, torch.Tensor]:
    """(the upload, the weights at the end) of one turn."""
    handle = ModelHandle(model, Layout(parameters={"w": tuple(model.w.shape)}), recipe.space)
    state = recipe.first_state(handle.layout, 0, SEED)
    plan = Plan(RUN, 0, 0, steps=steps, learning_rate=lr)
    now = {**recipe.downlink(state, None, plan), **held}
    turn = Turn(plan, now, tensors.digest(now), Local(), SEED, 5)
    recipe.start(handle, turn)
    data = Ready(*({"factor": torch.tensor(f)} for f in factors))
    return recipe.local(handle, data, turn)[0], model.w.detach().clone()


ONE = Table({"w": torch.tensor([[3.0, 4.0]])})
UNIT = Table({"w": torch.tensor([[0.6, 0.8]])})


def test_given_directions_on_a_linear_loss_by_hand():
    """slope (1, 2), z = (3, 4): g = 11 in each of 2 steps; c = 2 * 0.1 * 11 = 2.2; w = (5, 5) - 2.2 z."""
    sent, w = by_hand(fedkseed(K=1, epsilon=0.5, table=ONE), Vector([5.0, 5.0], [1.0, 2.0], 0.0), 2, 0.1)
    assert sent["index"].tolist() == [0]
    assert sent["scalar"].tolist() == pytest.approx([2.2], rel=1e-6)
    assert w.tolist() == pytest.approx([-1.6, -3.8], rel=1e-6)


def test_given_directions_on_a_quadratic_by_hand():
    """L = |w|^2 / 2 at (1, 1), z = (0.6, 0.8), lr 0.5: g = 1.4; w = (0.58, 0.44); g = 0.7; c = 0.5 * 2.1 = 1.05."""
    sent, w = by_hand(fedkseed(K=1, epsilon=0.25, table=UNIT), Vector([1.0, 1.0], [0.0, 0.0], 1.0), 2, 0.5)
    assert sent["scalar"].tolist() == pytest.approx([1.05], rel=1e-6)
    assert w.tolist() == pytest.approx([1 - 1.05 * 0.6, 1 - 1.05 * 0.8], rel=1e-6)


def test_given_directions_with_weight_decay_by_hand():
    """Linear, g = 11, lr 0.1, lam 0.5, two steps: w = 0.95 (0.95 w0 - 1.1 z) - 1.1 z, c = 1.1 * 1.95, rho = 0.9025."""
    recipe = fedkseed(K=1, epsilon=0.5, weight_decay=0.5, table=ONE)
    sent, w = by_hand(recipe, Vector([5.0, 5.0], [1.0, 2.0], 0.0), 2, 0.1)
    assert sent["scalar"].tolist() == pytest.approx([1.1 * 1.95], rel=1e-6)
    assert sent["decay"].view(torch.float32).tolist() == pytest.approx([0.9025], rel=1e-6)
    assert w.tolist() == pytest.approx([0.9025 * 5 - 2.145 * 3, 0.9025 * 5 - 2.145 * 4], rel=1e-5)


def test_given_directions_with_a_spared_vector_by_hand():
    """As above with w spared: two steps of 1.1 z without decay; the sums for those that decay are sent beside it."""
    recipe = fedkseed(K=1, epsilon=0.5, weight_decay=0.5, no_decay=["w"], table=ONE)
    sent, w = by_hand(recipe, Vector([5.0, 5.0], [1.0, 2.0], 0.0), 2, 0.1)
    assert sent["scalar"].tolist() == pytest.approx([1.1 * 1.95], rel=1e-6)
    assert sent["spared"].tolist() == pytest.approx([2.2], rel=1e-6)
    assert w.tolist() == pytest.approx([5 - 2.2 * 3, 5 - 2.2 * 4], rel=1e-5)


def test_what_is_spared_adds_up_without_decay_by_hand():
    """decays 0.5 and 1 with n = 3 and 1: a = 0.625 * 8 + (3 * 4 + 0) / 4 = 8, but b = 8 + (3 * 6 + 2) / 4 = 13."""

    def sent(decay, scalar, spared):
        index = torch.tensor([0], dtype=torch.uint16)
        return {
            "index": index,
            "scalar": torch.tensor([scalar]),
            "spared": torch.tensor([spared]),
            "decay": torch.tensor([decay]),
        }

    recipe = fedkseed(K=1, weight_decay=0.1, no_decay=["bias"])
    updates = [Update(sent(0.5, 4.0, 6.0), 3), Update(sent(1.0, 0.0, 2.0), 1)]
    state = State(2, {"pool": torch.tensor([8.0]), "rho": torch.tensor([0.5]), "spared": torch.tensor([8.0])})
    after = recipe.server(state, recipe.aggregate(iter(updates)))
    assert (after["pool"].tolist(), after["spared"].tolist()) == ([8.0], [13.0])


def test_parts_of_names_that_spare_nothing_are_refused():
    with pytest.raises(ValueError, match="no parameter of this model has 'layernorm' in its name"):
        toy(fedkseed(K=4, weight_decay=0.1, no_decay=["layernorm"])).state()


def test_fixed_weights_spare_nothing():
    run = config.RunConfig(model=config.Model(dtype="bfloat16"))
    with pytest.raises(ValueError, match="no_decay needs weights that move"):
        fedkseed(weight_decay=0.1, no_decay=["bias"]).check(run)
    with pytest.raises(ValueError, match="no_decay needs weights that move"):
        by_hand(
            fedkseed(K=1, weight_decay=0.5, no_decay=["w"], table=ONE),
            Vector([5.0, 5.0], [1.0, 2.0], 0.0, torch.bfloat16), 2, 0.1,
        )  # fmt: skip


def test_slopes_are_clipped_in_the_step_and_in_the_statistics():
    """g = 11 clipped to 2: c = 0.1 * 2 * 3 steps, magnitude 2 * 3."""
    recipe = fedkseed(K=1, epsilon=0.5, scalar_clip=2.0, pro=True, table=ONE)
    sent, w = by_hand(recipe, Vector([5.0, 5.0], [1.0, 2.0], 0.0), 3, 0.1)
    assert sent["scalar"].tolist() == pytest.approx([0.6], rel=1e-6)
    assert (sent["magnitude"].tolist(), sent["count"].tolist()) == ([6.0], [3])
    assert w.tolist() == pytest.approx([5 - 0.6 * 3, 5 - 0.6 * 4], rel=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_step_with_a_non_finite_loss_is_absent_everywhere(bad):
    """Of four steps two are skipped: c = 2 * 1.1, counted twice, decayed twice."""
    recipe = fedkseed(K=1, epsilon=0.5, pro=True, weight_decay=0.5, table=ONE)
    sent, w = by_hand(recipe, Vector([5.0, 5.0], [1.0, 2.0], 0.0), 4, 0.1, factors=(1.0, bad))
    clean, w_clean = by_hand(recipe, Vector([5.0, 5.0], [1.0, 2.0], 0.0), 2, 0.1)
    assert sent["count"].tolist() == [2]
    assert {n: x.tolist() for n, x in sent.items()} == {n: x.tolist() for n, x in clean.items()}
    assert torch.equal(w, w_clean)


def test_a_turn_without_a_finite_loss_is_an_error():
    with pytest.raises(FloatingPointError, match="non-finite"):
        by_hand(fedkseed(K=1, table=ONE), Vector([5.0, 5.0], [1.0, 2.0], 0.0), 3, 0.1, factors=(math.nan,))


def test_as_many_orthogonal_directions_as_parameters_reach_the_minimum():
    """d = K = 4, z = the unit vectors: each step is exact coordinate descent, w_j *= 1 - 0.5."""
    recipe = fedkseed(K=4, epsilon=0.25, table=Table({"w": torch.eye(4)}), sampling="without_replacement")
    _, w = by_hand(recipe, Vector([1.0, -2.0, 3.0, 4.0], [0.0] * 4, 1.0), 40, 0.5)
    assert w.tolist() == pytest.approx([x * 2**-10 for x in (1.0, -2.0, 3.0, 4.0)], rel=1e-3)


def test_a_table_needs_the_pools_number_of_directions():
    with pytest.raises(ValueError, match="K"):
        fedkseed(K=2, table=ONE)


def test_a_half_precision_base_stands_still_and_is_seen_moved():
    """1 - 3 * 2^-9 * (3, 4) = 0.98242, 0.97656: bfloat16 has no such numbers and shows 0.98047 and 0.97656."""
    recipe = fedkseed(K=1, epsilon=0.5, table=ONE)
    model = Vector([1.0, 1.0], [1.0, 2.0], 0.0, dtype=torch.bfloat16)
    handle = ModelHandle(model, Layout(parameters={"w": (2,)}), recipe.space)
    pool = torch.tensor([3 * 2.0**-9])
    turn = Turn(Plan(RUN, 0, 0, steps=1, learning_rate=0.0), {"pool": pool}, "", Local(), SEED, 5)
    recipe.start(handle, turn)
    change = -pool * torch.tensor([3.0, 4.0])
    assert torch.equal(handle.read()["w"], change)
    seen = (1 + change).bfloat16().float()
    loss = handle.loss({"factor": torch.tensor(1.0)})
    assert loss.item() == pytest.approx(float(torch.tensor([1.0, 2.0]) @ seen), rel=1e-6)
    assert model.w.dtype == torch.bfloat16
    assert model.w.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_a_turn_in_half_precision_uploads_what_one_in_float32_does(decay):
    """A linear loss and dyadic numbers: no rounding of what is seen."""
    recipe = fedkseed(K=1, epsilon=0.5, table=ONE, weight_decay=decay)
    sent = [
        by_hand(recipe, Vector([4.0, 4.0], [1.0, 2.0], 0.0, dtype=dtype), 2, 2.0**-6)[0]
        for dtype in (torch.float32, torch.bfloat16)
    ]
    assert sent[0].keys() == sent[1].keys()
    assert sent[1]["scalar"].tolist() == pytest.approx(sent[0]["scalar"].tolist(), rel=0.02)
    assert all(torch.equal(sent[0][n], sent[1][n]) for n in sent[0].keys() - {"scalar"})


# -- the zeroth-order family in the pool


RULES = ("sgd", "momentum", "adam", "sign", "conservative")


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_draws_the_same_directions(rule):
    t = toy(fedkseed(K=K, rule=rule, pro=True))
    plain = toy(fedkseed(K=K, pro=True))
    a, b = t.update(t.state(), 1, steps=12), plain.update(plain.state(), 1, steps=12)
    assert torch.equal(a.delta["index"], b.delta["index"])
    assert torch.equal(a.delta["count"], b.delta["count"])


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"rule": r} for r in RULES[1:]] + [{"samples": 2, "sparsity": 0.5}], ids=str)
def test_the_contract_holds_for_every_rule(options):
    strategy_contract(fedkseed(K=K, **options))


def test_momentum_in_one_direction_by_hand():
    """g = 11, mu 0.5, eta 0.1: c = 0.1 * 11 * (1 + 1.5 + 1.75)."""
    recipe = fedkseed(K=1, epsilon=0.5, rule="momentum", momentum=0.5, table=ONE)
    sent, w = by_hand(recipe, Vector([5.0, 5.0], [1.0, 2.0], 0.0), 3, 0.1)
    assert sent["scalar"].tolist() == pytest.approx([4.675], rel=1e-5)
    assert w.tolist() == pytest.approx([5 - 4.675 * 3, 5 - 4.675 * 4], rel=1e-5)


def test_a_sign_moves_by_eta_and_is_admitted_at_its_bound():
    recipe = fedkseed(K=1, epsilon=0.5, rule="sign", table=Table({"w": torch.tensor([[1.0, -1.0]])}))
    sent, w = by_hand(recipe, Vector([5.0, 5.0], [1.0, 2.0], 0.0), 3, 0.125)
    assert sent["scalar"].tolist() == [-0.375]
    assert w.tolist() == [5.375, 4.625]
    plan = Plan(RUN, 0, 0, steps=3, learning_rate=0.125)
    recipe.admit(sent, plan)
    with pytest.raises(RejectedUpdate):
        recipe.admit({**sent, "scalar": 1.02 * sent["scalar"]}, plan)


def test_more_samples_are_more_pairs():
    recipe, plan = fedkseed(K=64, samples=3), Plan(RUN, 0, 0, steps=10, learning_rate=0.1)
    assert recipe.spec(Layout(), plan)["index"].shape == (30,)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rule": "adam", "samples": 2}, "samples = 1"),
        ({"rule": "adam", "family": "gaussian"}, "signs"),
        ({"rule": "sign", "family": "gaussian"}, "signs"),
        ({"K": 1, "rule": "sign", "table": ONE}, "signs"),
        ({"rule": "conservative", "weight_decay": 0.1}, "weight_decay"),
        ({"rule": "momentum", "variant": "reference"}, "raw slopes"),
        ({"estimate": "forward", "objective": "accuracy"}, "accuracy"),
    ],
    ids=str,
)
def test_what_does_not_go_with_a_pool_is_refused(options, said):
    with pytest.raises(ValueError, match=said):
        fedkseed(**options)


@pytest.mark.parametrize("decay", [1.0, 0.9])
def test_the_reference_needs_a_constant_learning_rate(decay):
    """Its pool holds raw slopes of all rounds, replayed at one learning rate."""
    run = config.RunConfig(local=Local(learning_rate_decay=decay))
    fedkseed().check(run)
    if decay == 1:
        fedkseed(variant="reference").check(run)
    else:
        with pytest.raises(ValueError, match="learning_rate_decay"):
            fedkseed(variant="reference").check(run)


# -- variant="reference"


@pytest.mark.parametrize(("decay", "no_decay"), [(0.0, None), (0.4, None), (0.4, ["bias", "second"])])
def test_the_reference_replays_like_its_loop_over_seeds(decay, no_decay):
    """for j with a non-zero sum: w = w - lr (g_j z_j + wd w), literally; without wd w for what is spared."""
    t = toy(fedkseed(K=K, variant="reference", weight_decay=decay, no_decay=no_decay))
    rng = torch.Generator().manual_seed(1)
    pool = torch.randn(K, generator=rng) * (torch.rand(K, generator=rng) < 0.3)
    w = w0 = replayed(t, t.state())
    z = families.make("hadamard", SEED, K)
    for j in range(K):
        if pool[j] != 0:
            lam = {n: 0.0 if any(part in n for part in no_decay or ()) else decay for n in w}
            step = {n: float(pool[j]) * z.direction(n, j, x.shape).double() + lam[n] * x for n, x in w.items()}
            w = {n: x - 0.05 * step[n] for n, x in w.items()}
    now = replayed(t, State(1, {"pool": pool}), lr=0.05)
    assert tensors.norm(tensors.sub(now, w)) <= 1e-5 * tensors.norm(tensors.sub(w, w0))


@pytest.mark.parametrize("decay", [0.0, 0.4])
def test_the_reference_uploads_the_sums_of_the_raw_slopes(decay, monkeypatch):
    seen = torch.zeros(8, dtype=torch.float64)
    honest = directional_derivatives.two_point

    def spy(handle, batch, z, j, epsilon, *more):
        g, loss = honest(handle, batch, z, j, epsilon, *more)
        seen[j] += g
        return g, loss

    monkeypatch.setattr(directional_derivatives, "two_point", spy)
    t = toy(fedkseed(K=8, variant="reference", weight_decay=decay))
    update = t.update(t.state(), 1, lr=0.1, steps=30)
    got = torch.zeros(8, dtype=torch.float64)
    got[update.delta["index"].long()] = update.delta["scalar"].double()
    assert torch.allclose(got, seen, rtol=1e-6)


def test_without_decay_the_two_variants_compute_the_same_model():
    """A constant learning rate may be folded in or applied at replay."""
    models = []
    for variant in ("exact", "reference"):
        t = toy(fedkseed(K=K, variant=variant))
        state = t.state()
        for _ in range(2):
            state, _ = one_round(t, state)
        models.append(replayed(t, state))
    w0 = replayed(toy(fedkseed(K=K)), State(0, {"pool": torch.zeros(K)}))
    assert tensors.norm(tensors.sub(*models)) <= 1e-4 * tensors.norm(tensors.sub(models[0], w0))


# -- options


@pytest.mark.parametrize(
    "options",
    [
        {"K": 0},
        {"K": 4097},
        {"epsilon": 0.0},
        {"epsilon": math.nan},
        {"weight_decay": -0.1},
        {"no_decay": ["bias"]},
        {"no_decay": [""], "weight_decay": 0.1},
        {"no_decay": ["bias"], "weight_decay": 0.1, "space": "lora"},
        {"scalar_clip": 0.0},
        {"family": "uniform"},
        {"space": "head"},
        {"variant": "paper"},
        {"sampling": "shuffled"},
    ],
    ids=str,
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        fedkseed(**options)


def test_directions_do_not_depend_on_the_client():
    """Two clients' seeds differ, their directions do not: pools of both live on the same z."""
    assert philox.derive(SEED, "client", 0, 0) != philox.derive(SEED, "client", 1, 0)
    t = toy(fedkseed(K=K))
    state = State(1, {"pool": torch.arange(K) / K})
    models = []
    for client in range(2):
        t.turn(t.plan(state, client), client)
        models.append(live(t))
    assert all(torch.equal(models[0][n], models[1][n]) for n in models[0])
