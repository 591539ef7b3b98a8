"""Zeroth-order rules and walks: what each step is, in the span of its directions and outside."""

import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fedft.adapters.full import Full
from fedft.config import Local
from fedft.contract import Layout, Turn
from fedft.models.handle import ModelHandle
from fedft.randomness import families, philox
from fedft.randomness.independent import Table
from fedft.randomness.masked import Masked
from fedft.testing import RUN, SEED, Ready, ToyModel
from fedft.training import directional_derivatives, zeroth_order, zeroth_rules
from fedft.training.layers import by_layer
from fedft.training.zeroth_rules import Past, Walk
from fedft.update import Plan

X = torch.linspace(-1, 1, 40).reshape(5, 8)
WIDE = 0.25  # a distance of probes at which the rounding of losses does not show: trajectories can be compared
BATCH = {"x": X, "labels": torch.linspace(1, -1, 20).reshape(5, 4)}
RULES = ("sgd", "momentum", "adam", "sign", "conservative")
every_rule = pytest.mark.parametrize("rule", RULES)


def handle_of(model: nn.Module) -> ModelHandle:
    shapes = {n: tuple(p.shape) for n, p in model.named_parameters()}
    return ModelHandle(model, Layout(parameters=dict(sorted(shapes.items()))), Full())


def turn_of(steps: int, lr: float, **local) -> Turn:
    plan = Plan(RUN, 0, 0, steps=steps, learning_rate=lr)
    return Turn(plan, {}, "", Local(learning_rate=lr, **local), SEED, 5)


def weights(handle: ModelHandle) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in handle.parameters().values()]).clone()


def walked(how: Walk, steps=6, lr=0.05, *, model=None, family="hadamard", batch=BATCH, z=None, draws=None, **local):
    """(the walk in numbers, weights before, weights after)."""
    handle = handle_of(model or ToyModel())
    count = steps * how.samples
    z = z or families.make(family, SEED, count)
    before = weights(handle)
    data = batch if isinstance(batch, Ready) else Ready(batch)
    found = zeroth_order.walk(handle, data, turn_of(steps, lr, **local), how, z, draws or range(count))
    return found, before, weights(handle)


def along(z, c: torch.Tensor, model=None) -> torch.Tensor:
    """sum_j c_j z_j over the model's parameters, in float64."""
    shapes = {n: p.shape for n, p in handle_of(model or ToyModel()).parameters().items()}
    rows = (sum(float(c[j]) * z.direction(n, j, s).double() for j in range(z.count)) for n, s in shapes.items())
    return torch.cat([r.flatten() for r in rows])


def estimates(handle: ModelHandle, z, drawn, epsilon=1e-3) -> dict[str, torch.Tensor]:
    """ghat = mean of g_j z_j, dense, by name."""
    slopes = [directional_derivatives.two_point(handle, BATCH, z, j, epsilon)[0] for j in drawn]
    return {
        n: sum(g * z.direction(n, j, p.shape) for g, j in zip(slopes, drawn, strict=True)) / len(drawn)
        for n, p in handle.parameters().items()
    }


