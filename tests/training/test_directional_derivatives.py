"""Two-point slopes: exact where the loss is linear or quadratic, the directional derivative elsewhere."""

import itertools
import math
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fedft.adapters.full import Full
from fedft.adapters.lora import LoRA
from fedft.benchmarks import zo_step
from fedft.contract import Layout
from fedft.data.examples import IGNORED
from fedft.models.handle import ModelHandle
from fedft.randomness import families, philox
from fedft.randomness.independent import Table
from fedft.testing import ToyModel
from fedft.training import directional_derivatives

SEED = 11
X = {"x": torch.linspace(-1, 1, 40).reshape(5, 8), "labels": torch.linspace(1, -1, 20).reshape(5, 4)}


class Polynomial(nn.Module):
    """Loss <b, w> + w^T H w / 2 over two parameters w = (u, v) of 3 and 2 numbers; all numbers are dyadic, so exact."""

    def __init__(self, quadratic: bool, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.u = nn.Parameter(torch.tensor([1.0, -0.5, 2.0], dtype=dtype))
        self.v = nn.Parameter(torch.tensor([0.25, 4.0], dtype=dtype))
        self.b = torch.tensor([1.0, -2.0, 0.5, 3.0, -1.0])
        half = torch.arange(25.0).reshape(5, 5) / 8
        self.h = (half + half.T) if quadratic else torch.zeros(5, 5)

    def forward(self, factor: torch.Tensor) -> SimpleNamespace:
        w = torch.cat([self.u, self.v]).float()
        return SimpleNamespace(loss=factor * (self.b @ w + w @ self.h @ w / 2))

    def gradient(self) -> torch.Tensor:
        return (self.b + self.h @ torch.cat([self.u, self.v]).float()).detach()


ONCE = {"factor": torch.tensor(1.0)}
SIGNS = Table({"u": torch.tensor([[1.0, -1.0, 1.0], [1.0, 1.0, -1.0]]), "v": torch.tensor([[-1.0, -1.0], [1.0, -1.0]])})


def handle_of(model: nn.Module, fixed: bool = False) -> ModelHandle:
    shapes = {n: tuple(p.shape) for n, p in model.named_parameters()}
    return ModelHandle(model, Layout(parameters=dict(sorted(shapes.items()))), Full(along_directions=fixed))


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("epsilon", [2.0**-6, 0.5, 4.0])
@pytest.mark.parametrize("quadratic", [False, True], ids=["linear", "quadratic"])
def test_the_slope_is_exact_for_every_epsilon(quadratic, epsilon, index):
    """The even terms of L(w + eps z) - L(w - eps z) cancel: on a quadratic g = <grad, z>, not only in the limit."""
    model = Polynomial(quadratic)
    z = torch.cat([SIGNS.vectors["u"][index], SIGNS.vectors["v"][index]])
    g, _ = directional_derivatives.two_point(handle_of(model), ONCE, SIGNS, index, epsilon)
    assert g == pytest.approx(float(model.gradient() @ z), rel=1e-6)


def test_the_second_number_is_the_mean_of_the_two_losses():
    """L(w) + eps^2 z^T H z / 2 on a quadratic; all of it dyadic."""
    model = Polynomial(True)
    z = torch.cat([SIGNS.vectors["u"][0], SIGNS.vectors["v"][0]])
    _, loss = directional_derivatives.two_point(handle_of(model), ONCE, SIGNS, 0, 0.5)
    assert loss == pytest.approx(float(model(**ONCE).loss.detach() + z @ model.h @ z / 8), rel=1e-6)


def gradient_of(handle: ModelHandle) -> dict[str, torch.Tensor]:
    loss = handle.loss(X)
    parameters = dict(handle.parameters())
    return dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))


@pytest.mark.parametrize("space", [Full(), LoRA()], ids=["full", "lora"])
@pytest.mark.parametrize("family", ["hadamard", "rademacher", "gaussian"])
def test_the_slope_is_the_directional_derivative(family, space):
    handle = toy_handle(space)
    gradient = gradient_of(handle)
    z = families.make(family, SEED, 8)
    for j in range(8):
        want = sum(float((g * z.direction(n, j, g.shape)).sum()) for n, g in gradient.items())
        got, _ = directional_derivatives.two_point(handle, X, z, j, 2e-3)
        size = sum(float(g.square().sum()) for g in gradient.values()) ** 0.5
        assert got == pytest.approx(want, abs=1e-3 * size)


