"""Base weights at w0 + change: in either form of the change, on the weight's device, with w0 kept as it was loaded."""

import copy

import pytest
import torch
from small_models import Small, base_of, changes, every_model, is_conv1d, logits, small
from torch.utils._python_dispatch import TorchDispatchMode

from fedft.arithmetic.lowrank import LowRank
from fedft.benchmarks.measure import Peak
from fedft.models import quantized_base
from fedft.models.base_change import BaseChange
from fedft.models.originals import Originals


def dense(change: dict[str, LowRank]) -> dict[str, torch.Tensor]:
    return {m: d.dense() for m, d in change.items()}


@every_model
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_dense_change_stands_where_its_factors_do_and_is_taken_back(name, dtype):
    s = small(name, dtype)
    w0 = {n: p.detach().clone() for n, p in s.model.named_parameters()}
    handle, d = s.handle(), changes(s.layout, 3)
    handle.set_base_change(d, "factored")
    factored = {n: p.detach().clone() for n, p in handle.model.named_parameters()}
    handle.set_base_change({}, "none")
    handle.set_base_change(dense(d), "dense")
    assert all(torch.equal(p, factored[n]) for n, p in handle.model.named_parameters())
    assert any(not torch.equal(p, w0[n]) for n, p in factored.items())
    assert all(torch.equal(handle.change()[0][m], d[m].dense()) for m in d)
    with handle.without_adapter():
        assert all(torch.equal(p, w0[n]) for n, p in handle.model.named_parameters() if n in w0)
    handle.set_base_change({}, "none again")
    assert all(torch.equal(p, w0[n]) for n, p in handle.model.named_parameters() if n in w0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_w0_is_kept_in_its_own_dtype_and_comes_back_bit_for_bit(dtype):
    weight, originals = torch.randn(64, 32).to(dtype), Originals()
    w0, change = weight.clone(), torch.randn(64, 32)
    with Peak() as live:
        originals.move("w", weight, change)
        assert live.now == weight.nbytes  # nothing else stays
    assert torch.equal(weight, (w0.to(torch.promote_types(dtype, torch.float32)) + change).to(dtype))
    originals.restore("w", weight)
    assert torch.equal(weight, w0)


class Devices(TorchDispatchMode):
    """Where products were made, and the largest tensor that moved to another device."""

    def __init__(self):
        super().__init__()
        self.products, self.moved = set(), 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.mm.default:
            self.products.add(out.device.type)
        if func is torch.ops.aten._to_copy.default and out.device != args[0].device:
            self.moved = max(self.moved, out.numel())
        return out


def test_factors_move_to_the_weights_device_and_are_multiplied_there():
    s = small("llama")
    d = changes(s.layout, 1)
    base = BaseChange(s.model.to("meta"), s.layout, Originals())
    with Devices() as seen:
        base.set(d, "one")
    assert seen.products == {"meta"}
    assert 0 < seen.moved == max(max(x.A.numel(), x.B.numel()) for x in d.values())


def test_products_are_of_full_precision_whatever_the_process_has_chosen():
    s, other = small("gpt2"), small("gpt2")
    d, before = changes(s.layout, 3), torch.get_float32_matmul_precision()
    handle, plain = s.handle(), other.handle()
    plain.set_base_change(d, "one")
    try:
        torch.set_float32_matmul_precision("medium")
        handle.set_base_change(d, "one")
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    for m in d:
        assert torch.equal(handle.model.get_submodule(m).weight, plain.model.get_submodule(m).weight)
        assert is_conv1d(handle.model.get_submodule(m))
    assert not torch.equal(logits(copy.deepcopy(handle.model), s.batch), logits(small("gpt2").model, s.batch))


@pytest.mark.filterwarnings("ignore")  # torch's own, while it traces
def test_a_layer_that_was_compiled_before_the_first_change_heeds_it_beside_packed_weights():
    """Torch looks for hooks when it traces a layer, and not again: one that came later would be passed over."""
    s = small("llama")
    plain, compiled = (
        Small(quantized_base.packed(base_of(copy.deepcopy(s.model)), 4).model, s.layout, s.batch).handle()
        for _ in range(2)
    )
    compiled.model.model.layers[0].compile(backend="eager", dynamic=True)
    found = []
    for rank in (0, 3):
        d = {m: LowRank(10 * x.A, 10 * x.B) for m, x in changes(s.layout, rank).items()} if rank else {}
        for handle in (plain, compiled):
            handle.set_base_change(d, str(rank))
        with torch.no_grad():
            found.append([handle.loss(s.batch) for handle in (plain, compiled)])
            with compiled.without_adapter():
                assert torch.allclose(compiled.loss(s.batch), found[0][0])
    assert all(torch.allclose(a, b) for a, b in found)
    assert len({round(float(a), 3) for a, _ in found}) == 2
    torch._dynamo.reset()