def with_torch(make, steps: int, q: int, family: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(weights before, after) of torch's own optimiser fed with dense estimates."""
    handle, z = handle_of(ToyModel()), families.make(family, SEED, steps * q)
    before, optimizer = weights(handle), make(list(handle.parameters().values()))
    for s in range(steps):
        ghat = estimates(handle, z, range(s * q, (s + 1) * q), WIDE)
        for n, p in handle.parameters().items():
            p.grad = ghat[n]
        optimizer.step()
    return before, weights(handle)


def near(x: torch.Tensor, y: torch.Tensor, before: torch.Tensor, tolerance: float = 1e-5) -> bool:
    moved = (y.double() - before.double()).norm()
    return bool(moved > 1e-3 and (x.double() - y.double()).norm() <= tolerance * moved)


# -- the base case


def test_one_sample_of_plain_steps_is_the_two_point_step_bit_for_bit():
    handle, z = handle_of(ToyModel()), families.make("hadamard", SEED, 6)
    c = []
    for j in range(6):
        g, _ = directional_derivatives.two_point(handle, BATCH, z, j, 1e-3)
        directional_derivatives.step(handle, z, j, -0.05 * g)
        c.append(0.05 * g)
    found, _, after = walked(Walk())
    assert torch.equal(after, weights(handle))
    assert found.moved.tolist() == c


def test_several_samples_are_averaged():
    """One step of q = 5: w - eta sum_i g_i z_i / 5, all slopes from the same weights."""
    handle, z = handle_of(ToyModel()), families.make("hadamard", SEED, 5)
    ghat = torch.cat([x.flatten() for x in estimates(handle, z, range(5)).values()])
    found, before, after = walked(Walk(samples=5), steps=1)
    assert near(after, before - 0.05 * ghat, before)
    assert found.count.tolist() == [1] * 5


def test_momentum_zero_is_the_plain_step_bit_for_bit():
    plain, _, after = walked(Walk())
    found, _, too = walked(Walk(rule="momentum", momentum=0.0))
    assert torch.equal(after, too)
    assert torch.equal(plain.moved, found.moved)


@pytest.mark.parametrize(
    ("family", "q", "mu", "steps"),
    [("hadamard", 1, 0.9, 30), ("hadamard", 3, 0.9, 10), ("hadamard", 1, 0.5, 9), ("rademacher", 2, 0.9, 6)],
)
def test_momentum_from_slopes_alone_is_momentum_with_a_stored_moment(family, q, mu, steps):
    """In fewer steps than are remembered: 66 at mu = 0.9, 10 at 0.5."""
    before, want = with_torch(lambda p: torch.optim.SGD(p, lr=0.02, momentum=mu), steps, q, family)
    how = Walk(rule="momentum", momentum=mu, samples=q, epsilon=WIDE)
    _, _, after = walked(how, steps, 0.02, family=family)
    assert near(after, want, before)


@pytest.mark.parametrize(("family", "steps"), [("hadamard", 40), ("rademacher", 10)])
def test_adam_from_slopes_alone_is_adam_with_stored_moments(family, steps):
    before, want = with_torch(lambda p: torch.optim.Adam(p, lr=0.02), steps, 1, family)
    _, _, after = walked(Walk(rule="adam", epsilon=WIDE), steps, 0.02, family=family)
    assert near(after, want, before, 2e-5)


@pytest.mark.parametrize(("family", "q"), [("gaussian", 1), ("gaussian", 2), ("hadamard", 3)])
def test_outside_the_span_adam_keeps_its_moments(family, q):
    before, want = with_torch(lambda p: torch.optim.Adam(p, lr=0.02), 12, q, family)
    _, _, after = walked(Walk(rule="adam", samples=q, epsilon=WIDE), 12, 0.02, family=family)
    assert near(after, want, before, 2e-5)


def test_a_slope_is_forgotten_when_it_weighs_less_than_a_thousandth():
    """0.9^66 < 1e-3 <= 0.9^65: the momentum of step 70 is that of the last 66 slopes."""
    how, past = Walk(rule="momentum"), Past()
    for j in range(70):
        past = zeroth_rules.advance(how, past, {j: 1.0})
    step = zeroth_rules.distances(how, past, 1.0)
    assert min(step) == 4
    assert len(step) == 66
    assert step[4] == pytest.approx(-(0.9**65))


def test_what_is_forgotten_is_less_than_a_hundredth_of_the_momentum():
    """mu^66 / (1 - mu) = 0.0095 of a slope, where a whole momentum is 10."""
    before, want = with_torch(lambda p: torch.optim.SGD(p, lr=0.002, momentum=0.9), 85, 1, "hadamard")
    _, _, after = walked(Walk(rule="momentum", epsilon=WIDE), 85, 0.002)
    assert near(after, want, before, 1e-2)


@pytest.mark.parametrize("family", ["hadamard", "rademacher", "gaussian"])
def test_adams_first_step_has_magnitude_eta_in_every_coordinate(family):
    _, before, after = walked(Walk(rule="adam"), steps=1, lr=0.01, family=family)
    assert torch.allclose((after - before).abs(), torch.full_like(before, 0.01), rtol=1e-4)


@pytest.mark.parametrize(("family", "q"), [("hadamard", 1), ("hadamard", 3), ("gaussian", 1)])
def test_a_sign_step_is_eta_times_the_sign_of_the_estimate(family, q):
    handle, z = handle_of(ToyModel()), families.make(family, SEED, q)
    ghat = torch.cat([x.flatten() for x in estimates(handle, z, range(q)).values()])
    _, before, after = walked(Walk(rule="sign", samples=q), steps=1, lr=0.25, family=family)
    assert torch.allclose(after, before - 0.25 * ghat.sign(), atol=1e-6)


def test_the_two_readings_of_sign_coincide_for_directions_of_signs_only():
    exact, _, after = walked(Walk(rule="sign"))
    published, _, too = walked(Walk(rule="sign", variant="reference"))
    assert torch.equal(after, too)
    assert torch.equal(exact.moved, published.moved)
    _, _, after = walked(Walk(rule="sign"), family="gaussian")
    _, _, too = walked(Walk(rule="sign", variant="reference"), family="gaussian")
    assert not torch.allclose(after, too, atol=1e-3)


def test_the_published_sign_keeps_the_directions_magnitudes():
    handle, z = handle_of(ToyModel()), families.make("gaussian", SEED, 1)
    g, _ = directional_derivatives.two_point(handle, BATCH, z, 0, 1e-3)
    _, before, after = walked(Walk(rule="sign", variant="reference"), steps=1, lr=0.1, family="gaussian")
    assert near(after, before.double() - 0.1 * math.copysign(1, g) * along(z, torch.ones(1)), before)


# -- numbers of each kind, by hand


class Vector(nn.Module):
    """One parameter vector; the loss is <slope, w> + curvature |w|^2 / 2."""

    def __init__(self, w: list[float], slope: list[float], curvature: float = 0.0) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(w))
        self.slope, self.curvature, self.passes = torch.tensor(slope), curvature, 0

    def forward(self, factor: torch.Tensor) -> SimpleNamespace:
        self.passes += 1
        return SimpleNamespace(loss=factor * ((self.slope * self.w).sum() + self.curvature * self.w.square().sum() / 2))


