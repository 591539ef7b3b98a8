"""FedOpt: the four server optimisers against their recursions and closed forms, and what of their memory travels."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from quadratic import best, two_clients
from safetensors.torch import load, save

from fedft.aggregation.mean import mean, uniform_mean
from fedft.arithmetic import tensors
from fedft.contract import State
from fedft.strategies.fedavg import fedavg
from fedft.strategies.fedit import fedit
from fedft.strategies.fedkseed import fedkseed
from fedft.strategies.fedopt import OWNER, fedopt
from fedft.strategies.fedprox import fedprox
from fedft.strategies.fedsa_lora import fedsa_lora
from fedft.strategies.ffa_lora import ffa_lora
from fedft.strategies.flora import flora
from fedft.strategies.rolora import rolora
from fedft.testing import strategy_contract, toy
from fedft.update import Plan, Update

SPACES = pytest.mark.parametrize("on", [fedit(), fedavg(), ffa_lora()], ids=lambda r: r.name)
ADAPTIVE = ("adam", "yogi", "adagrad")
every = pytest.mark.parametrize("optimizer", [*ADAPTIVE, "momentum"])
M, V = "m.", "v."  # of a tensor's name, in the server's own drawer
DELTAS = [0.3, -0.1, 0.0, 2.0, -2.0, 1e-4, 0.05]


def walk(recipe, deltas, start: float = 1.0) -> list[State]:
    """The states after rounds in which the scalar w changed by these means."""
    states = [State(0, {"w": torch.tensor([start])})]
    for d in deltas:
        change = recipe.aggregate([Update({"w": torch.tensor([float(d)])}, 2)])
        states.append(recipe.next_state(states[-1], change))
    return states[1:]


def sign(x: float) -> float:
    return math.copysign(1.0, x) if x else 0.0


def by_hand(optimizer, deltas, eta, b1, b2, tau, reference=False, x=1.0) -> list[float]:
    """The recursions in Python floats."""
    m, v, found = 0.0, tau**2, []
    for t, d in enumerate(deltas):
        m = b1 * m + d if optimizer == "momentum" and not reference else b1 * m + (1 - b1) * d
        if reference and t == 0:
            m = d
        s = (m if reference else d) ** 2
        if optimizer == "adagrad":
            v = v + s
        elif optimizer == "adam":
            v = b2 * v + (1 - b2) * s
        elif optimizer == "yogi":
            v = v - (1 - b2) * s * sign(v - s)
        x = x + eta * (m if optimizer == "momentum" else m / (math.sqrt(v) + tau))
        found.append(x)
    return found


@every
@pytest.mark.parametrize("variant", ["exact", "reference"])
def test_several_rounds_on_a_scalar_are_the_recursion(optimizer, variant):
    recipe = fedopt(optimizer=optimizer, server_lr=0.3, beta1=0.8, beta2=0.95, tau=0.02, variant=variant)
    want = by_hand(optimizer, DELTAS, 0.3, 0.8, 0.95, 0.02, variant == "reference")
    assert [s.tensors["w"].item() for s in walk(recipe, DELTAS)] == pytest.approx(want, rel=1e-5)


def test_a_first_round_by_hand():
    """Delta = 3, tau = 1: adam m = 0.3, v = 0.99 + 0.09 = 1.08; adagrad m = 3, v = 10; yogi v = 1 + 0.09 = 1.09."""
    moved = {o: walk(fedopt(optimizer=o, server_lr=1.0, tau=1.0), [3.0], start=0.0)[0] for o in ADAPTIVE}
    assert moved["adam"].tensors["w"].item() == pytest.approx(0.3 / (1.08**0.5 + 1), rel=1e-6)
    assert moved["adagrad"].tensors["w"].item() == pytest.approx(3 / (10**0.5 + 1), rel=1e-6)
    assert moved["yogi"].tensors["w"].item() == pytest.approx(0.3 / (1.09**0.5 + 1), rel=1e-6)
    own = moved["adam"].own[OWNER]
    assert (own[M + "w"].item(), own[V + "w"].item()) == pytest.approx((0.3, 1.08), rel=1e-6)


@every
def test_the_same_delta_every_round_has_a_closed_form(optimizer):
    """m_t = (1 - b1^t) Delta; v_t = b2^t tau^2 + (1 - b2^t) Delta^2 (adam), tau^2 + t Delta^2 (adagrad)."""
    d, tau, b1, b2 = 0.4, 0.1, 0.9, 0.99
    for t, state in enumerate(walk(fedopt(optimizer=optimizer, beta1=b1, tau=tau), [d] * 12), 1):
        m = (1 - b1**t) * d / ((1 - b1) if optimizer == "momentum" else 1)
        assert state.own[OWNER][M + "w"].item() == pytest.approx(m, rel=1e-5)
        v = {
            "adam": b2**t * tau**2 + (1 - b2**t) * d**2,
            "adagrad": tau**2 + t * d**2,
            "yogi": tau**2 + t * (1 - b2) * d**2,  # while v < Delta^2
        }.get(optimizer)
        assert (V + "w" in state.own[OWNER]) == (v is not None)
        assert v is None or state.own[OWNER][V + "w"].item() == pytest.approx(v, rel=1e-5)


@every
def test_left_out_options_are_the_documented_ones(optimizer):
    b1 = 0.0 if optimizer == "adagrad" else 0.9
    eta = 0.1 if optimizer == "momentum" else 0.01
    want = by_hand(optimizer, DELTAS, eta, b1, 0.99, 1e-3)
    states = walk(fedopt(optimizer=optimizer), DELTAS)
    assert [s.tensors["w"].item() for s in states] == pytest.approx(want, rel=1e-5)
    published = walk(fedopt(optimizer=optimizer, variant="reference"), DELTAS)
    eta = 1.0 if optimizer == "momentum" else 0.01
    want = by_hand(optimizer, DELTAS, eta, b1, 0.99, 1e-3, reference=True)
    assert [s.tensors["w"].item() for s in published] == pytest.approx(want, rel=1e-5, abs=1e-6)


def random_walk(recipe, rounds: int = 30) -> list[State]:
    rng, states = torch.Generator().manual_seed(1), [State(0, {"w": torch.zeros(50)})]
    for t in range(rounds):
        change = {"w": torch.randn(50, generator=rng) * 10 ** float(t % 5 - 3)}
        after = recipe.next_state(states[-1], change)
        states.append(State(t + 1, {**after.tensors, "delta": change["w"]}, after.own))
    return states[1:]


def test_adagrad_s_v_never_falls():
    states = random_walk(fedopt(optimizer="adagrad"))
    for before, after in itertools.pairwise(states):
        assert (after.own[OWNER][V + "w"] >= before.own[OWNER][V + "w"]).all()
    assert (states[0].own[OWNER][V + "w"] >= 1e-6 * (1 - 1e-6)).all()


def test_yogi_s_v_changes_by_at_most_its_share_of_the_square_and_stays_positive():
    states = random_walk(fedopt(optimizer="yogi", beta2=0.9))
    for before, after in itertools.pairwise(states):
        v, new, square = before.own[OWNER][V + "w"], after.own[OWNER][V + "w"], after.tensors["delta"] ** 2
        assert ((new - v).abs() <= 0.1 * square * (1 + 1e-5) + 1e-6 * v).all()
        assert (new > 0).all()


@every
def test_without_a_change_nothing_moves_and_later_only_by_momentum(optimizer):
    still = walk(fedopt(optimizer=optimizer), [0.0, 0.0])
    assert all(s.tensors["w"].item() == 1.0 and s.own[OWNER][M + "w"].item() == 0.0 for s in still)
    pushed, after = walk(fedopt(optimizer=optimizer, beta1=0.5, server_lr=0.1), [0.7, 0.0])
    assert after.own[OWNER][M + "w"].item() == pytest.approx(0.5 * pushed.own[OWNER][M + "w"].item())
    assert after.tensors["w"].item() > pushed.tensors["w"].item()
    stopped, same = walk(fedopt(optimizer=optimizer, beta1=0.0, server_lr=0.1), [0.7, 0.0])
    assert same.tensors["w"].item() == stopped.tensors["w"].item()


@every
def test_what_was_never_sent_is_neither_moved_nor_decayed(optimizer):
    recipe, frozen = fedopt(optimizer=optimizer), torch.tensor([3.0, -0.0])
    state = State(0, {"w": torch.ones(1), "frozen": frozen})
    for _ in range(4):
        state = recipe.next_state(state, {"w": torch.ones(1)})
        assert state.tensors["frozen"] is frozen
    assert M + "frozen" not in state.own[OWNER]
    assert V + "frozen" not in state.own[OWNER]


@every
def test_what_rests_for_a_round_keeps_its_value_and_its_moments(optimizer):
    """RoLoRA: A and B take turns; the one whose turn it is not does not coast on."""
    t = toy(fedopt(optimizer=optimizer, on=rolora()))
    state = t.state()
    for _ in range(4):
        updates = [t.update(state, k) for k in range(3)]
        after, learned = t.step(state, updates), set(updates[0].delta)
        for n in t.recipe.first_state(t.layout, 2, 7).tensors.keys() - learned:
            assert after.tensors[n] is state.tensors[n]
            for name in (M + n, V + n):
                assert after.drawer(OWNER).get(name) is state.drawer(OWNER).get(name)
        assert any(not torch.equal(after.tensors[n], state.tensors[n]) for n in learned)
        state = after


@every
def test_a_saved_and_restored_state_goes_on_bit_for_bit(optimizer):
    recipe = fedopt(optimizer=optimizer)
    for cut in (1, 3):
        half = walk(recipe, DELTAS[:cut])[-1]
        own = {owner: load(save(dict(drawer))) for owner, drawer in half.own.items()}
        state = State(half.version, load(save(dict(half.tensors))), own)
        for d in DELTAS[cut:]:
            state = recipe.next_state(state, {"w": torch.tensor([d])})
        assert state.digest == walk(recipe, DELTAS)[-1].digest


@every
def test_steps_scale_with_the_server_s_rate(optimizer):
    one, three = (walk(fedopt(optimizer=optimizer, server_lr=eta), DELTAS, start=0.0) for eta in (0.1, 0.3))
    for a, b in zip(one, three, strict=True):
        assert b.tensors["w"].item() == pytest.approx(3 * a.tensors["w"].item(), rel=1e-5)


@pytest.mark.parametrize("optimizer", ["adam", "yogi", "adagrad"])
def test_with_a_large_tau_it_is_the_mean_change_scaled(optimizer):
    """v stays near tau^2, so x += eta m / (2 tau): no adaptivity is left."""
    recipe = fedopt(optimizer=optimizer, beta1=0.0, beta2=1 - 1e-9, tau=1e4, server_lr=2e4)
    moved = [s.tensors["w"].item() for s in walk(recipe, DELTAS)]
    want = [1.0 + sum(DELTAS[: k + 1]) for k in range(len(DELTAS))]
    assert moved == pytest.approx(want, rel=1e-4)


@SPACES
def test_momentum_of_none_at_rate_one_is_the_wrapped_method_bit_for_bit(on):
    ours, theirs = toy(fedopt(optimizer="momentum", beta1=0.0, on=on)), toy(on)
    a, b = ours.state(), theirs.state()
    for _ in range(3):
        a = ours.step(a, [ours.update(a, k) for k in range(3)])
        b = theirs.step(b, [theirs.update(b, k) for k in range(3)])
    assert tensors.digest({n: a.tensors[n] for n in b.tensors}) == tensors.digest(b.tensors)


@SPACES
@every
def test_moments_stay_on_the_server(on, optimizer):
    t = toy(fedopt(optimizer=optimizer, on=on))
    x = set(t.state().tensors)
    state = t.step(t.state(), [t.update(t.state(), k) for k in range(3)])
    own = {M + n for n in x} | (set() if optimizer == "momentum" else {V + n for n in x})
    assert set(state.tensors) == x
    assert {owner: set(drawer) for owner, drawer in state.own.items()} == {OWNER: own}
    assert set(t.plan(state, 0).tensors) == set(t.turn(t.plan(state, 0), 0).held) == x
    assert t.plan(state, 0, have=1).tensors == {}
    plan = Plan("", 1, 1, rank=2)
    assert t.recipe.spec(t.layout, plan) == on.spec(t.layout, plan)


def test_the_published_code_averages_uniformly_where_it_is_adaptive():
    updates = [Update({"w": torch.tensor([d])}, n) for d, n in ((1.0, 9), (-1.0, 1))]
    for optimizer in ADAPTIVE:
        reference = fedopt(optimizer=optimizer, variant="reference")
        assert (reference.aggregate, reference.linear, reference.ring_summable) == (uniform_mean, False, False)
        assert reference.aggregate(updates)["w"].item() == 0.0
        assert fedopt(optimizer=optimizer).aggregate(updates)["w"].item() == pytest.approx(0.8)
    assert fedopt(optimizer="momentum", variant="reference").aggregate is mean


def test_the_two_variants_differ_where_the_sheet_says():
    """m = Delta at first (ten times larger), and v of m, not of Delta, after it."""
    exact, published = (walk(fedopt(variant=v, tau=1.0), [1.0, 1.0]) for v in ("exact", "reference"))
    assert published[0].own[OWNER][M + "w"].item() == pytest.approx(10 * exact[0].own[OWNER][M + "w"].item())
    late = [walk(fedopt(variant=v, tau=1.0), [0.0, 1.0])[-1].own[OWNER][V + "w"].item() for v in ("exact", "reference")]
    assert late == pytest.approx([0.99**2 + 0.01, 0.99**2 + 0.01 * 0.01], rel=1e-5)


@pytest.mark.parametrize("optimizer", ["adam", "yogi", "momentum"])
def test_on_quadratics_it_reaches_the_optimum_with_one_local_step(optimizer):
    q = two_clients(fedopt(optimizer=optimizer, server_lr=0.2, on=fedavg(), tau=0.1))
    state = q.state()
    for _ in range(200):
        state = q.round(state, lr=0.1, steps=1)
    assert (state.tensors["y"] - best(q)).norm() < 0.02


def test_what_cannot_be_wrapped_is_refused_with_the_reason():
    for on in (flora(), fedkseed(K=8), fedit(padding="zero"), fedavg(server_lr=0.5)):
        with pytest.raises(ValueError, match=f"fedopt cannot be on {on.name}: .*no identity from round to round"):
            fedopt(on=on)
    assert fedopt(on=fedavg(weights="uniform")).aggregate is uniform_mean
    undeclared = replace(fedit(), aggregate=lambda updates: mean(updates))
    with pytest.raises(ValueError, match="fedopt cannot be on fedit"):
        fedopt(on=undeclared)
    own = replace(undeclared, averages_changes=True)
    assert fedopt(on=own).aggregate is own.aggregate
    with pytest.raises(ValueError, match="an average of its own"):
        fedopt(on=own, variant="reference")


def test_on_a_method_of_personal_models_it_moves_what_is_shared():
    """FedSA-LoRA shares A: m and v are of A, what clients keep is as it was."""
    t = toy(fedopt(on=fedsa_lora()))
    state = t.step(t.state(), [t.update(t.state(), k) for k in range(3)])
    assert t.recipe.personal
    assert state.tensors.keys() == {"first.lora_A", "second.lora_A"}
    assert state.own[OWNER].keys() == {p + n for p in (M, V) for n in state.tensors}


def test_moments_are_kept_apart_from_tensors_of_any_name():
    """A model's tensor may be called as the moment of another one is."""
    recipe, deltas = fedopt(), {"w": torch.tensor([0.3]), M + "w": torch.tensor([-0.1])}
    state = recipe.next_state(State(0, {n: torch.ones(1) for n in deltas}), deltas)
    state = recipe.next_state(state, deltas)
    for n, d in deltas.items():
        alone = walk(recipe, [d.item()] * 2)[-1]
        assert torch.equal(state.tensors[n], alone.tensors["w"])
        assert torch.equal(state.own[OWNER][M + n], alone.own[OWNER][M + "w"])


