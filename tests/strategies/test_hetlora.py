"""HetLoRA: truncation and padding, weights by energy, the tail's penalty, and ranks that only shrink."""

import itertools
from dataclasses import replace

import pytest
import torch

from fedft.arithmetic import tensors
from fedft.contract import Layout, Learning, Member, Roster, State, Trained, Turn
from fedft.errors import RejectedUpdate
from fedft.strategies.fedit import fedit
from fedft.strategies.hetlora import OWNER, hetlora
from fedft.strategies.parts.shrinking_ranks import tail
from fedft.testing import SEED, Ready, strategy_contract, toy
from fedft.training.first_order import FirstOrder
from fedft.update import Plan, TensorSpec, Update
from fedft.wire import messages

OUT, IN = 6, 5
A, B = "m.lora_A", "m.lora_B"
LAYOUT = Layout(modules={"m": (OUT, IN)}, head={"head": (3,)})


def client(seed: int, rank: int, examples: int = 1, scale: float = 1.0, **more) -> Update:
    """Trained factors in unit scale and a head, made by hand: without "rank"."""
    rng = torch.Generator().manual_seed(seed)
    a, b = torch.randn(rank, IN, generator=rng), torch.randn(OUT, rank, generator=rng) * scale
    return Update({A: a, B: b, "head": torch.randn(3, generator=rng)}, examples, **more)


def dense(x) -> torch.Tensor:
    return x[B].double() @ x[A].double()


def shares(updates) -> list[float]:
    """|D_k|_F / sum of them, from the dense matrices."""
    norms = [float(dense(u.delta).norm()) for u in updates]
    return [v / sum(norms) for v in norms]


def padded(x: torch.Tensor, name: str, rank: int) -> torch.Tensor:
    missing = rank - x.shape[0 if name == A else 1]
    return torch.cat([x, torch.zeros(missing, IN)]) if name == A else torch.cat([x, torch.zeros(OUT, missing)], dim=1)


def expected(updates, weights, rank: int) -> dict[str, torch.Tensor]:
    return {
        n: sum(w * padded(u.delta[n], n, rank).double() for w, u in zip(weights, updates, strict=True)) for n in (A, B)
    }


def same(x, y, tolerance=1e-6) -> bool:
    return all(torch.allclose(x[n].double(), y[n].double(), rtol=tolerance, atol=tolerance) for n in (A, B))


def state_of(rank: int, version: int = 0, seed: int = 9) -> State:
    return State(version, dict(client(seed, rank).delta))


UNLIKE = [client(1, 1, 30), client(2, 4, 7, scale=3.0), client(3, 2, 1, scale=0.2)]

VARIANTS = [  # the default is in test_every_strategy
    {"gamma": 0.5, "penalty": 0.1},
    {"gamma": 1.0},
    {"penalty": 0.0},
    {"weights": "examples", "normalise_rows": True},
    {"max_share": 0.4},
]


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_it_keeps_the_contract(options):
    strategy_contract(hetlora(**options))


# -- aggregation


def test_weights_are_the_shares_of_the_dense_norms():
    assert same(hetlora().aggregate(iter(UNLIKE)), expected(UNLIKE, shares(UNLIKE), 4))


def test_weights_by_energy_by_hand():
    """Products 1 * 2 = 2 and 3 * 2 = 6: weights 1/4 and 3/4. A: (1 + 9) / 4, B: (2 + 6) / 4; examples play no part."""
    one = Update({A: torch.tensor([[1.0]]), B: torch.tensor([[2.0]])}, 100)
    three = Update({A: torch.tensor([[3.0]]), B: torch.tensor([[2.0]])}, 1)
    change = hetlora().aggregate([one, three])
    assert (change[A].item(), change[B].item()) == (2.5, 2.0)


