"""Perturbed passes and forward-mode derivatives of a resident model: exact, in any part, and without a trace."""

import copy
from types import SimpleNamespace

import pytest
import torch
from small_models import SEED, Small, distance, every_model, factors, logits, small
from torch import nn

from fedft.adapters.full import Full
from fedft.adapters.lora import LoRA
from fedft.arithmetic.named_pairs import B_SUFFIX
from fedft.contract import Layout
from fedft.models.handle import ModelHandle
from fedft.randomness import families
from fedft.randomness.independent import Table
from fedft.testing import ToyModel


def trained_by_hand(handle: ModelHandle, s: Small, z, index: int, epsilon: float) -> torch.Tensor:
    """Logits of a deep copy whose trained parameters are moved by epsilon z, tied uses together."""
    other = copy.deepcopy(handle)
    with torch.no_grad():
        for n, p in other.parameters().items():
            p.add_(epsilon * z.direction(n, index, p.shape))
    return logits(other.model, s.batch)


@every_model
@pytest.mark.parametrize("space", [LoRA(), LoRA(learns=(B_SUFFIX,)), Full()], ids=["lora", "B", "full"])
def test_a_perturbed_forward_is_the_forward_of_a_moved_copy(name, space):
    s = small(name)
    handle = s.handle(space)
    if not space.of_base:
        handle.write(factors(s.layout, 2))
    z = families.make("hadamard", SEED, 16)
    plain = logits(handle.model, s.batch)
    for index, epsilon in ((3, 0.05), (7, -0.05)):
        want = trained_by_hand(handle, s, z, index, epsilon)
        with handle.perturbed(z, index, epsilon):
            got = logits(handle.model, s.batch)
        assert distance(got, want) < 1e-5
        assert distance(got, plain) > 1e-3
    assert torch.equal(logits(handle.model, s.batch), plain)


@every_model
def test_every_trained_parameter_feels_its_own_perturbation(name):
    """With z zero but for one parameter the output still moves, unless that parameter has no gradient at all."""
    s = small(name)
    handle = s.handle(Full())
    handle.loss(s.batch).backward()
    felt = {n for n, p in handle.parameters().items() if p.grad.abs().max() > 1e-4}
    assert len(felt) > len(handle.parameters()) // 2
    plain = logits(handle.model, s.batch)
    shapes = {n: p.numel() for n, p in handle.parameters().items()}
    for chosen in felt:
        signs = torch.where(torch.arange(shapes[chosen]) % 3 == 0, 1.0, -1.0)
        table = {n: signs[None] if n == chosen else torch.zeros(1, k) for n, k in shapes.items()}
        with handle.perturbed(Table(table), 0, 0.1):
            assert distance(logits(handle.model, s.batch), plain) > 0, chosen


@every_model
@pytest.mark.parametrize("space", [LoRA(), Full()], ids=["lora", "full"])
@pytest.mark.parametrize("where", ["before", "inside"])
def test_bits_are_restored_even_when_the_forward_raises(name, space, where):
    s = small(name)
    handle = s.handle(space)
    if not space.of_base:
        handle.write(factors(s.layout, 2))
    before = {n: (p.detach().clone(), p.data_ptr()) for n, p in handle.model.named_parameters()}
    module = handle.model if where == "before" else handle.model.get_submodule(list(s.layout.modules)[-1])
    if where == "inside" and not space.of_base:
        module = module.lora_B["r2"]

    def fail(*_):
        raise RuntimeError("the batch did not fit in memory")

    hook = module.register_forward_hook(fail)
    z = families.make("hadamard", SEED, 16)
    with pytest.raises(RuntimeError, match="memory"), handle.perturbed(z, 1, 0.1):
        logits(handle.model, s.batch)
    hook.remove()
    for n, p in handle.model.named_parameters():
        assert torch.equal(p, before[n][0])
        assert p.data_ptr() == before[n][1]
    with handle.perturbed(z, 1, 0.1):
        again = logits(handle.model, s.batch)
    assert distance(again, trained_by_hand(handle, s, z, 1, 0.1)) < 1e-5