@pytest.mark.parametrize(
    ("option", "value"),
    [("server_lr", 0.0), ("tau", 0.0), ("beta1", 1.0), ("beta2", -0.1), ("beta1", math.nan), ("optimizer", "sgd")],
)
def test_nonsense_is_refused(option, value):
    with pytest.raises(ValueError, match=option):
        fedopt(**{option: value})


@pytest.mark.parametrize("optimizer", ["yogi", "adagrad", "momentum"])
def test_so_do_the_other_optimisers(optimizer):
    strategy_contract(fedopt(optimizer=optimizer))


@pytest.mark.parametrize("options", [{}, {"optimizer": "momentum", "server_lr": 0.1}], ids=["adam", "momentum"])
def test_so_does_the_published_variant(options):
    """Its momentum has no rate of its own: a sum of ten mean steps overshoots on the toy, a tenth of it does not."""
    strategy_contract(fedopt(variant="reference", **options))


@pytest.mark.parametrize("on", [fedavg(), ffa_lora(), fedprox(), rolora()], ids=lambda r: r.name)
def test_so_does_fedopt_on_what_adds_to_fedit(on):
    strategy_contract(fedopt(on=on))


def test_a_uniform_mean_is_by_name_over_those_who_sent_it() -> None:
    """As `mean` is: clients of a planner have unlike modules."""
    updates = [Update({"x": torch.full((2,), 4.0)}, 1), Update({"x": torch.zeros(2), "y": torch.ones(1)}, 9)]
    found = uniform_mean(updates)
    assert (found["x"].tolist(), found["y"].tolist()) == ([2.0, 2.0], [1.0])
