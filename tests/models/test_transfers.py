"""Trained tensors come and go in one copy each way, with the bits that tensor-by-tensor copies have."""

from collections import Counter

import pytest
import torch
from small_experts import drawn
from small_models import base_of, factors, gpt2, llama, normal, small
from torch.utils._python_dispatch import TorchDispatchMode

from fedft.adapters.full import Full
from fedft.adapters.lora import LoRA
from fedft.arithmetic.named_pairs import B_SUFFIX
from fedft.models import transfers
from fedft.models.handle import ModelHandle
from fedft.models.layout import layout_of

COPIES = ("_to_copy", "copy_", "clone", "_foreach_copy_")


class Copies(TorchDispatchMode):
    """Counts operations that copy."""

    def __init__(self):
        super().__init__()
        self.found = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.__name__.split(".")[0]
        if name in COPIES:
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


def lora(alpha=None):
    s = small("llama")
    return ModelHandle(s.model, s.layout, LoRA(), lora_alpha=alpha), factors(s.layout, 3)


def experts():
    base = drawn("gpt_oss")
    layout = layout_of(base, "all-linear")
    return ModelHandle(base.model, layout, LoRA(), lora_alpha=7.0), factors(layout, 2)


def whole(tied):
    model = llama(tied)
    layout = layout_of(base_of(model), ["q_proj"], modules_to_save=["lm_head", "embed_tokens", "norm"])
    return ModelHandle(model, layout, LoRA(), lora_alpha=5.0), factors(layout, 2)


def full():
    model = gpt2()
    layout = layout_of(base_of(model), [])
    handle = ModelHandle(model, layout, Full())
    return handle, {n: 0.1 * normal(k, *p.shape) for k, (n, p) in enumerate(handle.base().items())}


MAKE = {
    "lora": lora, "a scale that is no power of two": lambda: lora(1.0), "experts": experts,
    "modules_to_save": lambda: whole(False), "tied modules_to_save": lambda: whole(True), "full": full,
}  # fmt: skip


@pytest.fixture(params=["cpu", "as on an accelerator", "none small", "small buffers"])
def way(request, monkeypatch):
    """How tensors travel: the path of an accelerator, with its second buffer, runs on the CPU as well."""
    if request.param == "as on an accelerator":
        monkeypatch.setattr(transfers, "_is_cpu", lambda device: False)
    elif request.param == "none small":
        monkeypatch.setattr(transfers, "_is_cpu", lambda device: False)
        monkeypatch.setattr(transfers, "ALONE", 0)
    elif request.param == "small buffers":
        monkeypatch.setattr(transfers, "_is_cpu", lambda device: False)
        monkeypatch.setattr(transfers, "MOST", 600)
    return request.param


@pytest.mark.parametrize("case", MAKE)
def test_what_is_written_and_read_has_the_bits_of_copies_tensor_by_tensor(case, way):
    handle, values = MAKE[case]()
    w0 = {n: p.detach().clone() for n, p in handle.base().items()}
    handle.write(values)
    adapter, base = handle.adapter(), handle.base()
    assert values.keys() == handle.parameters().keys()
    for n, x in values.items():
        if n in base:
            assert torch.equal(base[n], w0[n] + x)
        else:
            assert torch.equal(adapter[n], x / handle.scale(n) if handle.scale(n) != 1 else x)
    read = handle.read()
    assert list(read) == list(handle.parameters())
    for n, p in handle.parameters().items():
        want = p.detach() - w0[n] if n in base else p.detach() * handle.scale(n)
        assert torch.equal(read[n], want)
        assert read[n].is_contiguous()
        assert read[n].dtype == torch.float32
    assert handle.values().keys() >= read.keys()


@pytest.mark.parametrize("steps", ["read", "write"])
def test_an_adapter_comes_and_goes_in_one_copy_whatever_the_number_of_its_tensors(steps):
    handle, values = lora(7.0)
    handle.write(values)
    assert len(values) > 20
    with Copies() as copies:
        handle.read() if steps == "read" else handle.write(values)
    assert copies.found == {"_foreach_copy_": 1}


def test_to_an_accelerator_and_back_is_one_crossing_each(monkeypatch):
    """Gathered there, then one copy; and the other way round."""
    monkeypatch.setattr(transfers, "_is_cpu", lambda device: False)
    handle, values = lora()
    handle.write(values)
    with Copies() as copies:
        handle.read()
    assert copies.found == {"_foreach_copy_": 1, "copy_": 1}
    with Copies() as copies:
        handle.write(values)
    assert copies.found["_foreach_copy_"] == 2  # into the buffer, out of the one over there
    assert not copies.found["copy_"]


def test_tensors_of_a_buffer_begin_where_torch_would_begin_them_and_share_no_entry(monkeypatch):
    monkeypatch.setattr(transfers, "_is_cpu", lambda device: False)
    xs = {str(k): normal(k, k + 1).to(dtype) for k, dtype in enumerate([torch.float32, torch.bfloat16] * 4)}
    found = transfers.to_cpu(xs)
    assert list(found) == list(xs)
    for n, x in xs.items():
        assert torch.equal(found[n], x.float())
        assert found[n].data_ptr() % 64 == found["0"].data_ptr() % 64
    for x in found.values():
        x.fill_(7.0)
    assert [float(x.sum()) for x in found.values()] == [7.0 * x.numel() for x in xs.values()]
    assert not any((x == 7).any() for x in xs.values())


def test_large_tensors_have_memory_of_their_own(monkeypatch):
    monkeypatch.setattr(transfers, "_is_cpu", lambda device: False)
    monkeypatch.setattr(transfers, "ALONE", 64)
    xs = {"large": torch.ones(16), "small": torch.ones(15), "small too": torch.ones(3)}
    found = transfers.to_cpu(xs)
    assert found["large"].untyped_storage().nbytes() == 64
    assert found["small"].untyped_storage().data_ptr() == found["small too"].untyped_storage().data_ptr()


def test_on_the_cpu_each_has_memory_of_its_own():
    found = transfers.to_cpu({"a": torch.ones(3), "b": torch.ones(5)})
    assert [x.untyped_storage().nbytes() for x in found.values()] == [12, 20]
    assert transfers.to_cpu({}) == {}


def test_a_value_of_another_shape_is_an_error_on_either_way(monkeypatch):
    for cpu in (True, False):
        monkeypatch.setattr(transfers, "_is_cpu", lambda device, cpu=cpu: cpu)
        with pytest.raises(RuntimeError):
            transfers.to_device([torch.ones(3), torch.ones(4)], [torch.ones(3), torch.ones(5)])


def test_only_what_scales_is_scaled():
    handle, values = lora(1.0)
    handle.write(values)
    scaled = [n for n in values if handle.scale(n) != 1]
    assert scaled == [n for n in values if n.endswith(B_SUFFIX)]