def test_perturbation_follows_the_adapter_that_is_switched_on():
    s = small("gpt2")
    handle, z = s.handle(), families.make("hadamard", SEED, 16)
    for rank in (2, 3, 2):
        handle.write(factors(s.layout, rank))
        with handle.perturbed(z, 2, 0.1):
            got = logits(handle.model, s.batch)
        assert distance(got, trained_by_hand(handle, s, z, 2, 0.1)) < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_model_is_trained_and_perturbed_in_float32_and_restored(dtype):
    s = small("llama", dtype)
    handle, z = s.handle(Full()), families.make("hadamard", SEED, 16)
    before = {n: p.detach().clone() for n, p in handle.parameters().items()}
    seen = {}
    module = handle.model.model.layers[0].mlp.up_proj
    hook = module.register_forward_hook(lambda m, a, o: seen.update(w=m.weight.detach().clone()))
    with handle.perturbed(z, 4, 0.01):
        logits(handle.model, s.batch)
    hook.remove()
    name = "model.layers.0.mlp.up_proj.weight"
    want = before[name] + 0.01 * z.direction(name, 4, before[name].shape)
    assert before[name].dtype == torch.float32
    assert torch.equal(seen["w"], want)
    assert not torch.equal(before[name], want)
    assert all(torch.equal(p, before[n]) for n, p in handle.parameters().items())


@every_model
@pytest.mark.parametrize("space", [LoRA(), Full()], ids=["lora", "full"])
def test_a_part_is_perturbed_and_the_rest_stays(name, space):
    s = small(name)
    handle = s.handle(space)
    if not space.of_base:
        handle.write(factors(s.layout, 2))
    z = families.make("hadamard", SEED, 16)
    some = list(handle.parameters())[::2]
    other = copy.deepcopy(handle)
    with torch.no_grad():
        for n in some:
            p = other.parameters()[n]
            p.add_(0.05 * z.direction(n, 3, p.shape))
    plain, want = logits(handle.model, s.batch), logits(other.model, s.batch)
    with handle.perturbed(z, 3, 0.05, only=some):
        assert distance(logits(handle.model, s.batch), want) < 1e-5
    assert distance(want, plain) > 1e-3
    assert torch.equal(logits(handle.model, s.batch), plain)
    with handle.perturbed(z, 3, 0.05, only=[]):
        assert torch.equal(logits(handle.model, s.batch), plain)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_tied_weight_is_perturbed_alike_in_both_uses(name):
    s = small(name)
    handle = s.handle(Full())
    rows = s.model.get_input_embeddings().weight
    used = []
    for module in (s.model.get_input_embeddings(), s.model.get_output_embeddings()):
        module.register_forward_pre_hook(lambda m, a: None)
        original = module.forward
        module.forward = lambda x, m=module, f=original: (used.append(m.weight.detach().clone()), f(x))[1]
    name_of = next(n for n, p in handle.parameters().items() if p is rows)
    z = families.make("hadamard", SEED, 16)
    want = rows.detach() + 0.1 * z.direction(name_of, 1, rows.shape)
    with handle.perturbed(z, 1, 0.1):
        logits(handle.model, s.batch)
    assert len(used) == 2
    assert all(distance(w, want) < 1e-6 for w in used)


def test_a_weight_tied_between_a_module_and_its_own_child_stays_perturbed_in_both():
    """BERT's prediction head owns a bias and so does its decoder: the child's return must not undo the parent's."""

    class Parent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.child = nn.Linear(1, 1)
            self.bias = self.child.bias

        def forward(self, x: torch.Tensor) -> SimpleNamespace:
            return SimpleNamespace(loss=(self.child(x) + self.bias).sum())

    handle = ModelHandle(Parent(), Layout(parameters={"bias": (1,), "child.weight": (1, 1)}), Full())
    batch, before = {"x": torch.zeros(1)}, handle.model.bias.detach().clone()
    z = Table({"bias": torch.ones(1, 1), "child.weight": torch.ones(1, 1)})
    with torch.no_grad(), handle.perturbed(z, 0, 0.5):
        assert handle.loss(batch).item() == pytest.approx(2 * (before.item() + 0.5), rel=1e-6)
    assert torch.equal(handle.model.bias, before)


# -- forward-mode slopes


def by_backpropagation(handle: ModelHandle, s: Small, z, index: int, only=None) -> float:
    """<gradient, z_index>, dropout off, tied uses together."""
    names = list(only or handle.parameters())
    handle.model.eval()
    loss = handle.forward(s.batch).loss.float()
    found = torch.autograd.grad(loss, [handle.parameters()[n] for n in names], allow_unused=True)
    pairs = [(g, n) for g, n in zip(found, names, strict=True) if g is not None]
    return sum(float((g.double() * z.direction(n, index, g.shape).double()).sum()) for g, n in pairs)