def test_padding_dilutes_by_hand_and_normalised_rows_do_not():
    """Ranks 1 and 2, both of norm 2: weights 1/2. Row 1 is the second client's 2: halved to 1, or kept at 2."""
    small = Update({A: torch.tensor([[2.0, 0.0]]), B: torch.tensor([[1.0], [0.0]])}, 1)
    b = torch.tensor([[0.0, 0.0], [0.0, 1.0]])
    large = Update({A: torch.tensor([[4.0, 0.0], [0.0, 2.0]]), B: b}, 1)
    faithful = hetlora().aggregate([small, large])
    assert faithful[A].tolist() == [[3.0, 0.0], [0.0, 1.0]]
    assert faithful[B].tolist() == [[0.5, 0.0], [0.0, 0.5]]
    kept = hetlora(normalise_rows=True).aggregate([large, small])
    assert kept[A].tolist() == [[3.0, 0.0], [0.0, 2.0]]
    assert kept[B].tolist() == [[0.5, 0.0], [0.0, 1.0]]


def test_normalised_rows_divide_by_the_weight_of_who_holds_them():
    got = hetlora(normalise_rows=True).aggregate(UNLIKE)
    w, plain = shares(UNLIKE), expected(UNLIKE, shares(UNLIKE), 4)
    of_row = torch.tensor([1.0, w[1] + w[2], w[1], w[1]], dtype=torch.float64)
    assert same(got, {A: plain[A] / of_row[:, None], B: plain[B] / of_row})


def test_weights_sum_to_one():
    """Clients with one and the same first row of A: its mean is that row."""
    updates = [Update({**u.delta, A: torch.cat([UNLIKE[0].delta[A], u.delta[A][1:]])}, 1) for u in UNLIKE]
    assert torch.allclose(hetlora().aggregate(updates)[A][0], UNLIKE[0].delta[A][0], rtol=1e-6)


def test_scaling_one_client_scales_its_weight():
    """The documented weakness: twice the change, twice the weight against the others."""
    loud = [UNLIKE[0], Update({**UNLIKE[1].delta, B: 2 * UNLIKE[1].delta[B]}, 7), UNLIKE[2]]
    v = [float(dense(u.delta).norm()) for u in UNLIKE]
    weights = [v[0], 2 * v[1], v[2]]
    assert same(hetlora().aggregate(loud), expected(loud, [w / sum(weights) for w in weights], 4))


def test_a_cap_bounds_the_loudest_and_the_others_share_the_rest():
    loud = [UNLIKE[0], Update({**UNLIKE[1].delta, B: 1000 * UNLIKE[1].delta[B]}, 7), UNLIKE[2]]
    others = shares([UNLIKE[0], UNLIKE[2]])
    weights = [0.5 * others[0], 0.5, 0.5 * others[1]]
    assert same(hetlora(max_share=0.5).aggregate(loud), expected(loud, weights, 4), 1e-5)


def test_a_client_uploading_zeros_has_no_weight():
    silent = Update({A: torch.ones(3, IN), B: torch.zeros(OUT, 3), "head": torch.zeros(3)}, 1000)
    alone = hetlora().aggregate(UNLIKE)
    assert same(hetlora().aggregate([silent, *UNLIKE]), alone)


def test_where_all_changes_are_zero_weights_are_examples():
    silent = [Update({**u.delta, B: torch.zeros_like(u.delta[B])}, u.num_examples) for u in UNLIKE]
    assert same(hetlora().aggregate(silent), expected(silent, [30 / 38, 7 / 38, 1 / 38], 4))


def test_with_weights_by_examples_and_no_pruning_it_is_zero_padded_fedit():
    mine = hetlora(weights="examples", gamma=1).aggregate(UNLIKE)
    theirs = fedit(padding="zero").aggregate(UNLIKE)
    assert same(mine, theirs)
    assert torch.allclose(mine["head"], theirs["head"])


def test_equal_ranks_and_equal_norms_are_fedit_with_equal_weights():
    updates = [client(k, 3, examples=k) for k in (1, 2, 3)]
    equal = [
        Update({**u.delta, B: u.delta[B] / float(dense(u.delta).norm())}, 1, client=str(k))
        for k, u in enumerate(updates)
    ]
    weighted = [replace(u, num_examples=n) for u, n in zip(equal, (5, 1, 30), strict=True)]
    assert same(hetlora(gamma=1).aggregate(weighted), fedit().aggregate(equal))


