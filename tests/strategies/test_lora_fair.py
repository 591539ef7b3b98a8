"""LoRA-FAIR: a B that brings the product of the means nearer to the mean of the products."""

import itertools

import pytest
import torch

from fedft.contract import Layout, State
from fedft.strategies.fedit import fedit
from fedft.strategies.lora_fair import lora_fair
from fedft.testing import strategy_contract
from fedft.update import Plan, Update

OUT, IN, RANK = 9, 7, 3
A, B = "m.lora_A", "m.lora_B"
LAYOUT = Layout(modules={"m": (OUT, IN)}, head={"head": (3,)})


def client(seed: int, examples: int = 1, rank: int = RANK, scale: float = 1.0) -> Update:
    rng = torch.Generator().manual_seed(seed)
    a, b = torch.randn(rank, IN, generator=rng), torch.randn(OUT, rank, generator=rng) * scale
    return Update({A: a, B: b, "head": torch.randn(3, generator=rng)}, examples)


def cohort(seed: int = 0) -> list[Update]:
    return [client(10 * seed + k, n, scale=s) for k, n, s in ((1, 3, 1.0), (2, 1, 4.0), (3, 16, 0.5))]


UNLIKE = [client(1, 30, rank=1), client(2, 7, rank=4), client(3, 5, rank=2)]


def dense(x) -> torch.Tensor:
    return x[B].double() @ x[A].double()


def ideal(updates) -> torch.Tensor:
    total = sum(u.num_examples for u in updates)
    return sum(u.num_examples / total * dense(u.delta) for u in updates)


def plain(updates) -> dict[str, torch.Tensor]:
    return fedit(padding="zero").aggregate(updates)


def fair(updates, **options) -> dict[str, torch.Tensor]:
    return lora_fair(**options).aggregate(iter(updates))


def moved(updates, **options) -> torch.Tensor:
    """dB as broadcast."""
    return fair(updates, **options)[B].double() - plain(updates)[B].double()


def error(change, updates) -> float:
    return float((ideal(updates) - dense(change)).norm())


def ridge_objective(change, updates, lam: float) -> float:
    """|D* - C A|^2 + lam tr(A A^T) / r |C - B|^2, dense."""
    a, mean = change[A].double(), plain(updates)[B].double()
    weight = lam * float((a @ a.T).trace()) / a.shape[0]
    return error(change, updates) ** 2 + weight * float((change[B].double() - mean).square().sum())


def cosine_objective(c: torch.Tensor, updates, lam: float) -> torch.Tensor:
    """1 - cos(D*, C A) + lam |C - B|^2, dense."""
    d, product = ideal(updates), c @ plain(updates)[A].double()
    cos = (d * product).sum() / (d.norm() * product.norm())
    return 1 - cos + lam * (c - plain(updates)[B].double()).square().sum()


VARIANTS = [{"lam": 0.0}, {"solver": "cosine"}, {"variant": "reference"}]


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_it_keeps_the_contract(options):
    strategy_contract(lora_fair(**options))


def test_a_and_the_head_are_fedits():
    change = fair(cohort())
    assert torch.allclose(change[A], fedit().aggregate(cohort())[A], rtol=1e-6)
    assert torch.allclose(change["head"], fedit().aggregate(cohort())["head"], rtol=1e-6)


def test_the_correction_by_hand():
    """Rank 1, equal weights, A = 1 and 3, B = 2 and 4: means 2 and 3, D* = (2 + 12) / 2 = 7, G = 4.

    lam = 0: B + dB = 7 / 2. lam = 1: lam_eff = 4, dB = (7 * 2 - 3 * 4) / (4 + 4) = 1/4.
    """
    updates = [Update({A: torch.tensor([[a]]), B: torch.tensor([[b]])}, 5) for a, b in ((1.0, 2.0), (3.0, 4.0))]
    assert fair(updates, lam=0.0)[B].item() == pytest.approx(3.5)
    assert fair(updates, lam=1.0)[B].item() == pytest.approx(3.25)