def toy_handle(space) -> ModelHandle:
    model = ToyModel()
    shapes = {n: tuple(p.shape) for n, p in model.named_parameters()}
    layout = Layout(modules={"first": (6, 8), "second": (4, 6)}, parameters=dict(sorted(shapes.items())))
    handle = ModelHandle(model, layout, space)
    if not space.of_base:
        start = space.initial(layout, 2, SEED)
        names = [n for n in start if n.endswith("lora_B")]
        handle.write({**start, **{n: philox.uniform(SEED, 2, n, start[n].shape) - 0.5 for n in names}})
    return handle


def test_the_mean_of_slope_times_direction_tends_to_the_gradient():
    """After K directions the cosine is about sqrt(K / (K + d)): 0.93 for K = 512 and d = 78."""
    handle, count = toy_handle(Full()), 512
    gradient = gradient_of(handle)
    z = families.make("hadamard", SEED, count)
    slopes = torch.tensor([directional_derivatives.two_point(handle, X, z, j, 2e-3)[0] for j in range(count)])
    estimate = {n: torch.zeros_like(g) for n, g in gradient.items()}
    for n, e in estimate.items():
        z.axpy_(e, n, slopes / count)
    a, b = (torch.cat([x[n].flatten() for n in sorted(x)]) for x in (estimate, gradient))
    assert torch.cosine_similarity(a, b, dim=0) > 0.88
    assert (a @ b) / (b @ b) == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("epsilon", [1e-6, 1e-4, 0.5, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_probing_leaves_every_bit_where_it_was(dtype, epsilon):
    model = Polynomial(True, dtype)
    handle = handle_of(model)
    before = {n: (p.detach().clone(), p.data_ptr()) for n, p in handle.parameters().items()}
    for j in (0, 1):
        directional_derivatives.two_point(handle, ONCE, SIGNS, j, epsilon)
    for n, p in handle.parameters().items():
        assert torch.equal(p.detach(), before[n][0])
        assert p.data_ptr() == before[n][1]
        assert p.dtype == torch.float32  # whatever the base came in


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_thousand_steps_of_length_zero_leave_every_bit(dtype):
    model = Polynomial(True, dtype)
    handle = handle_of(model, fixed=True)
    before = {n: (p.detach().clone(), p.data_ptr()) for n, p in model.named_parameters()}
    first = directional_derivatives.two_point(handle, ONCE, SIGNS, 0, 1e-3)
    for s in range(1000):
        directional_derivatives.two_point(handle, ONCE, SIGNS, s % 2, 1e-3)
        directional_derivatives.step(handle, SIGNS, s % 2, 0.0)
    assert directional_derivatives.two_point(handle, ONCE, SIGNS, 0, 1e-3) == first
    for n, p in model.named_parameters():
        assert p.dtype == dtype
        assert torch.equal(p.detach(), before[n][0])
        assert p.data_ptr() == before[n][1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_steps_too_small_for_half_precision_add_up(dtype):
    """100 steps of 1e-5 per weight: what is seen is w0 + their sum, rounded once; added one by one they are lost."""
    layer = nn.Linear(64, 100, bias=False)
    nn.init.normal_(layer.weight, std=0.02, generator=torch.Generator().manual_seed(SEED))
    layer.to(dtype)
    w0, z = layer.weight.detach().clone(), families.make("hadamard", SEED, 4096)
    handle, seen = handle_of(layer, fixed=True), []
    layer.register_forward_hook(lambda m, _a, _o: seen.append(m.weight.detach().clone()))
    total, one_by_one = torch.zeros(w0.shape, dtype=torch.float64), w0.clone()
    for j in range(100):
        directional_derivatives.step(handle, z, 7 * j, 1e-5)
        moved = 1e-5 * z.direction("weight", 7 * j, w0.shape)
        total += moved
        one_by_one += moved
    layer(torch.zeros(1, 64, dtype=dtype))
    want = (w0.double() + total).to(dtype)
    assert torch.allclose(handle.read()["weight"].double(), total, atol=1e-8)
    assert (seen[0] == want).float().mean() > 0.999  # the sum was rounded to float32 before: a tie may go elsewhere
    assert (seen[0] - w0).double().norm() > 0.9 * total.norm()
    assert torch.equal(layer.weight, w0)
    assert (one_by_one.double() - w0.double() - total).norm() > 0.4 * total.norm()


def test_where_weights_stand_still_a_probe_is_the_rounded_sum():
    """Also of a part only, along a sum, and by forward mode; reset is w0 again."""
    model, plain = (Polynomial(True, torch.bfloat16) for _ in range(2))
    handle, a = handle_of(model, fixed=True), torch.tensor([0.01, -0.3], dtype=torch.float64)
    w0 = directional_derivatives.loss(handle, ONCE)
    handle.shift_along(SIGNS, a)
    for only in (None, ["v"]):
        with torch.no_grad():
            for n, p in plain.named_parameters():
                x = dict(model.named_parameters())[n].detach().float() + (a.float() @ SIGNS.vectors[n])
                p.copy_(x + 0.007 * SIGNS.vectors[n][1] if only is None or n in only else x)
        with handle.perturbed(SIGNS, 1, 0.007, only=only):
            assert directional_derivatives.loss(handle, ONCE) == plain(**ONCE).loss.item()
    handle.shift_along(SIGNS, -a / 2, 0.5)
    halved = {n: 0.5 * p.detach().float() for n, p in model.named_parameters()}
    with torch.no_grad():
        for n, p in plain.named_parameters():
            p.copy_(halved[n])
    slope, loss = handle.directional_derivative(ONCE, SIGNS, 0)
    z = torch.cat([SIGNS.vectors["u"][0], SIGNS.vectors["v"][0]])
    assert loss == plain(**ONCE).loss.item()
    assert slope == pytest.approx(float(plain.gradient() @ z), rel=1e-5)
    assert all(torch.equal(x, -halved[n]) for n, x in handle.read().items())
    handle.reset()
    assert directional_derivatives.loss(handle, ONCE) == w0
    assert not any(x.any() for x in handle.read().values())


def test_weights_are_moved_in_one_way_only():
    half, single = handle_of(Polynomial(True, torch.float16), fixed=True), handle_of(Polynomial(True), fixed=True)
    half.shift_along(SIGNS, torch.ones(2, dtype=torch.float64))
    with pytest.raises(ValueError, match="directions"):
        half.shift_along(families.make("hadamard", 1, 2), torch.ones(2, dtype=torch.float64))
    assert half.weights_fixed
    assert not single.weights_fixed
    with pytest.raises(ValueError, match="float32"):
        single.shift_along(SIGNS, torch.ones(2, dtype=torch.float64))


def test_a_pass_that_failed_leaves_nothing_behind_where_weights_stand_still():
    model = Polynomial(True, torch.bfloat16)
    handle, before = handle_of(model, fixed=True), {n: p.detach().clone() for n, p in model.named_parameters()}
    handle.shift_along(SIGNS, torch.tensor([0.25, 0.5], dtype=torch.float64))
    loss = directional_derivatives.loss(handle, ONCE)
    with pytest.raises(TypeError):
        handle.loss({})
    assert directional_derivatives.loss(handle, ONCE) == loss
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    with pytest.raises(TypeError):
        handle.loss({})
    handle.reset()
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


class Attentive(nn.Module):
    """torch's attention reads the weights of its last layer and never calls it."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(loss=self.attention(x, x, x)[0].sum())


def test_weights_that_are_read_past_their_layer_cannot_stand_still():
    handle, x = handle_of(Attentive().bfloat16(), fixed=True), {"x": torch.ones(1, 3, 8).bfloat16()}
    directional_derivatives.loss(handle, x)  # where nothing was moved all are seen as they are
    z = families.make("hadamard", SEED, 2)
    handle.shift_along(z, torch.ones(2, dtype=torch.float64))
    for _ in range(2):
        with pytest.raises(
            NotImplementedError, match=r"reads attention\.out_proj\.bias, attention\.out_proj\.weight past"
        ):
            directional_derivatives.loss(handle, x)


class Positions(nn.Module):
    """A table that gives its first rows as a view, and a layer that runs before they are used."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.layer = Rows(), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> SimpleNamespace:
        rows = self.table(len(x))
        return SimpleNamespace(loss=(self.layer(x) * rows[0]).sum())


class Rows(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(9, 4))

    def forward(self, n: int) -> tuple[torch.Tensor]:
        return (self.weight[:n],)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_a_module_gives_of_its_perturbed_weights_outlives_it(dtype):
    model, z = Positions().to(dtype), families.make("hadamard", SEED, 2)
    x, moved = torch.randn(5, 8).to(dtype), Positions().to(dtype)
    with torch.no_grad():
        for (n, p), to in zip(model.named_parameters(), moved.parameters(), strict=True):
            z.add_into(out := torch.empty(p.shape), p.float(), n, 1, 0.25)
            to.copy_(out)
    with handle_of(model, fixed=True).perturbed(z, 1, 0.25):
        assert model(x).loss.item() == moved(x).loss.item()


@pytest.mark.skipif(not find_spec("numba"), reason="numba is not installed; torch has buffers of some MB")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_takes_little_more_memory_than_inference(dtype, monkeypatch):
    """Bytes of tensors alive at once, weights included; what is kept between passes is room for one module."""
    monkeypatch.setenv("FEDFT_KERNELS", "numba")
    handle, batch = zo_step.llama(zo_step.SHAPE, dtype), zo_step.tokens(64)
    directional_derivatives.loss(handle, batch)
    inference = zo_step.peak(handle, lambda: directional_derivatives.loss(handle, batch))
    z = families.make("hadamard", SEED, 4096)
    zo_step.ours(handle, batch, z, itertools.count())
    assert zo_step.peak(handle, lambda: zo_step.ours(handle, batch, z, itertools.count(9))) < 1.1 * inference
    rooms = {
        x.untyped_storage().data_ptr(): x.untyped_storage().nbytes()
        for r in handle._probe._scratch._views.values()
        for x in r
    }
    assert list(rooms.values()) == [max(p.nbytes for p in handle.parameters().values())]


def test_the_same_direction_and_batch_give_the_same_slope_and_leave_no_graph():
    handle = toy_handle(Full())
    z = families.make("hadamard", SEED, 8)
    assert directional_derivatives.two_point(handle, X, z, 3, 1e-3) == directional_derivatives.two_point(
        handle, X, z, 3, 1e-3
    )
    assert all(p.grad is None for p in handle.parameters().values())


def test_dropout_is_off_in_both_losses():
    class Dropped(Polynomial):
        def forward(self, factor):
            assert not self.training
            return super().forward(factor)

    directional_derivatives.two_point(handle_of(Dropped(True)), ONCE, SIGNS, 0, 0.5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_shows(bad):
    g, loss = directional_derivatives.two_point(
        handle_of(Polynomial(True)), {"factor": torch.tensor(bad)}, SIGNS, 0, 0.5
    )
    assert not torch.isfinite(torch.tensor([g, loss])).all()


def test_a_step_moves_every_parameter_by_distance_times_direction():
    model = Polynomial(True)
    handle = handle_of(model)
    u, v = model.u.detach().clone(), model.v.detach().clone()
    directional_derivatives.step(handle, SIGNS, 1, -0.25)
    assert torch.equal(model.u.detach(), u - 0.25 * SIGNS.vectors["u"][1])
    assert torch.equal(model.v.detach(), v - 0.25 * SIGNS.vectors["v"][1])


@pytest.mark.parametrize("family", ["hadamard", "rademacher", "gaussian"])
@pytest.mark.parametrize("distance", [0.0, -0.0])
def test_a_step_of_length_zero_leaves_every_bit(family, distance):
    handle = toy_handle(Full())
    before = {n: p.detach().clone() for n, p in handle.parameters().items()}
    directional_derivatives.step(handle, families.make(family, SEED, 4), 2, distance)
    assert all(torch.equal(p.detach(), before[n]) for n, p in handle.parameters().items())


def test_steps_along_slopes_lower_a_convex_loss():
    model = Polynomial(False)
    model.h = torch.eye(5)
    handle, start = handle_of(model), float(model(**ONCE).loss.detach())
    z = families.make("hadamard", SEED, 64)
    for j in range(64):
        g, _ = directional_derivatives.two_point(handle, ONCE, z, j, 1e-3)
        directional_derivatives.step(handle, z, j, -0.1 * g)
    minimum = -float(model.b @ model.b) / 2
    assert float(model(**ONCE).loss.detach()) - minimum < 0.01 * (start - minimum)


# -- one-sided


@pytest.mark.parametrize("epsilon", [2.0**-6, 0.5])
def test_a_one_sided_slope_is_exact_where_the_loss_is_linear(epsilon):
    model = Polynomial(False)
    handle = handle_of(model)
    z = torch.cat([SIGNS.vectors["u"][0], SIGNS.vectors["v"][0]])
    g = directional_derivatives.one_point(handle, ONCE, SIGNS, 0, epsilon, directional_derivatives.loss(handle, ONCE))
    assert g == pytest.approx(float(model.gradient() @ z), rel=1e-6)


@pytest.mark.parametrize("epsilon", [2.0**-4, 0.5])
def test_a_one_sided_slope_is_off_by_half_epsilon_z_h_z(epsilon):
    model = Polynomial(True)
    handle = handle_of(model)
    z = torch.cat([SIGNS.vectors["u"][0], SIGNS.vectors["v"][0]])
    g = directional_derivatives.one_point(handle, ONCE, SIGNS, 0, epsilon, directional_derivatives.loss(handle, ONCE))
    assert g - float(model.gradient() @ z) == pytest.approx(epsilon / 2 * float(z @ model.h @ z), rel=1e-4)


def test_only_what_is_named_is_probed():
    """On a linear loss the slope with only u moved is <gradient of u, z of u>."""
    model = Polynomial(False)
    g, _ = directional_derivatives.two_point(handle_of(model), ONCE, SIGNS, 1, 0.5, ["u"])
    assert g == pytest.approx(float(model.gradient()[:3] @ SIGNS.vectors["u"][1]), rel=1e-6)


# -- what is minimised


class Said:
    """A handle that predicts what it is told."""

    def __init__(self, guess, wanted) -> None:
        self.pair = torch.tensor(guess), torch.tensor(wanted)

    def predictions(self, batch):
        return self.pair


def test_the_accuracy_of_classes_by_hand():
    assert directional_derivatives.errors(Said([0, 1, 2, 2], [0, 1, 1, 2]), {}) == 0.25


def test_the_accuracy_of_tokens_counts_what_is_learned():
    guess, wanted = [[5, 6, 7], [1, 2, 3]], [[IGNORED, 6, 8], [1, 2, IGNORED]]
    assert directional_derivatives.errors(Said(guess, wanted), {}) == pytest.approx(0.25)


def test_the_f1_of_classes_is_the_mean_over_classes_by_hand():
    """Class 0: 2 hits of 3 labels and 2 guesses, 4/5; class 1: 1 of 1 and 2, 2/3; class 2: never, label or guess."""
    assert directional_derivatives.lost_f1(Said([0, 0, 1, 1], [0, 0, 0, 1]), {}) == pytest.approx(
        1 - (4 / 5 + 2 / 3) / 2
    )


def test_a_class_that_is_only_guessed_counts_as_nothing_found():
    assert directional_derivatives.lost_f1(Said([0, 2], [0, 0]), {}) == pytest.approx(1 - (2 / 3 + 0) / 2)


def test_the_f1_of_tokens_compares_bags_row_by_row():
    """Row 0: {6, 7, 7} and {7, 6, 8} have 6 and 7 in common, 2/3; row 1: 1/1; row 2 learns nothing."""
    guess = [[9, 6, 7, 7], [4, 9, 9, 9], [1, 1, 1, 1]]
    wanted = [[IGNORED, 7, 6, 8], [4, IGNORED, IGNORED, IGNORED], [IGNORED] * 4]
    assert directional_derivatives.lost_f1(Said(guess, wanted), {}) == pytest.approx(1 - (2 / 3 + 1) / 2)


@pytest.mark.parametrize("measure", [directional_derivatives.errors, directional_derivatives.lost_f1])
def test_a_batch_that_teaches_nothing_has_no_measure(measure):
    assert math.isnan(measure(Said([[1, 2]], [[IGNORED, IGNORED]]), {}))


@pytest.mark.parametrize("measure", [directional_derivatives.errors, directional_derivatives.lost_f1])
def test_all_right_is_zero_and_all_wrong_is_one(measure):
    assert measure(Said([0, 1, 2], [0, 1, 2]), {}) == 0
    assert measure(Said([1, 1, 1], [0, 2, 0]), {}) == 1