def test_the_head_is_averaged_by_examples():
    want = sum(n / 38 * u.delta["head"].double() for n, u in zip((30, 7, 1), UNLIKE, strict=True))
    assert torch.allclose(hetlora().aggregate(UNLIKE)["head"].double(), want, rtol=1e-6)


def test_the_order_of_clients_does_not_matter():
    assert same(hetlora().aggregate(UNLIKE[::-1]), hetlora().aggregate(UNLIKE))


def test_rows_beyond_every_clients_rank_get_nothing():
    """The cohort's mean has no such rows, so the state keeps them: in neither factor does anything reach them."""
    state, recipe = state_of(5), hetlora()
    change = recipe.aggregate(UNLIKE[:1] + UNLIKE[2:])
    assert change[A].shape[0] == 2
    after = recipe.next_state(state, change).tensors
    assert torch.equal(after[A][2:], state.tensors[A][2:])
    assert torch.equal(after[B][:, 2:], state.tensors[B][:, 2:])
    assert torch.equal(after[A][:2], change[A])


def test_capacity_survives_a_round_in_which_nobody_uses_it():
    """All who held a row gave it up: its B is zero, so the product has lost it, and its A is the state's."""
    recipe, state = hetlora(), state_of(3)
    u = client(1, 3, client="a")
    u.delta[A][2], u.delta[B][:, 2] = 0, 0
    pruned = replace(u, delta={**u.delta, "rank": torch.tensor([2], dtype=torch.int32)})
    after = recipe.next_state(state, recipe.aggregate([pruned])).tensors
    assert not after[B][:, 2].any()
    assert torch.equal(after[A][2], state.tensors[A][2])
    assert torch.allclose(dense(after), dense(u.delta), rtol=1e-6, atol=1e-6)


def test_what_is_beyond_the_claimed_rank_does_not_count():
    claimed = Update({**UNLIKE[1].delta, "rank": torch.tensor([2], dtype=torch.int32)}, 7)
    cut = Update({**UNLIKE[1].delta, A: UNLIKE[1].delta[A][:2], B: UNLIKE[1].delta[B][:, :2]}, 7)
    for options in ({}, {"normalise_rows": True}):
        change = hetlora(**options).aggregate([claimed, UNLIKE[0]])
        want = hetlora(**options).aggregate([cut, UNLIKE[0]])
        assert torch.allclose(change[A][:2], want[A])
        assert not change[A][2:].any()
        assert not change[B][:, 2:].any()


# -- ranks


def test_truncation_after_padding_gives_the_factors_back():
    recipe, sent = hetlora(), client(1, 2)
    after = recipe.next_state(state_of(5), recipe.aggregate([sent]))
    down = recipe.downlink(after, None, Plan("", 1, 1, rank=2))
    assert torch.equal(down[A], sent.delta[A])
    assert torch.equal(down[B], sent.delta[B])


def said(rank: int) -> dict[str, torch.Tensor]:
    return {"rank": torch.tensor([rank], dtype=torch.int32)}


def planned(recipe, state: State, client: str, rank: int) -> int:
    """The rank of a client's next plan, whose run file says `rank`."""
    plans = recipe.plans(state, Roster({client: Member(rank)}), Plan("", state.version, state.version), 4)
    return plans[client].shape.rank


def test_the_state_remembers_each_clients_rank_and_the_next_round_is_at_it():
    recipe, state = hetlora(), state_of(4)
    updates = [
        Update({**client(1, 4).delta, **said(3)}, 1, client="north"),
        Update({**client(2, 2).delta, **said(2)}, 1, client="south.rank.1"),
    ]
    after = recipe.next_state(state, recipe.aggregate(iter(updates)))
    assert planned(recipe, after, "north", 4) == 3
    assert planned(recipe, after, "south.rank.1", 2) == 2
    assert planned(recipe, after, "absent", 4) == 4
    assert planned(recipe, after, "north", 2) == 2  # the run file may ask for less
    plan = Plan("", 1, 1, rank=planned(recipe, after, "north", 4))
    assert recipe.downlink(after, None, plan)[A].shape[0] == 3
    assert recipe.spec(LAYOUT, plan)[A].shape == (3, IN)
    again = recipe.next_state(after, recipe.aggregate([Update({**client(3, 2).delta, **said(1)}, 1, client="w")]))
    assert planned(recipe, again, "north", 4) == 3  # a client that sat out keeps its rank


