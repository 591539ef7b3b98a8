"""FedIT: the mean of each factor, what it misses of the mean of the products, and its zero-padded form."""

import itertools

import pytest
import torch

from fedft.contract import Layout, State
from fedft.strategies.fedit import fedit
from fedft.update import Plan, Update

OUT, IN, RANK = 6, 5, 3
A, B = "m.lora_A", "m.lora_B"


def client(seed: int, examples: int, rank: int = RANK, alpha: float = 6.0) -> Update:
    """Trained factors in unit scale (B carries alpha / rank) and a head."""
    rng = torch.Generator().manual_seed(seed)
    b = torch.randn(OUT, rank, generator=rng) * (alpha / rank)
    return Update({A: torch.randn(rank, IN, generator=rng), B: b, "head": torch.randn(4, generator=rng)}, examples)


def cohort() -> list[Update]:
    """Unlike alpha and unlike numbers of examples."""
    return [client(1, 3, alpha=6), client(2, 1, alpha=1), client(3, 16, alpha=24)]


def shares(updates) -> list[float]:
    return [u.num_examples / sum(v.num_examples for v in updates) for u in updates]


def mean_of(tensors, updates) -> torch.Tensor:
    return sum(p * x.double() for p, x in zip(shares(updates), tensors, strict=True))


def products(updates) -> list[torch.Tensor]:
    return [u.delta[B].double() @ u.delta[A].double() for u in updates]


def product(change) -> torch.Tensor:
    return change[B].double() @ change[A].double()


def close(x, y, tolerance=1e-6) -> bool:
    return bool((x - y).norm() <= tolerance * y.norm())


def test_each_factor_and_the_head_become_their_weighted_mean():
    updates = cohort()
    change = fedit().aggregate(updates)
    for name in (A, B, "head"):
        assert close(change[name], mean_of([u.delta[name] for u in updates], updates))


def test_weights_are_examples_of_those_who_answered_by_hand():
    """Deltas 2 and -2 from 3 and 1 examples: 1. With the second absent: 2, whoever else there is."""
    two, minus = Update({B: torch.full((1, 1), 2.0)}, 3), Update({B: torch.full((1, 1), -2.0)}, 1)
    assert fedit().aggregate([two, minus])[B].item() == 1.0
    assert fedit().aggregate([two])[B].item() == 2.0


def test_identical_clients_aggregate_to_the_client():
    one = client(1, 3)
    change = fedit().aggregate([one, Update(one.delta, 5), Update(one.delta, 11)])
    assert all(torch.equal(change[n], one.delta[n]) for n in one.delta)


def test_the_error_is_the_covariance_of_the_factors_with_opposite_sign():
    """B A - sum p_k B_k A_k = - sum p_k (B_k - B)(A_k - A)."""
    updates = cohort()
    change = fedit().aggregate(updates)
    error = product(change) - mean_of(products(updates), updates)
    a = mean_of([u.delta[A] for u in updates], updates)
    b = mean_of([u.delta[B] for u in updates], updates)
    spread = mean_of([(u.delta[B].double() - b) @ (u.delta[A].double() - a) for u in updates], updates)
    assert close(error, -spread, 1e-5)
    assert error.norm() > 0.1 * product(change).norm()  # it is not small


@pytest.mark.parametrize("common", [A, B])
def test_the_error_is_zero_when_one_factor_is_common(common):
    updates = [Update({**u.delta, common: cohort()[0].delta[common]}, u.num_examples) for u in cohort()]
    assert close(product(fedit().aggregate(updates)), mean_of(products(updates), updates))


@pytest.mark.parametrize("options", [{}, {"padding": "zero"}], ids=["plain", "padded"])
def test_the_order_of_clients_does_not_matter(options):
    change = fedit(**options).aggregate(cohort())
    for other in itertools.permutations(cohort()):
        again = fedit(**options).aggregate(iter(other))
        assert all(torch.allclose(again[n], change[n], rtol=2**-22, atol=0) for n in change)


def turned(u: Update, q: torch.Tensor) -> Update:
    """The same model written as (Q A, B Q^-1)."""
    a, b = q @ u.delta[A].double(), u.delta[B].double() @ torch.linalg.inv(q)
    return Update({**u.delta, A: a.float(), B: b.float()}, u.num_examples)


def rotation(seed: int) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(RANK, RANK, generator=rng, dtype=torch.float64))[0] * 2 + torch.eye(RANK)


def test_a_common_change_of_basis_changes_nothing():
    before = product(fedit().aggregate(cohort()))
    after = product(fedit().aggregate([turned(u, rotation(1)) for u in cohort()]))
    assert close(after, before, 1e-5)


def test_a_change_of_basis_per_client_changes_the_result():
    """The rotational ambiguity: every client's model is what it was, the mean is not."""
    others = [turned(u, rotation(k)) for k, u in enumerate(cohort())]
    for u, v in zip(cohort(), others, strict=True):
        assert close(product(u.delta), product(v.delta), 1e-5)
    before, after = product(fedit().aggregate(cohort())), product(fedit().aggregate(others))
    assert (after - before).norm() > 0.1 * before.norm()


