"""Ferret: what coordinates keep of an update, how they are shared out, and that all machines rebuild the same model."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fedft.compression.error_feedback import OWNER
from fedft.config import Local
from fedft.contract import Layout, State, Trained, Turn
from fedft.errors import RejectedUpdate
from fedft.models.handle import ModelHandle
from fedft.randomness import families, philox, sketch
from fedft.randomness.independent import Table
from fedft.recipe import Recipe
from fedft.strategies.fedit import fedit
from fedft.strategies.ferret import ferret
from fedft.strategies.parts import growing_history
from fedft.testing import RUN, SEED, Ready, strategy_contract, toy
from fedft.training.first_order import FirstOrder
from fedft.update import Plan, Update
from fedft.wire import messages

FAMILIES = ("hadamard", "rademacher", "gaussian")
BATCH = {"x": torch.linspace(-1, 1, 40).reshape(5, 8), "labels": torch.linspace(1, -1, 20).reshape(5, 4)}


def normal(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# -- a model whose local step is the update that one asks for


class Told(nn.Module):
    """Loss -<x, w>: one step of plain descent with learning rate 1 is w + x. Weights start at `w0`, or at zero."""

    def __init__(self, x: dict[str, torch.Tensor], w0: float = 0.0) -> None:
        super().__init__()
        self.x = x
        for n, v in x.items():
            self.register_parameter(n, nn.Parameter(torch.full_like(v, w0)))

    def forward(self, factor: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(loss=-factor * sum((getattr(self, n) * v).sum() for n, v in self.x.items()))


def turn_of(recipe: Recipe, state: State, run_seed: int, seed: int, kept) -> Turn:
    plan = Plan(RUN, state.version, state.version, steps=1, learning_rate=1.0)
    held = dict(growing_history.with_news(None, plan)) | dict(recipe.downlink(state, None, plan))
    local = Local(optimizer="sgd", learning_rate=1.0, momentum=0.0, weight_decay=0.0, max_grad_norm=0.0)
    return Turn(plan, held, "", local, run_seed, seed, kept)


def handle_of(recipe: Recipe, x, w0: float = 0.0) -> ModelHandle:
    return ModelHandle(Told(x, w0), layout_of(x), recipe.space)


def layout_of(x) -> Layout:
    return Layout(parameters={n: tuple(x[n].shape) for n in sorted(x)}, order=tuple(x))


def client(recipe: Recipe, x, state=None, *, run_seed=SEED, seed=5, kept=None, w0=0.0) -> Trained:
    """What a client sends and keeps whose local steps come to `x`."""
    handle, turn = handle_of(recipe, x, w0), turn_of(recipe, state or State(0, {}), run_seed, seed, kept or {})
    recipe.start(handle, turn)
    return recipe.sent(recipe.local(handle, Ready({"factor": torch.ones(())}), turn), turn, handle)


def model(recipe: Recipe, state: State, x, *, run_seed=SEED) -> dict[str, torch.Tensor]:
    """The change since w0 of the model at `state`, whose tensors are like those of `x`."""
    handle = handle_of(recipe, x)
    recipe.start(handle, turn_of(recipe, state, run_seed, 0, {}))
    return handle.read()


def committed(recipe: Recipe, state: State, sent: list[Trained], examples=None) -> State:
    weights = examples or [10] * len(sent)
    change = recipe.aggregate(iter([Update(t.delta, n) for t, n in zip(sent, weights, strict=True)]))
    return recipe.next_state(state, change)


def rebuilt(recipe: Recipe, x, **more) -> dict[str, torch.Tensor]:
    """`x` after the way from one client to the model."""
    state = committed(recipe, State(0, {}), [client(recipe, x, **more)])
    return model(recipe, state, x, run_seed=more.get("run_seed", SEED))


def flat(x) -> torch.Tensor:
    return torch.cat([x[n].flatten() for n in sorted(x)]).double()


# -- what coordinates leave out


@pytest.mark.parametrize("steps", [1, 30])
def test_the_number_of_local_steps_does_not_enter_the_error(steps):
    """The toy's first weight, 48 numbers on 8 directions: 48 / 8 - 1 = 5, however many steps led there."""
    t = toy(ferret())
    turn = t.turn(t.plan(t.state(), 1, steps=steps), 1)
    x = FirstOrder()(t.handle, Ready(BATCH), turn).delta["first.weight"]
    errors = 0.0
    for seed in range(100):
        z = families.make("hadamard", seed, 8)
        sketch.rebuild(z, "w", sketch.coordinates(z, "w", x), out := torch.zeros_like(x))
        errors += float((out - x).square().sum() / x.square().sum())
    assert errors / 100 == pytest.approx(5, rel=0.1)


