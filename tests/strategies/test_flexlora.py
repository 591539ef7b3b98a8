"""FlexLoRA: the best approximation of the mean of products at every rank, and what the server may remember."""

import itertools

import pytest
import torch

from fedft.arithmetic import product_svd, tensors
from fedft.arithmetic.lowrank import LowRank
from fedft.contract import Layout, State
from fedft.strategies.fedit import fedit
from fedft.strategies.flexlora import LOST, OWNER, flexlora
from fedft.testing import RUN, strategy_contract, toy
from fedft.update import Plan, Update
from fedft.wire import messages

OUT, IN, LARGEST = 9, 7, 4
A, B = "m.lora_A", "m.lora_B"
LAYOUT = Layout(modules={"m": (OUT, IN)}, head={"head": (3,)})


def client(seed: int, rank: int, examples: int, alpha: float = 8.0) -> Update:
    """Trained factors in unit scale, B carrying alpha / rank, and a head."""
    rng = torch.Generator().manual_seed(seed)
    a, b = torch.randn(rank, IN, generator=rng), torch.randn(OUT, rank, generator=rng) * alpha / max(rank, 1)
    return Update({A: a, B: b, "head": torch.randn(3, generator=rng)}, examples)


def dense(x) -> torch.Tensor:
    return x[B].double() @ x[A].double()


def ideal(updates) -> torch.Tensor:
    """D* in float64, multiplied out."""
    total = sum(u.num_examples for u in updates)
    return sum(u.num_examples / total * dense(u.delta) for u in updates)