def test_ranks_never_travel_down():
    recipe = hetlora()
    update = Update({**client(1, 4).delta, **said(3)}, 1, client="north")
    after = recipe.next_state(state_of(4), recipe.aggregate([update]))
    assert after.own[OWNER].keys() == {"north"}
    assert after.tensors.keys() == {A, B, "head"}
    assert recipe.downlink(after, None, Plan("", 1, 1, rank=2)).keys() == {A, B, "head"}
    assert recipe.downlink(after, 1, Plan("", 1, 1, 1, rank=2)) == {}


@pytest.mark.parametrize("rank", [-1, 0, 4, 2**31 - 1])
def test_a_rank_out_of_bounds_is_refused(rank):
    with pytest.raises(RejectedUpdate, match="never grow") as refused:
        hetlora().admit({**client(1, 3).delta, **said(rank)}, Plan("", 0, 0, rank=3))
    assert refused.value.code == "out_of_bounds"


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_rank_within_bounds_is_admitted(rank):
    recipe, plan = hetlora(), Plan("", 0, 0, rank=3)
    sent = Update({**client(1, 3).delta, **said(rank)}, 1)
    got = messages.decode_update(messages.encode_update(sent, "fp32"), recipe.spec(LAYOUT, plan), "fp32")
    recipe.admit(got.delta, plan)
    assert tensors.digest(got.delta) == tensors.digest(sent.delta)
    assert recipe.spec(LAYOUT, plan)["rank"] == TensorSpec((1,), "int32")


# -- a client's turn


def turn_of(recipe, rank_of: int = 2):
    """A state with a B that is not zero, and client 2 (rank 3) about to train from it."""
    t = toy(recipe)
    state = t.state()
    state = t.step(state, [t.update(state, k) for k in range(3)])
    plan = t.plan(state, rank_of)
    return t, plan, t.turn(plan, rank_of)


X = torch.linspace(-1, 1, 24).reshape(3, 8)
DATA = Ready({"x": X, "labels": X[:, :4]})


def test_the_penalty_pulls_the_tail_and_leaves_the_head_alone():
    """Its gradient on live factors against autograd: rank 3, gamma 0.5: the head is rank 0, the tail ranks 1 and 2."""
    t, _, turn = turn_of(hetlora(gamma=0.5, penalty=0.3))
    (penalty,) = t.recipe.local.terms
    course = penalty.begin(t.recipe.local.learning(t.handle, turn), turn)
    for p in t.handle.parameters().values():
        p.grad = torch.zeros_like(p)
    course.step()
    live = {n: p.detach().double().requires_grad_() for n, p in t.handle.parameters().items()}
    loss = sum(0.3 * live[f"{m}.lora_B"][:, 1:].norm() * live[f"{m}.lora_A"][1:].norm() for m in ("first", "second"))
    loss.backward()
    for name, p in live.items():
        found = t.handle.parameters()[name].grad
        assert torch.allclose(found.double(), p.grad, rtol=1e-5, atol=1e-7)
        head, rest = (found[:1], found[1:]) if name.endswith("A") else (found[:, :1], found[:, 1:])
        assert not head.any()
        assert rest.any()


def test_the_penalty_has_no_gradient_where_b_is_zero_and_is_finite():
    t = toy(hetlora(gamma=0.5, penalty=1e6))
    start = t.plan(t.state(), 2, steps=1, lr=0.0)
    sent = t.recipe.local(t.handle, DATA, t.turn(start, 2)).delta
    assert all(torch.isfinite(x).all() for x in sent.values() if x.is_floating_point())
    assert sent["rank"].item() == 3  # the tail's product was zero and did not shrink


def test_a_strong_penalty_shrinks_the_tail_and_the_client_gives_it_up():
    t, plan, turn = turn_of(hetlora(gamma=0.5, penalty=100.0))
    sent = t.recipe.local(t.handle, DATA, turn).delta
    assert sent["rank"].tolist() == [1]
    assert sent["rank"].dtype == torch.int32
    for m in ("first", "second"):
        assert sent[f"{m}.lora_A"].shape[0] == plan.rank == 3
        assert not sent[f"{m}.lora_A"][1:].any()
        assert not sent[f"{m}.lora_B"][:, 1:].any()
        assert sent[f"{m}.lora_A"][0].any()