def test_a_budget_that_is_too_small_is_refused_with_the_model():
    with pytest.raises(ValueError, match="wanted K >= 6"):
        ferret(K=5).first_state(Layout(parameters={"a": (4,), "b": (4,), "c": (4,)}), 0, SEED)


def test_allocation_by_error_leaves_less_error_where_blocks_are_unlike():
    """4096, 64 and 16 numbers of like size each: the round after the first, over 20 runs."""
    x, errors = {"a": normal(4096), "b": normal(64, seed=2), "c": normal(16, seed=3)}, {}
    for allocation in ("norm", "error"):
        recipe = ferret(K=200, allocation=allocation)
        for run_seed in range(20):
            state = committed(recipe, State(0, {}), [client(recipe, x, run_seed=run_seed)])
            after = committed(recipe, state, [client(recipe, x, state, run_seed=run_seed)])
            got = flat(model(recipe, after, x, run_seed=run_seed)) - flat(model(recipe, state, x, run_seed=run_seed))
            errors[allocation] = errors.get(allocation, 0) + float((got - flat(x)).square().sum())
    assert errors["error"] < 0.9 * errors["norm"]


@pytest.mark.parametrize("seeds", ["shared", "per_client"])
def test_by_size_no_norm_travels_and_all_rounds_are_cut_as_the_first(seeds):
    """sqrt of 4096, 64 and 16 numbers are 64, 8 and 4 of a budget of 76, whatever the norms are."""
    recipe, x = (
        ferret(K=76, allocation="size", seeds=seeds),
        {"a": normal(4096), "b": 100 * normal(64), "c": normal(16)},
    )
    state = State(0, {})
    for _ in range(2):
        sent = client(recipe, x, state)
        assert sent.delta.keys() - {"seed"} == {"coordinates"}
        assert sent.delta.keys() == recipe.spec(layout_of(x), Plan("", 0, 0)).keys()
        before, state = state, committed(recipe, state, [sent, client(recipe, x, state)])
        got, want = model(recipe, state, x), model(recipe, before, x) if before.version else None
        z = families.make("hadamard", philox.derive(SEED, "ferret", before.version), 64)
        if seeds == "shared":
            gamma = sent.delta["coordinates"].split([64, 8, 4])[0]
            sketch.rebuild(z, "a", gamma, out := torch.zeros_like(x["a"]))
            assert torch.allclose(got["a"], out + (want["a"] if want else 0), atol=1e-3)
    assert not any("norms" in n for n in state.tensors)


# -- from the client to the model

X = {"a": normal(16, 16), "b": 4 * normal(64, seed=2), "c": normal(5, seed=3) / 10}


def test_with_enough_directions_the_model_is_the_weighted_mean_of_the_clients():
    """Every element of every block exactly once: K covers all, lstsq loses nothing; weights 30 and 10."""
    recipe, y = ferret(scale="lstsq"), {n: normal(*x.shape, seed=9) for n, x in X.items()}
    state = committed(recipe, State(0, {}), [client(recipe, x) for x in (X, y)], [30, 10])
    got = model(recipe, state, X)
    for n, x in X.items():
        assert torch.allclose(got[n], 0.75 * x + 0.25 * y[n], atol=1e-4)


def test_on_lora_factors_with_enough_directions_it_is_fedit():
    ours, theirs = toy(ferret(scale="lstsq", space="lora")), toy(fedit())
    a, b = ours.state(), theirs.state()
    for _ in range(3):
        a = ours.step(a, [ours.update(a, k) for k in range(3)])
        b = theirs.step(b, [theirs.update(b, k) for k in range(3)])
    want = theirs.outputs(b)
    assert float((want - theirs.outputs(theirs.state())).norm()) > 0.1
    assert float((ours.outputs(a) - theirs.outputs(b)).norm() / want.norm()) < 1e-3