@every_model
@pytest.mark.parametrize("space", [LoRA(), LoRA(learns=(B_SUFFIX,)), Full()], ids=["lora", "B", "full"])
@pytest.mark.parametrize("family", ["hadamard", "gaussian"])
def test_a_forward_mode_slope_is_the_product_of_gradient_and_direction(name, space, family):
    s = small(name)
    handle = s.handle(space)
    if not space.of_base:
        handle.write(factors(s.layout, 2))
    z = families.make(family, SEED, 8)
    for index in (1, 6):
        got, loss = handle.directional_derivative(s.batch, z, index)
        want = by_backpropagation(handle, s, z, index)
        assert got == pytest.approx(want, rel=1e-5, abs=2e-6)
        with torch.no_grad():
            assert loss == pytest.approx(float(handle.loss(s.batch)), rel=1e-6)


def test_a_slope_of_a_part_is_the_product_of_its_entries():
    s = small("llama")
    handle, z = s.handle(Full()), families.make("hadamard", SEED, 4)
    parts = [[n for n in handle.parameters() if f".layers.{k}." in n] for k in range(2)]
    parts.append([n for n in handle.parameters() if ".layers." not in n])
    slopes = [handle.directional_derivative(s.batch, z, 2, only=part)[0] for part in parts]
    for got, part in zip(slopes, parts, strict=True):
        assert got == pytest.approx(by_backpropagation(handle, s, z, 2, part), rel=1e-5, abs=2e-6)
    assert sum(slopes) == pytest.approx(handle.directional_derivative(s.batch, z, 2)[0], rel=1e-4)


def test_a_slope_follows_the_adapter_that_is_switched_on():
    s = small("gpt2")
    handle, z = s.handle(), families.make("hadamard", SEED, 4)
    for rank in (2, 3, 2):
        handle.write(factors(s.layout, rank))
        want = by_backpropagation(handle, s, z, 1)
        assert handle.directional_derivative(s.batch, z, 1)[0] == pytest.approx(want, rel=1e-5, abs=2e-6)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_slope_of_adapters_on_a_half_precision_base_is_near(name):
    s = small(name, torch.bfloat16)
    handle, z = s.handle(), families.make("hadamard", SEED, 4)
    handle.write(factors(s.layout, 2))
    assert handle.directional_derivative(s.batch, z, 1)[0] == pytest.approx(
        by_backpropagation(handle, s, z, 1), rel=0.1, abs=0.05
    )


@every_model
def test_a_slope_leaves_every_parameter_as_it_was_and_no_graph(name):
    s = small(name)
    handle, z = s.handle(Full()), families.make("hadamard", SEED, 4)
    before = {n: (p, p.detach().clone(), p.data_ptr()) for n, p in handle.model.named_parameters()}
    plain = logits(handle.model, s.batch)
    handle.directional_derivative(s.batch, z, 0)
    for n, p in handle.model.named_parameters():
        assert p is before[n][0]
        assert torch.equal(p, before[n][1])
        assert p.data_ptr() == before[n][2]
        assert p.grad is None
    assert torch.equal(logits(handle.model, s.batch), plain)
    assert handle.loss(s.batch).requires_grad


def test_a_slope_whose_forward_raises_leaves_every_parameter_as_it_was():
    s = small("llama")
    handle, z = s.handle(Full()), families.make("hadamard", SEED, 4)
    before = {n: (p, p.detach().clone()) for n, p in handle.model.named_parameters()}

    def fail(*_):
        raise RuntimeError("the batch did not fit in memory")

    handle.model.model.layers[1].mlp.act_fn.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="memory"):
        handle.directional_derivative(s.batch, z, 0)
    for n, p in handle.model.named_parameters():
        assert p is before[n][0]
        assert torch.equal(p, before[n][1])


class NoForwardMode(torch.autograd.Function):
    """The identity, without a forward-mode rule."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad


@pytest.mark.parametrize("loses", [NoForwardMode.apply, lambda x: torch.tensor(x.tolist())], ids=["no rule", "lost"])
def test_a_model_without_forward_mode_is_an_error_that_says_what_to_do(loses):
    class Opaque(ToyModel):
        def forward(self, x, labels=None):
            found = super().forward(x, labels)
            return SimpleNamespace(loss=loses(found.loss))

    handle = ModelHandle(Opaque(), Layout(parameters={"second.weight": (4, 6)}), Full())
    with pytest.raises(NotImplementedError, match="two_sided"):
        handle.directional_derivative(small("toy").batch, families.make("hadamard", SEED, 4), 0)