def test_a_tail_that_grew_is_kept():
    t, _, turn = turn_of(hetlora(gamma=0.5, penalty=1e-9))
    before = tail(turn.held, 1)
    grown = replace(turn, plan=replace(turn.plan, learning_rate=0.5))
    sent = t.recipe.local(t.handle, DATA, grown).delta
    assert tail(sent, 1) > before
    assert sent["rank"].item() == 3


@pytest.mark.parametrize("options", [{"gamma": 1.0, "penalty": 50.0}, {"gamma": 0.5, "penalty": 0.0}], ids=str)
def test_without_a_tail_or_a_penalty_the_client_trains_as_fedits_does(options):
    t, plan, turn = turn_of(hetlora(**options))
    sent = dict(t.recipe.local(t.handle, DATA, turn).delta)
    assert sent.pop("rank").item() == plan.rank
    t.turn(plan, 2)
    assert tensors.digest(sent) == tensors.digest(FirstOrder("value")(t.handle, DATA, turn).delta)


def test_a_client_of_rank_one_has_no_tail():
    t, _, turn = turn_of(hetlora(gamma=0.99, penalty=100.0), rank_of=0)
    assert t.recipe.local(t.handle, DATA, turn).delta["rank"].item() == 1


@pytest.mark.parametrize(("gamma", "rank", "head"), [(0.99, 8, 7), (0.99, 100, 99), (0.29, 100, 29), (0.1, 5, 1)])
def test_the_tail_starts_at_gamma_times_the_rank_rounded_down(gamma, rank, head):
    """A stand-in for training that halves every factor: the tail shrinks, so the client falls to `head`."""
    delta = dict(client(1, rank).delta)
    del delta["head"]
    halved = {n: x / 2 for n, x in delta.items()}
    turn = Turn(Plan("", 0, 0, rank=rank), {}, "", None, 0, 0)
    learning = Learning({n: torch.nn.Parameter(x) for n, x in delta.items()}, {}, lambda name: 1.0)
    (pruning,) = hetlora(gamma=gamma).local.terms
    assert pruning.begin(learning, turn).finish(Trained(halved, {}), None).delta["rank"].item() == head


def test_ranks_shrink_over_rounds_and_never_grow():
    recipe = hetlora(gamma=0.7, penalty=100.0)
    t = toy(recipe)
    state, seen = t.state(), []
    for _ in range(6):
        state = t.step(state, [t.update(state, k) for k in range(3)])
        seen.append([planned(recipe, state, str(k), t.ranks[k]) for k in range(3)])
        assert all(x.shape[0] == 3 for n, x in state.tensors.items() if n.endswith("lora_A"))
    assert all(x >= y for earlier, later in itertools.pairwise(seen) for x, y in zip(earlier, later, strict=True))
    assert seen[0] == [1, 2, 3]
    assert seen[-1] == [1, 1, 1]


def test_version_zero_has_no_ranks_to_remember():
    state = hetlora().first_state(LAYOUT, 4, SEED)
    assert state.tensors.keys() == {A, B, "head"}
    assert not any(state.own.values())
    assert planned(hetlora(), state, "anyone", 4) == 4


def test_nobody_is_refused():
    with pytest.raises(ValueError, match="none"):
        hetlora().aggregate(iter([]))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"gamma": 1.1}, "gamma"),
        ({"gamma": -0.1}, "gamma"),
        ({"penalty": -1.0}, "penalty"),
        ({"weights": "energy"}, "weights"),
        ({"max_share": 0.0}, "max_share"),
        ({"max_share": 1.5}, "max_share"),
    ],
)
def test_bad_options_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        hetlora(**options)


def test_what_it_declares():
    recipe = hetlora()
    assert (recipe.unlike_ranks, recipe.upload_kind == "values", recipe.linear, recipe.ring_summable) == (
        True,
        True,
        False,
        False,
    )