@pytest.mark.parametrize("updates", [cohort(), UNLIKE], ids=["alike", "unlike ranks"])
@pytest.mark.parametrize("lam", [0.01, 0.3, 5.0])
def test_ridge_is_the_closed_form_on_dense_matrices(updates, lam):
    mean = plain(updates)
    a, b, d = mean[A].double(), mean[B].double(), ideal(updates)
    g = a @ a.T
    weight = lam * g.trace() / len(a)
    want = torch.linalg.solve(g + weight * torch.eye(len(a)), (d @ a.T - b @ g).T).T
    assert torch.allclose(moved(updates, lam=lam), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("lam", [0.0, 0.01, 0.3])
def test_the_gradient_of_the_ridge_objective_is_zero(lam):
    change, updates = fair(cohort(), lam=lam), cohort()
    a, c, mean = change[A].double(), change[B].double(), plain(updates)[B].double()
    weight = lam * (a @ a.T).trace() / RANK
    gradient = (c @ a - ideal(updates)) @ a.T + weight * (c - mean)
    assert gradient.norm() < 1e-6 * (ideal(updates) @ a.T).norm()


@pytest.mark.parametrize("seed", range(20))
def test_the_ridge_objective_and_the_error_decrease_strictly(seed):
    updates = cohort(seed)
    before, change = plain(updates), fair(updates)
    assert ridge_objective(change, updates, 0.01) < ridge_objective(before, updates, 0.01)
    assert error(change, updates) < error(before, updates)


@pytest.mark.parametrize("spread", [1.0, 1e-2, 1e-4, 1e-6, 1e-7, 0.0])
@pytest.mark.parametrize("lam", [0.0, 0.01, 1e6])
def test_what_is_broadcast_is_never_further_off_than_plain_averaging(spread, lam):
    """Also where dB is of the size of a rounding of B: clients that differ by `spread`."""
    for seed in range(10):
        base = client(seed)
        updates = [
            Update({n: base.delta[n] + spread * client(100 * seed + k).delta[n] for n in base.delta}, k + 1)
            for k in range(3)
        ]
        mean = fedit().aggregate(updates)
        change = fair(updates, lam=lam)
        mean = {**mean, A: change[A]}  # one and the same rounded A
        floor = 1e-12 * float(ideal(updates).norm())
        assert error(change, updates) <= error(mean, updates) + floor


def test_a_penalty_without_end_gives_fedit():
    assert torch.equal(fair(cohort(), lam=1e12)[B], plain(cohort())[B])
    assert torch.equal(fair(cohort(), lam=1e12, solver="cosine")[B], plain(cohort())[B])


def test_no_penalty_gives_the_projection():
    """lam = 0: what is missing is orthogonal to the row space of A, and B + dB is least squares' solution."""
    change = fair(cohort(), lam=0.0)
    missing = ideal(cohort()) - dense(change)
    a = change[A].double()
    assert (missing @ a.T).norm() < 1e-6 * missing.norm() * a.norm()
    least = torch.linalg.lstsq(a.T, ideal(cohort()).T).solution.T
    assert torch.allclose(change[B].double(), least, rtol=1e-4, atol=1e-5)


def test_a_small_penalty_tends_to_none():
    assert torch.allclose(fair(cohort(), lam=1e-10)[B], fair(cohort(), lam=0.0)[B], rtol=1e-5, atol=1e-6)


def test_the_correction_shrinks_with_the_penalty():
    sizes = [float(moved(cohort(), lam=lam).norm()) for lam in (0.0, 0.001, 0.01, 0.1, 1.0, 10.0)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] > 0


@pytest.mark.parametrize("options", [{}, {"lam": 0.0}, {"solver": "cosine"}], ids=str)
def test_with_a_common_a_the_product_is_exact(options):
    """The mean of B already is: nothing is left to correct."""
    updates = [Update({**u.delta, A: cohort()[0].delta[A]}, u.num_examples) for u in cohort()]
    change = fair(updates, **options)
    assert error(change, updates) < 1e-6 * float(ideal(updates).norm())
    assert moved(updates, **options).norm() < 1e-6 * change[B].norm()


@pytest.mark.parametrize("options", [{}, {"lam": 0.0}, {"solver": "cosine"}], ids=str)
@pytest.mark.parametrize("count", [1, 3])
def test_one_client_or_equal_ones_are_not_corrected(options, count):
    updates = [Update(cohort()[1].delta, k + 1) for k in range(count)]
    change = fair(updates, **options)
    assert all(torch.equal(change[n], cohort()[1].delta[n]) for n in (A, B))


@pytest.mark.parametrize("options", [{}, {"lam": 0.0}, {"solver": "cosine"}], ids=str)
def test_the_rows_of_the_product_are_in_the_row_space_of_a(options):
    change = fair(cohort(), **options)
    a = plain(cohort())[A].double()
    rows = a.T @ torch.linalg.solve(a @ a.T, a)
    assert torch.allclose(dense(change) @ rows, dense(change), atol=1e-5)


def test_the_ridge_correction_does_not_depend_on_scales():
    """lam is relative: with A 1000 times longer (and B shorter) the product is corrected by as much."""
    scaled = [Update({**u.delta, A: 1000 * u.delta[A], B: u.delta[B] / 1000}, u.num_examples) for u in cohort()]
    assert torch.allclose(dense(fair(scaled)), dense(fair(cohort())), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("lam", [0.0, 0.01])
def test_an_a_of_deficient_rank_does_no_harm(lam):
    """Two equal rows, and a row that is almost zero: G is singular."""
    updates = []
    for u in cohort():
        a = u.delta[A].clone()
        a[1], a[2] = a[0], a[2] * 1e-9
        updates.append(Update({**u.delta, A: a}, u.num_examples))
    change = fair(updates, lam=lam)
    assert torch.isfinite(change[B]).all()
    assert error(change, updates) <= error(plain(updates), updates)
    assert moved(updates, lam=lam).norm() < 10 * plain(updates)[B].norm()


@pytest.mark.parametrize("options", [{}, {"lam": 0.0}, {"solver": "cosine"}], ids=str)
@pytest.mark.parametrize("zero", [A, B])
def test_where_all_changes_are_zero_nothing_is_corrected(options, zero):
    updates = [Update({**u.delta, zero: torch.zeros_like(u.delta[zero])}, u.num_examples) for u in cohort()]
    assert torch.equal(fair(updates, **options)[B], plain(updates)[B])


def test_unlike_ranks_are_padded_first():
    change = fair(UNLIKE)
    assert change[A].shape == (4, IN)
    assert torch.allclose(change[A], plain(UNLIKE)[A], rtol=1e-6)
    assert error(change, UNLIKE) < error(plain(UNLIKE), UNLIKE)


@pytest.mark.parametrize("options", [{}, {"solver": "cosine"}], ids=str)
def test_the_order_of_clients_does_not_matter(options):
    want = fair(cohort(), **options)
    for other in itertools.permutations(cohort()):
        assert torch.allclose(fair(other, **options)[B], want[B], rtol=1e-4, atol=1e-5)


# -- the published objective


@pytest.mark.parametrize("lam", [0.0, 0.01, 0.1])
@pytest.mark.parametrize("updates", [cohort(), cohort(4), UNLIKE], ids=["one", "another", "unlike ranks"])
def test_the_cosine_objective_decreases_and_its_gradient_vanishes(updates, lam):
    """Against the objective written with dense matrices and differentiated by autograd."""
    c = fair(updates, lam=lam, solver="cosine")[B].double().requires_grad_()
    start = plain(updates)[B].double().requires_grad_()
    now, before = cosine_objective(c, updates, lam), cosine_objective(start, updates, lam)
    now.backward()
    before.backward()
    assert now < before
    assert c.grad.norm() < 1e-2 * start.grad.norm()


@pytest.mark.parametrize("lam", [10.0**k for k in range(3, 9)])
def test_the_cosine_objective_of_what_is_broadcast_is_never_above_plain_averagings(lam):
    """Also where dB is of the size of a rounding of B, and rounding costs more than dB gains."""
    for seed in range(5):
        mean, updates = plain(cohort(seed))[B].double(), cohort(seed)
        got = fair(updates, lam=lam, solver="cosine")[B].double()
        assert cosine_objective(got, updates, lam) <= cosine_objective(mean, updates, lam) + 1e-14


def test_the_cosine_solver_finds_what_a_long_plain_descent_finds():
    """SGD from zero with a small fixed step, as in published re-implementations, run to the end."""
    c = plain(cohort())[B].double().clone().requires_grad_()
    for _ in range(400):
        (gradient,) = torch.autograd.grad(cosine_objective(c, cohort(), 0.1), c)
        with torch.no_grad():
            c -= 0.2 * gradient
    want = cosine_objective(c.detach(), cohort(), 0.1)
    got = fair(cohort(), lam=0.1, solver="cosine")[B].double()
    assert float(cosine_objective(got, cohort(), 0.1)) == pytest.approx(float(want), rel=1e-5)
    assert torch.allclose(got, c.detach(), atol=1e-3)


def test_the_reference_is_the_cosine_solver():
    assert torch.equal(fair(cohort(), variant="reference")[B], fair(cohort(), solver="cosine")[B])
    assert not torch.equal(fair(cohort(), variant="reference")[B], fair(cohort())[B])


def test_a_cosine_does_not_see_lengths():
    """Why ridge is the default: the cosine improves on plain averaging, the error need not (here it is the worse)."""
    updates = cohort()
    by_cosine, by_ridge = fair(updates, lam=0.0, solver="cosine"), fair(updates, lam=0.0)
    assert error(by_ridge, updates) < error(by_cosine, updates)


# -- the round


def test_the_corrected_pair_replaces_the_states_and_missing_ranks_stay():
    recipe = lora_fair()
    state = State(2, client(9, rank=5).delta)
    change = recipe.aggregate(iter(UNLIKE))
    after = recipe.server(state, change)
    assert torch.equal(after[A], torch.cat([change[A], state.tensors[A][4:]]))
    assert torch.equal(after[B], torch.cat([change[B], state.tensors[B][:, 4:]], dim=1))
    sent = recipe.downlink(State(3, after), None, Plan("", 3, 3, rank=2))
    assert torch.equal(sent[A], change[A][:2])
    assert torch.equal(sent[B], change[B][:, :2])
    assert recipe.downlink(State(3, after), 3, Plan("", 3, 3, 3, rank=2)) == {}


def test_nobody_is_refused():
    with pytest.raises(ValueError, match="none"):
        fair([])


@pytest.mark.parametrize(
    ("options", "said"),
    [({"lam": -1.0}, "lam"), ({"lam": float("inf")}, "lam"), ({"solver": "sgd"}, "solver"), ({"variant": "x"}, "var")],
)
def test_bad_options_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        lora_fair(**options)


def test_what_it_declares():
    recipe = lora_fair()
    declared = recipe.unlike_ranks, recipe.upload_kind == "values", recipe.linear, recipe.reveals_clients
    assert declared == (True, True, False, False)