ONE = {"factor": torch.tensor(1.0)}
UNITS = Table({"w": torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])})


def by_hand(how: Walk, model: Vector, lr: float, draws, z=UNITS, batch=ONE):
    found, _, after = walked(how, len(draws) // how.samples, lr, model=model, z=z, draws=draws, batch=batch)
    return found, after.tolist()


def test_momentum_by_hand():
    """Slopes 2 and 3 along the axes, then 2 again; mu 0.5, eta 0.1: c_0 = 0.1 (2 (1 + .5 + .25) + 2), c_1 = 0.45."""
    found, w = by_hand(Walk(rule="momentum", momentum=0.5, epsilon=0.5), Vector([0.0, 0.0], [2.0, 3.0]), 0.1, [0, 1, 0])
    assert found.moved.tolist() == pytest.approx([0.55, 0.45, 0.0], rel=1e-5)
    assert w == pytest.approx([-0.55, -0.45], rel=1e-5)


def test_adam_by_hand():
    """g = 3 then 4 along one direction of signs, mu 0.5, beta2 0.75: m' = 11/3, v' = (0.75 * 9 + 16) / 1.75 = 13."""
    z = Table({"w": torch.tensor([[1.0, -1.0]])})
    model = Vector([0.0, 0.0], [3.0, 0.0])
    batch = Ready(ONE, {"factor": torch.tensor(4 / 3)})
    found, w = by_hand(Walk(rule="adam", momentum=0.5, beta2=0.75, epsilon=0.5), model, 0.1, [0, 0], z, batch)
    c = 0.1 * (1 + (0.25 * 3 + 0.5 * 4) / 0.75 / math.sqrt((0.1875 * 9 + 0.25 * 16) / 0.4375))
    assert (0.1875 * 9 + 0.25 * 16) / 0.4375 == 13
    assert found.moved.tolist() == pytest.approx([c], rel=1e-5)
    assert w == pytest.approx([-c, c], rel=1e-5)


def test_a_one_sided_slope_is_off_by_half_epsilon_times_the_curvature():
    """L = |w|^2 / 2 at (1, 1) along (1, 1): g = 2 and z'Hz = 2, so one-sided with eps 0.25 is 2.25."""
    found, _ = by_hand(Walk(estimate="one_sided", epsilon=0.25), Vector([1.0, 1.0], [0.0, 0.0], 1.0), 0.1, [2])
    assert found.slopes.tolist() == pytest.approx([0.0, 0.0, 2.25], rel=1e-6)
    found, _ = by_hand(Walk(epsilon=0.25), Vector([1.0, 1.0], [0.0, 0.0], 1.0), 0.1, [2])
    assert found.slopes.tolist() == pytest.approx([0.0, 0.0, 2.0], rel=1e-6)


@pytest.mark.parametrize(
    ("lr", "want"),
    [(0.5, 2.0), (3.0, 4.0)],
    ids=["a step that helps is taken", "one that overshoots is not"],
)
def test_conservative_keeps_the_best_of_three_by_hand(lr, want):
    """L = w^2 / 2 at w = 4: g = 4; eta 0.5 goes to 2; eta 3 would go to -8 or 16, so w stays."""
    model = Vector([4.0, 0.0], [0.0, 0.0], 1.0)
    found, w = by_hand(Walk(rule="conservative", epsilon=0.5), model, lr, [0])
    assert w == pytest.approx([want, 0.0], rel=1e-6)
    assert found.moved.tolist() == pytest.approx([4.0 - want, 0.0, 0.0], rel=1e-6)


def test_conservative_turns_round_where_the_other_way_is_downhill():
    """L = |w|, one-sided at w = 0.25 with eps 1: g = 1 > 0... at w = -0.25: g = (0.75 - 0.25) / 1 = 0.5, uphill."""

    class Absolute(Vector):
        def forward(self, factor: torch.Tensor) -> SimpleNamespace:
            return SimpleNamespace(loss=self.w[0].abs())

    model = Absolute([-0.25, 0.0], [0.0, 0.0])
    how = Walk(rule="conservative", estimate="one_sided", epsilon=1.0)
    found, w = by_hand(how, model, 0.25, [0])
    assert found.slopes[0] == 0.5  # w - 0.125 has |w| = 0.375, w + 0.125 has 0.125
    assert w == [-0.125, 0.0]
    assert found.moved.tolist() == [-0.125, 0.0, 0.0]


@pytest.mark.parametrize("options", [{}, {"samples": 3}, {"blocks": True}, {"estimate": "one_sided"}], ids=str)
@pytest.mark.parametrize("lr", [0.05, 1.0, 30.0])
def test_conservative_never_increases_the_loss_of_the_batch_it_looked_at(options, lr):
    model = Layers()
    handle = handle_of(model)
    how, z = Walk(rule="conservative", **options), families.make("hadamard", SEED, how_many := 24)
    before = directional_derivatives.loss(handle, LAYERED)
    for s in range(how_many // how.samples):
        drawn = range(s * how.samples, (s + 1) * how.samples)
        zeroth_order.walk(handle, Ready(LAYERED), turn_of(1, lr), how, z, drawn)
        after = directional_derivatives.loss(handle, LAYERED)
        assert after <= before
        before = after


# -- what every rule keeps


@every_rule
def test_every_rule_takes_the_same_directions_in_the_same_order(rule, monkeypatch):
    seen, honest = [], directional_derivatives.two_point
    monkeypatch.setattr(
        directional_derivatives, "two_point", lambda h, b, z, j, *more: (seen.append(j), honest(h, b, z, j, *more))[1]
    )
    draws = [3, 1, 4, 1, 5, 0]
    walked(Walk(rule=rule, samples=2), steps=3, z=families.make("hadamard", SEED, 6), draws=draws)
    assert seen == draws


@every_rule
@pytest.mark.parametrize("family", ["hadamard", "rademacher"])
def test_a_walk_in_the_span_is_the_sum_it_reports(rule, family):
    z = families.make(family, SEED, 8)
    found, before, after = walked(Walk(rule=rule), 8, 0.05, z=z)
    assert near(after, before - along(z, found.moved), before)


@every_rule
@pytest.mark.parametrize("family", ["hadamard", "gaussian"])
@pytest.mark.parametrize("q", [1, 2])
def test_a_learning_rate_of_zero_leaves_every_bit(rule, family, q):
    found, before, after = walked(Walk(rule=rule, samples=q), lr=0.0, family=family)
    assert torch.equal(before, after)
    assert not found.moved.any()


@every_rule
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_step_with_a_non_finite_loss_is_absent_everywhere(rule, bad):
    z = Table({"w": torch.tensor([[1.0, -1.0]])})
    how = Walk(rule=rule, epsilon=0.5)
    broken = Ready(ONE, {"factor": torch.tensor(bad)})
    found, w = by_hand(how, Vector([5.0, 5.0], [1.0, 2.0], 1.0), 0.1, [0] * 4, z, broken)
    clean, v = by_hand(how, Vector([5.0, 5.0], [1.0, 2.0], 1.0), 0.1, [0] * 2, z)
    assert w == v
    assert torch.equal(found.moved, clean.moved)
    assert (found.count.tolist(), found.metrics) == ([2], clean.metrics)


def test_a_walk_without_a_finite_loss_is_an_error():
    with pytest.raises(FloatingPointError, match="non-finite"):
        by_hand(Walk(), Vector([5.0, 5.0], [1.0, 2.0]), 0.1, [0, 1], batch={"factor": torch.tensor(math.nan)})


@every_rule
def test_no_walk_is_longer_than_its_bound(rule):
    """Slopes between -3 and 3 that change wildly: sum |c_j| of every step within eta x reach."""
    how = Walk(rule=rule, momentum=0.8, beta2=0.95, scalar_clip=3.0)
    slopes = 3 * (2 * philox.uniform(1, 2, rule, (300,)) - 1) * 10.0 ** -torch.arange(300).remainder(7)
    past = Past()
    for j, g in enumerate(slopes.tolist()):
        past = zeroth_rules.advance(how, past, {j: g})
        step = zeroth_rules.distances(how, past, 0.1)
        assert sum(map(abs, step.values())) <= 0.1 * how.largest_step()


@pytest.mark.parametrize(
    ("options", "passes"),
    [
        ({}, 2),
        ({"samples": 3}, 6),
        ({"estimate": "one_sided"}, 2),
        ({"estimate": "one_sided", "samples": 3}, 4),
        ({"estimate": "forward"}, 1),
        ({"rule": "momentum"}, 2),
        ({"rule": "adam"}, 2),
        ({"rule": "sign"}, 2),
        ({"rule": "conservative"}, 5),
        ({"rule": "conservative", "estimate": "one_sided"}, 4),
        ({"sparsity": 0.5}, 2),
        ({"blocks": True}, 8),
        ({"blocks": True, "estimate": "one_sided"}, 5),
        ({"blocks": True, "coordinate": True, "estimate": "one_sided"}, 8),
        ({"first_order_from": 2}, 3),
    ],
    ids=str,
)
def test_forward_passes_per_step(options, passes):
    """The table of the benchmark; `Layers` has four blocks."""
    model = Layers()
    walked(Walk(**options), steps=1, model=model, batch=LAYERED)
    assert model.passes == passes


# -- forward mode


def test_a_forward_walk_moves_by_the_exact_slope():
    handle, z = handle_of(ToyModel()), families.make("hadamard", SEED, 6)
    found, _, _ = walked(Walk(estimate="forward"), steps=1)
    gradient = torch.autograd.grad(handle.loss(BATCH), list(handle.parameters().values()))
    names = handle.parameters()
    want = sum(float((g * z.direction(n, 0, g.shape)).sum()) for n, g in zip(names, gradient, strict=True))
    assert float(found.slopes[0]) == pytest.approx(want, rel=1e-5)


# -- masks


def test_sparsity_zero_is_dense_bit_for_bit():
    z = families.make("hadamard", SEED, 6)
    assert Walk().masked(z, 1) is z
    _, _, after = walked(Walk(), z=Masked(z, 1, 0.0))
    assert torch.equal(after, walked(Walk(), z=z)[2])


@every_rule
@pytest.mark.parametrize("family", ["hadamard", "gaussian"])
def test_probes_and_steps_have_the_same_support(rule, family):
    how = Walk(rule=rule, sparsity=0.6)
    z = how.masked(families.make(family, SEED, 6), SEED)
    model, seen = ToyModel(), []
    model.first.register_forward_hook(lambda m, a, o: seen.append(m.weight.detach().clone()))
    w0 = model.first.weight.detach().clone()
    walked(how, 5, model=model, z=z)  # an odd number: five signs never cancel
    kept = z.kept("first.weight", 0, 48).view(6, 8)
    assert torch.equal(seen[0] != w0, kept)
    assert torch.equal(model.first.weight != w0, kept)


def test_new_masks_come_every_so_many_steps():
    how = Walk(sparsity=0.5, resample=2)
    supports, model = [], ToyModel()
    handle, z = handle_of(model), families.make("hadamard", SEED, 6)
    for steps in range(1, 7):
        fresh = handle_of(ToyModel())
        zeroth_order.walk(fresh, Ready(BATCH), turn_of(steps, 0.05), how, z, range(6))
        supports.append(weights(fresh) != weights(handle))
    assert torch.equal(supports[0], supports[1])
    assert bool((supports[2] & ~supports[1]).any())
    assert torch.equal(supports[2], supports[3])
    assert bool((supports[4] & ~supports[3]).any())


# -- blocks, and a part by back-propagation


class Layers(nn.Module):
    """An embedding, three equal layers and an output; the loss is a squared error."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Linear(4, 4), nn.Linear(4, 2, bias=False)
        self.layers = nn.ModuleList([nn.Linear(4, 4) for _ in range(3)])
        self.passes, self.graphs = 0, []
        with torch.no_grad():
            for n, p in self.named_parameters():
                p.copy_(2 * philox.uniform(SEED, 2, n, tuple(p.shape)) - 1)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> SimpleNamespace:
        self.passes += 1
        h = [self.embed(x)]
        for layer in self.layers:
            h.append(torch.tanh(layer(h[-1])))
        self.graphs.append([y.requires_grad for y in h])
        y = self.out(h[-1])
        return SimpleNamespace(logits=y, loss=((y - labels) ** 2).mean())


LAYERED = {"x": torch.linspace(-1, 1, 24).reshape(6, 4), "labels": torch.linspace(1, -1, 12).reshape(6, 2)}
PARTS = [["embed.bias", "embed.weight", "out.weight"]] + [
    [f"layers.{k}.{x}" for x in ("bias", "weight")] for k in range(3)
]


def test_blocks_are_layers_and_all_that_is_in_none():
    assert by_layer(list(handle_of(Layers()).parameters())) == PARTS


def test_one_block_is_the_plain_step_bit_for_bit():
    plain, _, after = walked(Walk())
    found, _, too = walked(Walk(blocks=True))  # the toy model has no layers
    assert torch.equal(after, too)
    assert torch.equal(plain.moved, found.moved)


def block_steps(coordinate: bool) -> dict[str, torch.Tensor]:
    """One step by hand: every block moves by its own slope, from copies that are moved in its own entries only."""
    model, z = Layers(), families.make("hadamard", SEED, 1)
    handle = handle_of(model)
    live, moves = handle.parameters(), {}
    for names in PARTS:
        losses = []
        for epsilon in (1e-3, -1e-3):
            w0 = {n: live[n].detach().clone() for n in names}
            for n in names:
                live[n].data.add_(epsilon * z.direction(n, 0, live[n].shape))
            losses.append(directional_derivatives.loss(handle, LAYERED))
            for n in names:
                live[n].data.copy_(w0[n])
        g = (losses[0] - losses[1]) / 2e-3
        for n in names:
            moves[n] = -0.05 * g * z.direction(n, 0, live[n].shape)
            if coordinate:
                live[n].data.add_(moves[n])
    return moves


@pytest.mark.parametrize("coordinate", [False, True])
def test_every_block_moves_by_its_own_slope(coordinate):
    want = block_steps(coordinate)
    model, w0 = Layers(), dict(Layers().named_parameters())
    walked(Walk(blocks=True, coordinate=coordinate), steps=1, model=model, batch=LAYERED)
    for n, p in model.named_parameters():
        assert torch.allclose(p - w0[n], want[n], atol=1e-5)
    other = block_steps(not coordinate)
    assert any(not torch.allclose(want[n], other[n], rtol=0.02) for n in want)


def test_blocks_of_one_shape_do_not_share_their_noise():
    """The published code seeds every block alike, so equal layers would move along equal directions."""
    model, w0 = Layers(), dict(Layers().named_parameters())
    walked(Walk(blocks=True, rule="sign"), steps=1, model=model, batch=LAYERED)
    moves = [(p - w0[n]).sign() for n, p in model.named_parameters() if n.startswith("layers") and n.endswith("weight")]
    assert all(not torch.equal(a, b) and not torch.equal(a, -b) for a, b in itertools.combinations(moves, 2))


@pytest.mark.parametrize("rule", ["momentum", "adam", "sign"])
def test_blocks_know_every_rule(rule):
    before = directional_derivatives.loss(handle_of(Layers()), LAYERED)
    model = Layers()
    walked(Walk(blocks=True, rule=rule), steps=15, lr=0.02, model=model, batch=LAYERED)
    assert directional_derivatives.loss(handle_of(model), LAYERED) < before


def test_the_deep_part_moves_by_its_gradient_and_the_shallow_one_by_slopes_at_the_deep_parts_old_value():
    old = Layers()
    handle, z = handle_of(old), families.make("hadamard", SEED, 1)
    deep = [f"layers.2.{x}" for x in ("bias", "weight")]
    shallow = [n for n in handle.parameters() if n not in deep]
    gradient = torch.autograd.grad(handle.loss(LAYERED), [handle.parameters()[n] for n in deep])
    g, _ = directional_derivatives.two_point(handle, LAYERED, z, 0, 1e-3, shallow)
    model, w0 = Layers(), dict(Layers().named_parameters())
    how = Walk(first_order_from=2, first_order_factor=3.0)
    walked(
        how, steps=1, model=model, batch=LAYERED, optimizer="sgd", momentum=0.0, weight_decay=0.0, max_grad_norm=None
    )
    now = dict(model.named_parameters())
    for n, x in zip(deep, gradient, strict=True):
        assert torch.allclose(now[n], w0[n] - 0.15 * x, atol=1e-6)
    for n in shallow:
        assert torch.allclose(now[n], w0[n] - 0.05 * g * z.direction(n, 0, w0[n].shape), atol=1e-6)


def test_no_graph_is_built_below_the_deep_part():
    model = Layers()
    walked(Walk(first_order_from=1), steps=1, model=model, batch=LAYERED)
    assert model.graphs == [[False, False, True, True], [False] * 4, [False] * 4]
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


@pytest.mark.parametrize(("first", "which"), [(3, "no"), (0, "no")])
def test_a_deep_part_that_is_not_there_is_an_error(first, which):
    model = Layers() if first else ToyModel()
    with pytest.raises(ValueError, match=f"{which} trained tensors"):
        walked(Walk(first_order_from=first), model=model, batch=LAYERED if first else BATCH)


def test_a_step_whose_gradient_is_not_finite_moves_neither_part():
    model, w0 = Layers(), dict(Layers().named_parameters())
    broken = {**LAYERED, "labels": torch.full((6, 2), math.nan)}
    with pytest.raises(FloatingPointError):
        walked(Walk(first_order_from=2), steps=2, model=model, batch=broken)
    assert all(torch.equal(p, w0[n]) for n, p in model.named_parameters())
    assert all(p.grad is None for p in model.parameters())


# -- other objectives


class Classifier(nn.Module):
    """Three classes from eight numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 3, bias=False)
        nn.init.zeros_(self.layer.weight)

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> SimpleNamespace:
        y = self.layer(x)
        return SimpleNamespace(logits=y, loss=None if labels is None else nn.functional.cross_entropy(y, labels))


@pytest.mark.parametrize("objective", ["accuracy", "f1"])
@pytest.mark.parametrize("rule", ["sgd", "conservative"])
def test_an_objective_without_a_gradient_improves(objective, rule):
    """64 rows whose class is where the largest of three numbers is; zero weights name class 0 everywhere."""
    x = 2 * philox.uniform(SEED, 2, "rows", (64, 8)) - 1
    batch = {"x": x, "labels": x[:, :3].argmax(1)}
    model = Classifier()
    handle = handle_of(model)
    before = directional_derivatives.measured[objective](handle, batch)
    how = Walk(objective=objective, rule=rule, epsilon=0.3, samples=4)
    zeroth_order.walk(handle, Ready(batch), turn_of(40, 0.3), how, families.make("hadamard", SEED, 160), range(160))
    assert before > 0.5
    assert directional_derivatives.measured[objective](handle, batch) < 0.25


# -- what makes no sense


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rule": "rmsprop"}, "rule"),
        ({"estimate": "central"}, "estimate"),
        ({"objective": "bleu"}, "objective"),
        ({"variant": "paper"}, "variant"),
        ({"epsilon": 0.0}, "epsilon"),
        ({"samples": 0}, "samples"),
        ({"momentum": 1.0}, "momentum"),
        ({"beta2": 1.0}, "beta2"),
        ({"sparsity": 1.0}, "sparsity"),
        ({"sparsity": -0.1}, "sparsity"),
        ({"rule": "adam", "momentum": 0.9, "beta2": 0.5}, "momentum <= beta2"),
        ({"estimate": "forward", "objective": "accuracy"}, "accuracy"),
        ({"coordinate": True}, "blocks"),
        ({"resample": 3}, "sparsity"),
        ({"scalar_clip": 0.0}, "scalar_clip"),
        ({"first_order_from": -1}, "first_order_from"),
    ],
    ids=str,
)
def test_options_that_make_no_sense_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        Walk(**options)