def test_one_block_is_the_whole_vector_on_as_many_directions():
    x = {"w": normal(1000)}
    sent = client(ferret(K=50), x).delta
    z = families.make("hadamard", philox.derive(SEED, "ferret", 0), 50)
    assert torch.equal(sent["coordinates"], sketch.coordinates(z, "w", x["w"]))
    assert float(sent["norms"]) == pytest.approx(float(x["w"].norm()))


def test_average_then_rebuild_is_rebuild_then_average():
    recipe = ferret(K=40)
    sent = [client(recipe, {n: normal(*x.shape, seed=s) for n, x in X.items()}) for s in (1, 2, 3)]
    together = model(recipe, committed(recipe, State(0, {}), sent), X)
    alone = [model(recipe, committed(recipe, State(0, {}), [t]), X) for t in sent]
    assert torch.allclose(flat(together), sum(map(flat, alone)) / 3, atol=1e-5)


@pytest.mark.parametrize("scale", ["unbiased", "projection", "norm", "lstsq"])
def test_with_norm_the_rebuilt_blocks_are_as_large_as_the_update(scale):
    got = rebuilt(ferret(K=30, scale=scale), X)
    sizes = [float(got[n].norm() / x.norm()) for n, x in X.items()]
    assert (sizes == pytest.approx([1, 1, 1], rel=1e-4)) == (scale == "norm")


def test_the_budget_of_a_round_follows_the_norms_of_the_round_before():
    recipe = ferret(K=60)
    first = committed(recipe, State(0, {}), [client(recipe, X)])
    norms = first.tensors["0.norms"].view(torch.float32)
    assert torch.allclose(norms, torch.tensor([float(x.norm()) for x in X.values()]))
    counts = sketch.allocate(norms.tolist(), [256, 64, 5], 60)
    assert counts != sketch.allocate([16.0, 8.0, 5**0.5], [256, 64, 5], 60)
    sent = client(recipe, X, first).delta["coordinates"].split(counts)
    for (n, x), k, gamma in zip(X.items(), counts, sent, strict=True):
        z = families.make("hadamard", philox.derive(SEED, "ferret", 1), k)
        assert torch.allclose(gamma, sketch.coordinates(z, n, x), atol=1e-5 * float(x.norm()))  # (w + x) - w rounds
        sketch.rebuild(z, n, gamma, out := torch.zeros_like(x))
        after = model(recipe, committed(recipe, first, [client(recipe, X, first)]), X)[n]
        assert torch.allclose(after, model(recipe, first, X)[n] + out, atol=1e-4)


def test_coordinates_of_all_blocks_are_of_like_size():
    """|D_l| = 1, 10, 100 on K_l in proportion: one codec's step fits them all."""
    recipe, x = ferret(K=444), {n: 10**i * normal(4096) / 64 for i, n in enumerate("abc")}
    sent = client(recipe, x, committed(recipe, State(0, {}), [client(recipe, x)])).delta["coordinates"]
    rms = [float(g.square().mean().sqrt()) for g in sent.split([4, 40, 400])]
    assert max(rms) / min(rms) < 3


def test_the_servers_rate_is_in_the_state_and_not_in_the_replay():
    once_, thrice = ferret(K=40), ferret(K=40, server_lr=3.0)
    sent = [client(once_, X)]
    a, b = committed(once_, State(0, {}), sent), committed(thrice, State(0, {}), sent)
    assert torch.equal(3 * a.tensors["0.coordinates"], b.tensors["0.coordinates"])
    assert torch.equal(flat(model(once_, b, X)), flat(model(thrice, b, X)))
    assert torch.allclose(3 * flat(model(once_, a, X)), flat(model(once_, b, X)), atol=1e-4)


@pytest.mark.parametrize("options", [{}, {"seeds": "per_client"}, {"variant": "reference", "K": 20}], ids=str)
@pytest.mark.parametrize("down", ["fp32", "fp16", "int8"])
def test_a_late_joiner_has_the_veterans_bits_in_every_codec(options, down):
    recipe = ferret(**{"K": 40, **options})
    state, held = State(0, {}), State(0, {})
    for _ in range(4):
        sent = [client(recipe, X, state, seed=k) for k in (1, 2)]
        state = committed(recipe, state, sent)
        plan = Plan(RUN, state.version, state.version, held.version)
        came = messages.roundtrip(recipe.downlink(state, held.version, plan), down)
        held = State(state.version, recipe.receive(held, Plan(RUN, 0, state.version, held.version, tensors=came)))
        veteran = model(recipe, held, X)
    news = messages.roundtrip(recipe.downlink(state, None, plan), down)
    late = ferret(**{"K": 40, **options})
    newcomer = model(late, State(4, recipe.receive(None, Plan(RUN, 4, 4, tensors=news))), X)
    assert torch.equal(flat(newcomer), flat(veteran))
    exact = flat(model(recipe, state, X))
    assert float((flat(newcomer) - exact).norm() / exact.norm()) < {"fp32": 1e-9, "fp16": 1e-3, "int8": 2e-2}[down]


