"""A linear layer on a packed weight computes and differentiates as one on the float weight that it stands for."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.autograd import forward_ad

from fedft.arithmetic.lowrank import LowRank
from fedft.models.packed_linear import FORMS, PackedLinear

every_form = pytest.mark.parametrize("bits", FORMS)


def both(bits: int, bias: bool = True, o: int = 24, i: int = 20) -> tuple[PackedLinear, nn.Linear]:
    """(the packed layer, a float one with what its weight stands for)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        plain = nn.Linear(i, o, bias=bias)
    small = PackedLinear(plain.weight, plain.bias, bits)
    plain.weight.data = small.weight
    return small, plain


def graph(layer: nn.Module, x: torch.Tensor, autocast: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """(output, gradient of the input)."""
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = layer(x)
    y.float().pow(2).sum().backward()
    return y.detach(), x.grad


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(4))


@every_form
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("autocast", [True, False])
def test_output_and_gradient_are_those_of_the_float_layer_bit_for_bit(bits, bias, autocast):
    small, plain = both(bits, bias)
    for ours, theirs in zip(
        graph(small, normal(2, 5, 20), autocast), graph(plain, normal(2, 5, 20), autocast), strict=True
    ):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)
        assert bool(ours.any())


@every_form
def test_forward_mode_tangents_are_those_of_the_float_layer(bits):
    found = []
    for layer in both(bits):
        with forward_ad.dual_level():
            y = layer(forward_ad.make_dual(normal(3, 20), torch.ones(3, 20)))
            found.append(forward_ad.unpack_dual(y).tangent)
    assert torch.equal(*found)
    assert bool(found[0].any())


@every_form
def test_the_graph_keeps_the_packed_form_and_never_the_matrix(bits):
    small, _ = both(bits, o=256, i=256)
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        small(normal(2, 256).requires_grad_())
    assert kept
    assert sum(t.numel() * t.element_size() for t in kept) == sum(t.numel() * t.element_size() for t in small.packed)
    assert sum(t.numel() * t.element_size() for t in kept) < 256 * 256 * (0.52 if bits == 4 else 1.04)


@every_form
def test_what_stands_beside_acts_as_a_part_of_the_weight(bits):
    small, plain = both(bits)
    d = [LowRank(normal(2, 20), normal(24, 2)), LowRank(normal(1, 20), normal(24, 1))]
    before = small.weight
    for change in d:
        small.stand_beside(change)
    assert torch.allclose(small.weight, before + d[0].dense() + d[1].dense(), atol=1e-5)
    plain.weight.data = small.weight
    for ours, theirs in zip(graph(small, normal(4, 20)), graph(plain, normal(4, 20)), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-3, rtol=1e-5)


@every_form
def test_a_bias_can_be_trained_on_a_packed_weight(bits):
    small, plain = both(bits)
    for layer in (small, plain):
        layer(normal(3, 5, 20)).pow(2).sum().backward()
    assert torch.allclose(small.bias.grad, plain.bias.grad, atol=1e-4)


@every_form
def test_the_packed_form_comes_back_from_a_file(bits, tmp_path):
    small, _ = both(bits)
    save_file(dict(small.state_dict()), tmp_path / "layer.safetensors")
    other = PackedLinear(torch.ones(24, 20), nn.Parameter(torch.zeros(24)), bits)
    other.load_state_dict(load_file(tmp_path / "layer.safetensors"))
    assert torch.equal(other.weight, small.weight)
    assert torch.equal(other(normal(2, 20)), small(normal(2, 20)))


@every_form
def test_half_precision_is_computed_in_half_precision(bits):
    small, plain = both(bits, bias=False)
    x = normal(3, 20).bfloat16()
    assert torch.equal(small(x), plain.bfloat16()(x))


@every_form
@pytest.mark.parametrize("shape", [(300, 96), (37, 1001), (5, 40_000), (3, 7)])
def test_rows_are_those_of_the_weight_bit_for_bit(bits, shape):
    """Blocks and spreads begin and end within rows."""
    layer = PackedLinear(torch.randn(shape, generator=torch.Generator().manual_seed(1)), None, bits)
    rng = torch.Generator().manual_seed(2)
    for beside in (False, True):
        if beside:
            factors = torch.randn(2, shape[1], generator=rng), torch.randn(shape[0], 2, generator=rng)
            layer.stand_beside(LowRank(*factors))
        weight = layer.weight
        for start, end in ((0, shape[0]), (1, 2), (shape[0] // 2, shape[0]), (shape[0] - 1, shape[0])):
            torch.testing.assert_close(layer.rows(start, end), weight[start:end], rtol=0, atol=1e-6 if beside else 0)