def best(d: torch.Tensor, rank: int) -> torch.Tensor:
    u, s, v = torch.linalg.svd(d, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ v[:rank]


def first(recipe=None, rank: int = LARGEST) -> State:
    return (recipe or flexlora()).first_state(LAYOUT, rank, 7)


def after(updates, state: State | None = None, **options) -> State:
    recipe = flexlora(**options)
    state = state or first()
    return recipe.next_state(state, recipe.aggregate(iter(updates)))


def down(state: State, rank: int) -> dict[str, torch.Tensor]:
    return dict(flexlora().downlink(state, None, Plan(RUN, state.version, state.version, rank=rank)))


def close(x, y, tolerance=1e-6) -> bool:
    return bool((x - y).norm() <= tolerance * y.norm())


UNLIKE = [client(1, 1, 30, alpha=1), client(2, 2, 7, alpha=16), client(3, 4, 1, alpha=40)]
ROUNDS = [UNLIKE, [client(4, 4, 3), client(5, 3, 2)], [client(6, 2, 1), client(7, 4, 9)]]

VARIANTS = [  # the default is in test_every_strategy
    {"gauge": "balanced"},
    {"gauge": "a"},
    {"feedback": True, "momentum": 0.9, "server_lr": 0.5},
]


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_it_keeps_the_contract(options):
    strategy_contract(flexlora(**options))


def test_the_aggregate_is_the_mean_of_the_products():
    change = flexlora().aggregate(iter(UNLIKE))
    assert close(dense(change), ideal(UNLIKE))
    want = sum(u.num_examples / 38 * u.delta["head"].double() for u in UNLIKE)
    assert close(change["head"].double(), want)


def test_by_hand_the_largest_singular_value_survives():
    """Two clients, p 1/4 and 3/4, products diag(8, 0) and diag(0, 4): D* = diag(2, 3); rank 1 is diag(0, 3)."""
    one = Update({A: torch.tensor([[2.0, 0.0]]), B: torch.tensor([[4.0], [0.0]])}, 1)
    two = Update({A: torch.tensor([[0.0, 1.0]]), B: torch.tensor([[0.0], [4.0]])}, 3)
    recipe, start = flexlora(), State(0, {A: torch.ones(2, 2), B: torch.zeros(2, 2)})
    new = recipe.next_state(start, recipe.aggregate([one, two])).tensors
    assert torch.allclose(new[A], torch.tensor([[0.0, 1.0], [1.0, 0.0]]), atol=1e-6)
    assert torch.allclose(new[B], torch.tensor([[0.0, 2.0], [3.0, 0.0]]), atol=1e-6)
    narrow = recipe.downlink(State(1, new), None, Plan(RUN, 1, 1, rank=1))
    assert torch.allclose(narrow[B] @ narrow[A], torch.tensor([[0.0, 0.0], [0.0, 3.0]]), atol=1e-6)


@pytest.mark.parametrize("gauge", ["b", "balanced", "a"])
@pytest.mark.parametrize("rank", [1, 2, 3, 4])
def test_each_rank_gets_the_best_approximation(rank, gauge):
    """Eckart-Young: error^2 is the sum of the discarded squared singular values of the dense D*."""
    got, want = dense(down(after(UNLIKE, gauge=gauge), rank)), ideal(UNLIKE)
    values = torch.linalg.svdvals(want)
    assert close(got, best(want, rank), 1e-5)
    assert float((want - got).norm()) == pytest.approx(float(values[rank:].norm()), rel=1e-5)


@pytest.mark.parametrize("ranks", [(1, 2), (3,), (2, 2, 3), (7, 2), (9, 1)])
def test_with_room_for_all_of_it_the_mean_of_products_is_exact(ranks):
    updates = [client(k, r, k + 1) for k, r in enumerate(ranks)]
    state = after(updates, first(rank=7))
    assert close(dense(state.tensors), ideal(updates))


def test_ranks_are_nested():
    state = after(UNLIKE)
    wide = down(state, 4)
    for rank in (1, 2, 3):
        narrow = down(state, rank)
        assert torch.equal(narrow[A], wide[A][:rank])
        assert torch.equal(narrow[B], wide[B][:, :rank])


def test_the_product_does_not_depend_on_signs_and_signs_are_fixed():
    flipped = [Update({**u.delta, A: -u.delta[A], B: -u.delta[B]}, u.num_examples) for u in UNLIKE]
    x, y = after(UNLIKE).tensors, after(flipped).tensors
    assert close(dense(x), dense(y))
    assert torch.allclose(x[A], y[A], atol=1e-5)


def test_another_basis_per_client_changes_nothing():
    turned = []
    for k, u in enumerate(UNLIKE):
        rank = u.delta[A].shape[0]
        q = torch.eye(rank) * 2 + torch.randn(rank, rank, generator=torch.Generator().manual_seed(k)) / 4
        turned.append(Update({**u.delta, A: q @ u.delta[A], B: u.delta[B] @ torch.linalg.inv(q)}, u.num_examples))
    assert close(dense(after(turned).tensors), dense(after(UNLIKE).tensors), 1e-5)


def test_with_equal_a_and_equal_ranks_the_product_is_fedits():
    shared = client(9, LARGEST, 1).delta[A]
    updates = [Update({**client(k, LARGEST, 1).delta, A: shared}, k + 1) for k in range(3)]
    assert close(dense(after(updates).tensors), dense(fedit().aggregate(updates)))


def test_the_order_of_clients_does_not_matter():
    want = dense(after(UNLIKE).tensors)
    for other in itertools.permutations(UNLIKE):
        assert close(dense(after(other).tensors), want)


def test_only_the_ranks_that_are_kept_are_decomposed(monkeypatch):
    """The SVD of a tall module's stacks goes through Gram matrices; all of it only to remember what was lost."""
    layout, ranks = Layout(modules={"m": (64, 48)}), []
    rng = torch.Generator().manual_seed(5)
    a, b = torch.randn(12, 48, generator=rng), torch.randn(64, 12, generator=rng)
    updates = [Update({A: a[4 * k : 4 * k + 4], B: b[:, 4 * k : 4 * k + 4]}, k + 1) for k in range(3)]
    by_qr = product_svd.by_qr
    monkeypatch.setattr(product_svd, "by_qr", lambda b, a, rank: ranks.append(rank) or by_qr(b, a, rank))
    kept = []
    for options in ({}, {"momentum": 0.5}, {"feedback": True}):
        recipe = flexlora(**options)
        state = recipe.first_state(layout, LARGEST, 7)
        kept.append(dense(recipe.next_state(state, recipe.aggregate(iter(updates))).tensors))
        assert ranks == ([None] if options.get("feedback") else [])
    assert close(kept[0], kept[2])
    assert close(kept[1], kept[2])


# -- gauges


@pytest.mark.parametrize(("gauge", "on_a", "on_b"), [("b", 0, 1), ("balanced", 0.5, 0.5), ("a", 1, 0)])
def test_the_gauge_says_where_the_singular_values_go(gauge, on_a, on_b):
    new, s = after(UNLIKE, gauge=gauge).tensors, torch.linalg.svdvals(ideal(UNLIKE))[:LARGEST]
    a, b = new[A].double(), new[B].double()
    assert torch.allclose(a @ a.T, torch.diag(s ** (2 * on_a)), atol=1e-4)
    assert torch.allclose(b.T @ b, torch.diag(s ** (2 * on_b)), atol=1e-4)


# -- ranks that D* does not have


@pytest.mark.parametrize("gauge", ["b", "balanced", "a"])
def test_ranks_that_the_mean_lacks_keep_their_a_and_can_learn(gauge):
    """One client of rank 1: three ranks have nothing. Their B is zero, their A is the state's."""
    state = first()
    new = after([client(1, 1, 5)], state, gauge=gauge).tensors
    assert close(dense(new), ideal([client(1, 1, 5)]))
    assert torch.equal(new[A][1:], state.tensors[A][1:])
    assert not new[B][:, 1:].any()
    assert new[A].any(dim=1).all()


def test_capacity_survives_many_rounds_of_small_clients():
    state = first()
    for k in range(5):
        state = after([client(k, 1, 1), client(k, 1, 3)], state)
    assert state.tensors[A].shape == (LARGEST, IN)
    assert all(state.tensors[A][j].any() or state.tensors[B][:, j].any() for j in range(LARGEST))


def test_clients_that_changed_nothing_leave_version_zero_as_it_is():
    state = first()
    silent = [Update(down(state, r), 3) for r in (1, 4)]
    assert tensors.digest(after(silent, state).tensors) == tensors.digest(state.tensors)


# -- what the server remembers


def lost(state: State) -> torch.Tensor:
    d = LowRank(state.own[OWNER][LOST + A], state.own[OWNER][LOST + B])
    return d.B.double() @ d.A.double()


def test_feedback_keeps_what_the_cut_lost():
    """broadcast + lost = D* + lost before, in every round."""
    state = after(UNLIKE, feedback=True)
    assert close(dense(state.tensors), best(ideal(UNLIKE), LARGEST), 1e-5)
    assert close(dense(state.tensors) + lost(state), ideal(UNLIKE))
    for updates in ROUNDS[1:]:
        before = lost(state)
        state = after(updates, state, feedback=True)
        assert close(dense(state.tensors) + lost(state), ideal(updates) + before)
        assert close(dense(state.tensors), best(ideal(updates) + before, LARGEST), 1e-5)


def test_feedback_lets_a_direction_through_that_every_round_cuts():
    """Rank 1 of diag(3, 2): the cut drops the 2 for ever; with feedback its sum overtakes the 3."""
    u = Update({A: torch.eye(2), B: torch.diag(torch.tensor([3.0, 2.0]))}, 1)
    start = State(0, {A: torch.tensor([[0.5, 0.5]]), B: torch.zeros(2, 1)})
    plain, fed = start, start
    seen = torch.zeros(2, 2)
    for _ in range(5):
        plain, fed = after([u], plain), after([u], fed, feedback=True)
        seen += (fed.tensors[B] @ fed.tensors[A]) / 5
    assert torch.allclose(plain.tensors[B] @ plain.tensors[A], torch.diag(torch.tensor([3.0, 0.0])), atol=1e-5)
    assert seen[1, 1] > 0.5


@pytest.mark.parametrize("options", [{"feedback": True}, {"momentum": 0.9}, {"momentum": 0.9, "feedback": True}])
def test_what_is_remembered_stays_small_and_never_travels(options):
    state = first()
    for k in range(12):
        state = after([client(2 * k, 4, 1), client(2 * k + 1, 3, 2)], state, **options)
    assert state.tensors.keys() == {A, B, "head"}
    remembered = state.own[OWNER]
    assert remembered
    assert all(min(x.shape) <= min(OUT, IN) for x in remembered.values())
    sent = flexlora(**options).downlink(state, None, Plan(RUN, 12, 12, rank=3))
    assert {n: tuple(x.shape) for n, x in sent.items()} == {A: (3, IN), B: (OUT, 3), "head": (3,)}
    assert flexlora(**options).downlink(state, 12, Plan(RUN, 12, 12, 12, rank=3)) == {}


def test_without_memory_the_state_is_the_pair_and_the_head():
    state = after(UNLIKE)
    assert state.tensors.keys() == {A, B, "head"}
    assert not any(state.own.values())


def test_momentum_is_that_of_the_dense_change():
    """m = beta m + (D* - D), D := best approximation of D + lr m, with dense matrices beside it."""
    beta, lr = 0.8, 0.5
    state, d, m = first(), torch.zeros(OUT, IN, dtype=torch.float64), torch.zeros(OUT, IN, dtype=torch.float64)
    for updates in ROUNDS:
        state = after(updates, state, momentum=beta, server_lr=lr)
        m = beta * m + (ideal(updates) - d)
        d = best(d + lr * m, LARGEST)
        assert close(dense(state.tensors), d, 1e-5)


def test_a_server_step_without_momentum_goes_part_of_the_way():
    state = after(UNLIKE)
    d = dense(state.tensors)
    half = after(ROUNDS[1], state, server_lr=0.5)
    assert close(dense(half.tensors), best(d / 2 + ideal(ROUNDS[1]) / 2, LARGEST), 1e-5)
    assert half.tensors.keys() == {A, B, "head"}
    assert not any(half.own.values())


def test_momentum_does_not_depend_on_the_basis_of_the_state():
    """(Q A, B Q^-1) is the same state: the step acts on the dense change, not on factors."""
    state = after(UNLIKE, momentum=0.9)
    q = torch.eye(LARGEST) * 2 + torch.randn(LARGEST, LARGEST, generator=torch.Generator().manual_seed(1)) / 4
    a, b = q @ state.tensors[A], state.tensors[B] @ torch.linalg.inv(q)
    turned = State(1, {**state.tensors, A: a, B: b}, state.own)
    x, y = after(ROUNDS[1], state, momentum=0.9), after(ROUNDS[1], turned, momentum=0.9)
    assert close(dense(y.tensors), dense(x.tensors), 1e-5)


# -- the round


def test_a_download_of_any_rank_survives_the_wire_bit_for_bit():
    state = after(UNLIKE, feedback=True)
    plan = Plan(RUN, 1, 1, rank=2, tensors=down(state, 2))
    got = messages.decode_plan(messages.encode_plan(plan, "fp32"), max_bytes=2**20)
    assert tensors.digest(got.tensors) == tensors.digest(plan.tensors)


def test_the_model_of_the_largest_client_is_the_mean_of_the_clients_models():
    """End to end with trained clients of ranks 1, 2, 3 on modules where the mean has rank 3 + at most the dimension."""
    t = toy(flexlora())
    updates = [t.update(t.state(), k) for k in range(3)]
    state = t.step(t.state(), updates)
    for m in t.layout.modules:
        pairs = [u.delta[f"{m}.lora_B"].double() @ u.delta[f"{m}.lora_A"].double() for u in updates]
        want = sum(u.num_examples / 60 * d for u, d in zip(updates, pairs, strict=True))
        got = state.tensors[f"{m}.lora_B"].double() @ state.tensors[f"{m}.lora_A"].double()
        assert close(got, best(want, 3), 1e-5)


def test_nobody_is_refused():
    with pytest.raises(ValueError, match="none"):
        flexlora().aggregate(iter([]))


@pytest.mark.parametrize(
    ("options", "said"),
    [({"gauge": "c"}, "gauge"), ({"momentum": 1.0}, "momentum"), ({"momentum": -0.1}, "momentum"),
     ({"momentum": float("nan")}, "momentum"), ({"server_lr": 0.0}, "server_lr")],
)  # fmt: skip
def test_bad_options_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        flexlora(**options)


def test_what_it_declares():
    recipe = flexlora()
    declared = recipe.unlike_ranks, recipe.upload_kind == "values", recipe.linear, recipe.reveals_clients
    assert declared == (True, True, False, False)