def test_the_largest_move_is_measured_against_the_weights_by_hand():
    """|Z gamma| / |w| after the step: w0 = 1 in 4 entries, x = (1, 1, 1, 1): w = 2, so 1/2, and 3/2 at eta_g = 3."""
    x = {"w": torch.ones(4)}
    for rate in (1.0, 3.0):
        told = client(ferret(K=4, server_lr=rate), x, w0=1.0).metrics
        assert told["largest_move"] == pytest.approx(rate / 2, rel=1e-4)


# -- whose directions


def squared_error(seeds: str, x: list[dict], n: int = 12) -> float:
    recipe, mean = ferret(K=16, seeds=seeds), sum(map(flat, x)) / len(x)
    total = 0.0
    for run_seed in range(n):
        sent = [client(recipe, v, run_seed=run_seed, seed=100 * run_seed + k) for k, v in enumerate(x)]
        state = committed(recipe, State(0, {}), sent)
        total += float((flat(model(recipe, state, x[0], run_seed=run_seed)) - mean).square().sum()) / n
    return total


def test_shared_directions_cost_as_much_as_the_sum_and_own_ones_as_the_parts():
    """4 clients, d / K - 1 = 15. All send x: 15 |x|^2 if shared, a quarter of that else. Orthogonal: equal."""
    x = {"w": normal(256)}
    size = float(flat(x) @ flat(x))
    assert squared_error("shared", [x] * 4) == pytest.approx(15 * size, rel=0.2)
    assert squared_error("per_client", [x] * 4) == pytest.approx(15 * size / 4, rel=0.2)
    parts = [{"w": torch.where(torch.arange(256) // 64 == k, x["w"], 0.0)} for k in range(4)]
    shared, own = squared_error("shared", parts), squared_error("per_client", parts)
    assert shared == pytest.approx(15 * size / 16, rel=0.2)
    assert own == pytest.approx(15 * size / 16, rel=0.2)


def test_directions_are_fresh_in_every_round_unless_fixed_and_only_then_the_error_stays():
    """16 rounds of one update on 32 of 256: the mean is off by (256 / 32 - 1) / 16 of |x|^2, or as far as one round."""
    x = {"w": normal(256)}
    for seeds, law in [("shared", 7 / 16), ("fixed", 7.0)]:
        recipe, state = ferret(K=32, seeds=seeds), State(0, {})
        for _ in range(16):
            state = committed(recipe, state, [client(recipe, x, state)])
        mean = flat(model(recipe, state, x)) / 16
        assert float((mean - flat(x)).square().sum() / flat(x).square().sum()) == pytest.approx(law, rel=0.3)


def test_own_seeds_travel_whole_and_differ():
    recipe = ferret(K=20, seeds="per_client")
    sent = [client(recipe, X, seed=k) for k in range(8)]
    state = committed(recipe, State(0, {}), sent, list(range(1, 9)))
    want = [philox.derive(k, "ferret") for k in range(8)]
    told = state.tensors["0.seed"].tolist()
    assert [(low % 2**32) + (high % 2**32) * 2**32 for low, high in told] == want
    assert any(low < 0 for low, _ in told)  # the sign of an int32 is a bit like any other
    alone = [model(recipe, committed(recipe, State(0, {}), [t]), X) for t in sent]
    together = sum((k + 1) / 36 * flat(m) for k, m in enumerate(alone))
    assert torch.allclose(flat(model(recipe, state, X)), together, atol=1e-4)


# -- error feedback


@pytest.mark.parametrize("scale", ["projection", "mmse", "lstsq"])
def test_with_error_feedback_the_rounds_add_up_to_all_that_was_learned(scale):
    """Sum of what was applied = sum of the updates - what the client still keeps, to the last round."""
    recipe, state, kept, total = ferret(K=40, scale=scale, error_feedback=True), State(0, {}), {}, 0
    for round_ in range(12):
        x = {n: normal(*v.shape, seed=50 + round_) for n, v in X.items()}
        told = client(recipe, x, state, kept=kept)
        state, kept, total = committed(recipe, state, [told]), told.kept, total + flat(x)
    assert {n: tuple(v.shape) for n, v in kept[OWNER].items()} == {n: tuple(v.shape) for n, v in X.items()}
    assert torch.allclose(flat(model(recipe, state, X)) + flat(kept[OWNER]), total, atol=1e-3)


def test_error_feedback_brings_back_what_projections_leave_out():
    """A constant update on 64 of 256 directions, 40 rounds: without, 1/4 of it arrives; with, all but some rounds."""
    x, arrived = {"w": normal(256)}, {}
    for feedback in (False, True):
        recipe, state, kept = ferret(K=64, scale="projection", error_feedback=feedback), State(0, {}), {}
        for _ in range(40):
            told = client(recipe, x, state, kept=kept)
            state, kept = committed(recipe, state, [told]), told.kept
        arrived[feedback] = float(flat(model(recipe, state, x)) @ flat(x) / (40 * flat(x) @ flat(x)))
    assert arrived[False] == pytest.approx(0.25, abs=0.05)
    assert arrived[True] > 0.85


def test_nothing_is_kept_without_error_feedback():
    assert not ferret().keeps
    assert not client(ferret(K=40), X).kept


# -- by the papers' own formulas


def test_given_directions_by_hand():
    """z = (1, 1), (1, -1), D = (3, 1): <z, D> = 4, 2; gamma = 2, 1; rebuilt (3, 1)."""
    table = Table({"w": torch.tensor([[1.0, 1.0], [1.0, -1.0]])})
    x = {"w": torch.tensor([3.0, 1.0])}
    recipe = ferret(K=2, table=table)
    assert client(recipe, x).delta["coordinates"].tolist() == [2.0, 1.0]
    assert rebuilt(recipe, x)["w"].tolist() == [3.0, 1.0]
    published = ferret(K=2, table=table, variant="reference")
    assert rebuilt(published, x)["w"].tolist() == pytest.approx([1.0, 1 / 3])


def truncated_normal(d: int, k: int) -> tuple[torch.Tensor, float]:
    """(k directions of standard normals cut at +-1/sqrt(d) as float64 [k, d], their variance rho)."""
    a, gauss = 1 / math.sqrt(d), torch.distributions.Normal(0.0, 1.0)
    u = torch.rand((k, d), generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    inside = float(gauss.cdf(torch.tensor(a, dtype=torch.float64))) * 2 - 1
    v = torch.special.ndtri(0.5 + (u - 0.5) * inside)
    return v, 1 - 2 * a * math.exp(-a * a / 2) / math.sqrt(2 * math.pi) / inside


def test_the_papers_equations_with_the_papers_directions():
    """gamma = V^T D / (rho K), D' = V gamma, in float64; 3 d rho = 0.9995 at d = 256; our z is v / sqrt(rho)."""
    v, rho = truncated_normal(256, 32)
    assert 3 * 256 * rho == pytest.approx(0.9995, abs=5e-5)
    assert float(v.var()) == pytest.approx(rho, rel=0.05)
    x = {"w": normal(256)}
    want = v.T @ (v @ x["w"].double() / (rho * 32))
    got = rebuilt(ferret(K=32, table=Table({"w": v / math.sqrt(rho)})), x)["w"]
    assert float((got - want).norm() / want.norm()) < 1e-5


def test_the_published_codes_scale_is_a_third():
    """d / n sum <v, D> v over the seeds it picked, with the same v: what the reference variant computes."""
    v, _ = truncated_normal(256, 32)
    x = {"w": normal(256)}
    recipe = ferret(K=32, table=Table({"w": v * math.sqrt(3 * 256)}), variant="reference")
    want = 256 / 32 * v.T @ (v @ x["w"].double())
    got = rebuilt(recipe, x)["w"]
    assert float((got - want).norm() / want.norm()) < 1e-5
    slopes = torch.tensor(
        [
            float(rebuilt(ferret(K=32, variant="reference"), x, run_seed=s)["w"] @ x["w"] / (x["w"] @ x["w"]))
            for s in range(60)
        ]
    )
    assert float(slopes.mean()) == pytest.approx(1 / 3, abs=0.06)
    assert float(slopes.std()) / 60**0.5 < 0.02  # 0.06 is three standard errors


def as_published(blocks, v, clients, slr, order) -> dict[str, torch.Tensor]:
    """The change of weights by the published code, whose directions are v_l, [K, d_l]: project, average, update.

    `order`: of the seeds that a block takes, in place of a random one.
    """
    moved = {n: torch.zeros(x.numel(), dtype=torch.float64) for n, x in clients[0].items()}
    for block, base in zip(blocks, v, strict=True):
        coordinates = torch.zeros(len(base), dtype=torch.float64)
        for x in clients:
            delta = -torch.cat([x[n].flatten() for n in block]).double()  # old - new
            most = max(float(torch.cat([x[n].flatten() for n in b]).norm()) for b in blocks)
            some = order[: max(int(float(delta.norm()) / most * len(base)), 2)]
            coordinates[some] += (base[some] @ delta) * base.shape[1] / len(some) / len(clients)
        for coordinate, direction in zip(coordinates, base, strict=True):
            term = coordinate * direction
            term *= min(1, 10 / (float(term.norm()) + 1e-8))
            for n, part in zip(block, term.split([clients[0][n].numel() for n in block]), strict=True):
                moved[n] -= slr * part
    return moved


@pytest.mark.parametrize(("size", "clipped"), [(1.0, False), (1e3, True)])
def test_the_reference_joins_blocks_clips_terms_and_counts_clients_alike(size, clipped):
    """Against the published code in short: two blocks of norm `size` on 8 seeds, one of half that on 4; 30 and 10."""
    blocks, signs = [("big",), ("z", "a"), ("last",)], [normal(64, seed=s).sign() for s in (1, 2)]
    clients = [
        {"big": size * s / 8, "z": size * s[:8] / 4, "a": size * s[8:16] / 4, "last": -size * s / 16} for s in signs
    ]
    v = [truncated_normal(d, 8)[0] for d in (64, 16, 64)]
    z = [x.float() * math.sqrt(3 * x.shape[1]) for x in v]
    table = Table({"big": z[0], "z": z[1][:, :8], "a": z[1][:, 8:], "last": z[2]})
    order = [3, 1, 4, 0, 5, 2, 6, 7]
    recipe = ferret(K=8, table=table, variant="reference", server_lr=10.0, draws=order)
    sent = [client(recipe, x) for x in clients]
    assert all(t.delta["coordinates"].shape == (24,) for t in sent)
    got = model(recipe, committed(recipe, State(0, {}), sent, [30, 10]), clients[0])
    want = as_published(blocks, v, clients, 10.0, order)
    for n, x in got.items():
        assert float((x - want[n]).norm() / want[n].norm()) < 1e-5
    # the same without the clip, which is linear
    small = as_published(blocks, v, [{n: x / 1e6 for n, x in c.items()} for c in clients], 10.0, order)
    assert torch.allclose(1e6 * flat(small), flat(want), rtol=1e-4) != clipped


def test_the_published_code_picks_seeds_by_the_size_of_the_block():
    """|D| = 8, 3, 0 of K = 16: all 16, 6, and 2 which are zero; other clients pick others; rounds change nothing."""
    x = {"a": torch.full((64,), 1.0), "b": torch.full((64,), 3 / 8), "c": torch.zeros(64)}
    recipe = ferret(K=16, variant="reference")
    table = client(recipe, x).delta["coordinates"].view(3, 16)
    assert [int(row.count_nonzero()) for row in table] == [16, 6, 0]
    other = client(recipe, x, seed=6).delta["coordinates"].view(3, 16)
    assert torch.equal(other[0], table[0])
    assert not torch.equal(other[1] != 0, table[1] != 0)
    both = (other[1] != 0) & (table[1] != 0)
    assert torch.equal(other[1][both], table[1][both])  # the same directions, scaled alike
    state = committed(recipe, State(0, {}), [client(recipe, x)])
    assert torch.equal(client(recipe, x, state).delta["coordinates"].view(3, 16)[0], table[0])
    assert client(recipe, x).delta.keys() == {"coordinates"}


# -- what travels


@pytest.mark.parametrize(
    ("options", "up", "down"),
    [
        ({}, 4 * 2048 + 4 * 57, 4 * 2048 + 4 * 57),
        ({"seeds": "per_client"}, 4 * 2048 + 4 * 57 + 8, 10 * (4 * 2048 + 8) + 4 * 57),
        ({"variant": "reference", "K": 200}, 4 * 200 * 57, 4 * 200 * 57),
    ],
    ids=str,
)
def test_bytes_of_a_round_are_those_of_the_formula(options, up, down):
    """57 tensors, K = 2048, 10 clients: coordinates and norms; with own seeds everybody's coordinates come down."""
    recipe = ferret(**{"K": 2048, **options})
    layout = Layout(parameters={f"layers.{i}.weight": (256, 256) for i in range(57)})
    plan = Plan(RUN, 0, 0, steps=10, learning_rate=0.1)
    spec = recipe.spec(layout, plan)
    assert messages.body_bytes(spec, "fp32") == up
    types = {"float32": torch.float32, "int32": torch.int32}
    delta = {n: torch.ones(s.shape, dtype=types[s.dtype]) for n, s in spec.items()}
    assert up <= len(messages.encode_update(Update(delta, 5, run=RUN), "fp32")) <= up + 200
    state = committed(recipe, State(0, {}), [Trained(delta, {})] * 10)
    sent = Plan(RUN, 1, 1, 0, tensors=recipe.downlink(state, 0, plan))
    assert down <= len(messages.encode_plan(sent, "fp32")) <= down + 250
    if not options:  # half precision: 2 bytes a coordinate, and the norms whole
        assert messages.body_bytes(spec, "fp16") <= 2 * 2048 + 2 * 57 + 2
        assert len(messages.encode_plan(sent, "fp16")) <= 2 * 2048 + 4 * 57 + 250


def test_a_negative_norm_is_refused():
    sent = client(ferret(K=40), X).delta
    ferret(K=40).admit(sent, Plan(RUN, 0, 0))
    with pytest.raises(RejectedUpdate, match="a norm is negative"):
        ferret(K=40).admit({**sent, "norms": -sent["norms"]}, Plan(RUN, 0, 0))


def test_a_mean_over_nobody_is_refused():
    for recipe in (ferret(), ferret(seeds="per_client")):
        with pytest.raises(ValueError, match="none"):
            recipe.aggregate(iter([]))


def test_what_is_declared_is_so():
    shared, own = ferret(), ferret(seeds="per_client")
    assert (shared.linear, shared.ring_summable, shared.reveals_clients) == (True, True, False)
    assert (own.linear, own.ring_summable, own.reveals_clients) == (False, False, True)
    published = ferret(variant="reference", K=8)
    assert (published.linear, published.ring_summable, published.reveals_clients) == (False, False, False)
    assert ferret(error_feedback=True, scale="lstsq").keeps


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"K": 1}, "2 <= K"),
        ({"server_lr": 0.0}, "server_lr > 0"),
        ({"scale": "unbaised"}, "did you mean 'unbiased'"),
        ({"seeds": "own"}, "seeds is 'own'"),
        ({"allocation": "sizes"}, "did you mean 'size'"),
        ({"space": "half"}, "space is 'half'"),
        ({"family": "hadamrd"}, "did you mean 'hadamard'"),
        ({"variant": "old"}, "variant is 'old'"),
        ({"error_feedback": True}, "grows without bound"),
        ({"error_feedback": True, "scale": "norm"}, "grows without bound"),
        ({"error_feedback": True, "scale": "lstsq", "variant": "reference"}, "grows without bound"),
        ({"variant": "reference", "K": 5000}, "K <= 4096"),
        ({"variant": "reference", "scale": "norm"}, "leave both out"),
        ({"variant": "reference", "seeds": "per_client"}, "leave both out"),
        ({"table": Table({"w": torch.ones(1, 3)})}, "at least 2 directions, got 1"),
        ({"table": Table({"w": torch.ones(3, 3)}), "variant": "reference", "K": 4}, "at least 4 directions, got 3"),
    ],
    ids=str,
)
def test_options_that_make_no_sense_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        ferret(**options)


@pytest.mark.parametrize(
    "options",
    [
        {"K": 40, "scale": "projection", "error_feedback": True},
        {"K": 32, "seeds": "per_client"},
        {"K": 32, "variant": "reference"},
    ],
    ids=str,
)
def test_the_contract_holds(options):
    strategy_contract(ferret(**options))