def test_the_state_moves_by_the_mean_and_frozen_names_stay():
    state = State(4, {**cohort()[0].delta, "other": torch.ones(2)})
    recipe = fedit()
    change = recipe.aggregate(cohort())
    after = recipe.server(state, change)
    assert all(torch.equal(after[n], state.tensors[n] + change[n]) for n in change)
    assert after["other"] is state.tensors["other"]


# -- unlike ranks, padded with zeros


def test_the_padded_mean_by_hand():
    """Ranks 1 and 2 with 1 and 3 examples; the missing row counts as zero with its client's weight.

    A: row 0 is (1 * 4 + 3 * 8) / 4 = 7, row 1 is 3 * 12 / 4 = 9. B: columns (1 * 2 + 3 * 6) / 4 = 5 and 3 * 4 / 4 = 3.
    """
    small = Update({A: torch.tensor([[4.0]]), B: torch.tensor([[2.0]])}, 1)
    large = Update({A: torch.tensor([[8.0], [12.0]]), B: torch.tensor([[6.0, 4.0]])}, 3)
    for updates in ([small, large], [large, small]):
        change = fedit(padding="zero").aggregate(iter(updates))
        assert change[A].tolist() == [[7.0], [9.0]]
        assert change[B].tolist() == [[5.0, 3.0]]


def test_the_padded_mean_against_explicit_padding():
    updates = [client(1, 3, rank=1), client(2, 5, rank=4), client(3, 2, rank=3)]
    change = fedit(padding="zero").aggregate(updates)
    a = [torch.cat([u.delta[A], torch.zeros(4 - len(u.delta[A]), IN)]) for u in updates]
    b = [torch.cat([u.delta[B], torch.zeros(OUT, 4 - u.delta[B].shape[1])], dim=1) for u in updates]
    assert close(change[A], mean_of(a, updates))
    assert close(change[B], mean_of(b, updates))
    assert close(change["head"], mean_of([u.delta["head"] for u in updates], updates))


def test_with_equal_ranks_padding_is_plain_fedit():
    plain, padded = fedit().aggregate(cohort()), fedit(padding="zero").aggregate(cohort())
    assert all(torch.allclose(plain[n], padded[n], rtol=2**-22) for n in plain)


def test_a_client_receives_the_first_rows_of_its_rank_and_padding_them_gives_them_back():
    recipe = fedit(padding="zero")
    state = State(2, client(1, 1, rank=4).delta)
    sent = recipe.downlink(state, None, Plan("", 2, 2, rank=2))
    assert torch.equal(sent[A], state.tensors[A][:2])
    assert torch.equal(sent[B], state.tensors[B][:, :2])
    assert torch.equal(sent["head"], state.tensors["head"])
    assert recipe.downlink(state, 2, Plan("", 2, 2, 2, rank=2)) == {}
    after = recipe.server(state, recipe.aggregate([Update(sent, 7)]))
    assert torch.equal(recipe.downlink(State(3, after), None, Plan("", 3, 3, rank=2))[A], sent[A])


def test_the_state_keeps_the_largest_rank_when_only_small_clients_answer():
    recipe = fedit(padding="zero")
    state = State(2, client(1, 1, rank=4).delta)
    after = recipe.server(state, recipe.aggregate([client(2, 3, rank=2)]))
    assert {n: x.shape for n, x in after.items()} == {n: x.shape for n, x in state.tensors.items()}


@pytest.mark.parametrize("only_small_ranks_for", [1, 3])
def test_capacity_that_sat_out_a_round_can_still_learn(only_small_ranks_for):
    """A rank whose row of A and column of B are both zero has no gradient: d/dB = G A^T = 0, d/dA = B^T G = 0."""
    recipe = fedit(padding="zero")
    state = State(0, client(1, 1, rank=4).delta)
    for _ in range(only_small_ranks_for):
        state = State(state.version + 1, recipe.server(state, recipe.aggregate([client(2, 3, rank=2)])))
    sent = recipe.downlink(state, None, Plan("", state.version, state.version, rank=4))
    assert all(sent[A][j].any() or sent[B][:, j].any() for j in range(4))


def test_version_zero_changes_nothing_and_is_within_the_usual_bound():
    """A uniform on +-1/sqrt(in), B zero, so the product is zero; equal seeds give equal bits."""
    layout = Layout(modules={"m": (OUT, IN)}, head={"head": (4,)})
    state = fedit().first_state(layout, RANK, 7).tensors
    assert not product(state).any()
    assert not state["head"].any()
    assert 0 < state[A].abs().max() <= IN**-0.5
    assert torch.equal(state[A], fedit().first_state(layout, RANK, 7).tensors[A])
    assert not torch.equal(state[A], fedit().first_state(layout, RANK, 8).tensors[A])


def test_an_unknown_padding_is_refused():
    with pytest.raises(ValueError, match="zero"):
        fedit(padding="replicate")