@pytest.mark.parametrize(
    ("options", "signs", "said"),
    [
        ({"rule": "adam"}, False, "signs"),
        ({"rule": "sign"}, False, "signs"),
        ({"rule": "adam", "samples": 2}, True, "samples = 1"),
        ({"rule": "sign", "samples": 2}, True, "samples = 1"),
        ({"blocks": True}, True, "derivative each"),
        ({"first_order_from": 2}, True, "back-propagation"),
        ({"sparsity": 0.5, "resample": 2}, True, "replay"),
    ],
    ids=str,
)
def test_steps_that_leave_the_span_say_why(options, signs, said):
    with pytest.raises(ValueError, match=f"{said}.*zo_fedavg"):
        Walk(**options).check_span(signs)


@pytest.mark.parametrize(
    ("options", "signs"),
    [
        ({}, False),
        ({"rule": "adam"}, True),
        ({"rule": "sign"}, True),
        ({"rule": "sign", "variant": "reference", "samples": 3}, False),
        ({"rule": "momentum", "samples": 3}, False),
        ({"rule": "conservative", "samples": 2}, False),
        ({"rule": "adam", "sparsity": 0.5}, True),
    ],
    ids=str,
)
def test_steps_that_stay_in_the_span_are_allowed(options, signs):
    Walk(**options).check_span(signs)


def test_which_directions_are_signs():
    assert zeroth_rules.signs(families.make("hadamard", 1, 2))
    assert zeroth_rules.signs(Masked(families.make("rademacher", 1, 2), 1, 0.5))
    assert not zeroth_rules.signs(Masked(families.make("gaussian", 1, 2), 1, 0.5))
    assert zeroth_rules.signs(Table({"w": torch.tensor([[1.0, -1.0]])}))
    assert not zeroth_rules.signs(Table({"w": torch.tensor([[1.0, 0.5]])}))
