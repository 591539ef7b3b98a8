"""Which layers of a base are packed, and that whatever works on the base works on it packed."""

import copy
from functools import partial

import pytest
import torch
import transformers
from small_models import TOKENS, Small, base_of, distance, factors, gpt2, llama, logits, small
from torch import nn

from fedft.arithmetic.lowrank import LowRank
from fedft.data import batches
from fedft.data.examples import Example
from fedft.data.micro_batches import InPieces, MicroBatch
from fedft.errors import DataError
from fedft.models import checkpointing, quantized_base
from fedft.models.layout import layout_of
from fedft.models.packed_linear import PackedLinear
from fedft.models.parameters import parameters_of
from fedft.training.first_order import differentiate

every_size = pytest.mark.parametrize("bits", [4, 8])
written = pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])


def task_of(name: str) -> str:
    return "sequence-classification" if name == "bert" else "causal-lm"


def both(name: str, bits: int) -> tuple[Small, Small]:
    """(a packed model, a float one with the weights that the packed ones stand for), each with its layout."""
    found = []
    for change in (quantized_base.packed, quantized_base.rounded):
        m = small(name)
        base = change(base_of(m.model, task_of(name)), bits)
        found.append(Small(base.model, layout_of(base, "all-linear"), m.batch))
    return found[0], found[1]


def packed_in(model: nn.Module) -> set[str]:
    return {n for n, m in model.named_modules() if isinstance(m, PackedLinear)}


@every_size
@written
def test_layers_of_the_body_are_packed_and_nothing_else(name, bits):
    before = {n: p.clone() for n, p in small(name).model.named_parameters()}
    packed, plain = both(name, bits)
    assert packed_in(packed.model) == plain.layout.modules.keys()
    assert packed.layout.modules == plain.layout.modules
    assert packed.layout.head == plain.layout.head
    left = {n: p for n, p in packed.model.named_parameters() if not n.startswith(tuple(packed_in(packed.model)))}
    assert left
    assert all(torch.equal(p, before[n]) for n, p in left.items())


@every_size
@written
def test_a_packed_model_computes_what_its_weights_stand_for(name, bits):
    packed, plain = both(name, bits)
    assert distance(logits(packed.model, packed.batch), logits(plain.model, plain.batch)) <= 1e-5
    assert distance(logits(packed.model, packed.batch), logits(small(name).model, plain.batch)) > 1e-4


@every_size
@pytest.mark.parametrize("name", ["llama", "bert"])
def test_gradients_of_adapters_are_those_on_the_float_base_bit_for_bit(name, bits):
    gradients = []
    for m in both(name, bits):
        handle = m.handle()
        handle.write(factors(m.layout, 3))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)  # of BERT's dropout
            handle.loss(m.batch).backward()
        gradients.append({n: p.grad for n, p in handle.parameters().items()})
    assert gradients[0].keys() == gradients[1].keys()
    assert any(n.endswith("lora_A") for n in gradients[0])
    assert all(torch.equal(g, gradients[1][n]) for n, g in gradients[0].items())
    assert all(bool(g.any()) for n, g in gradients[0].items() if "mlp" in n or "intermediate" in n)


@every_size
@pytest.mark.parametrize("mode", ["checkpointed", "in pieces"])
def test_memory_modes_give_the_same_gradients_on_a_packed_base(mode, bits):
    gradients = []
    for on in (False, True):
        packed, _ = both("llama", bits)
        handle = packed.handle()
        handle.write(factors(packed.layout, 3))
        if on and mode == "checkpointed":
            checkpointing.switch_on(packed.model, "it")
        rows = [Example(ids, ids, 0) for ids in TOKENS.tolist()]
        collate = partial(batches.collate, pad_id=0)
        batch = InPieces(rows, collate, MicroBatch(1)) if on and mode == "in pieces" else collate(rows)
        differentiate(handle, batch, [*handle.parameters().values()])
        gradients.append({n: p.grad for n, p in handle.parameters().items()})
    far = max(distance(g, gradients[1][n]) for n, g in gradients[0].items())
    assert far == 0 if mode == "checkpointed" else far <= 1e-6
    assert any(bool(g.any()) for g in gradients[1].values())


@every_size
def test_training_leaves_the_base_as_it_was(bits):
    packed, _ = both("llama", bits)
    handle = packed.handle()
    handle.write(factors(packed.layout, 3))
    before = {n: x.clone() for n, x in packed.model.state_dict().items() if "lora_" not in n}
    optimizer = torch.optim.AdamW(handle.parameters().values(), lr=0.1)
    handle.loss(packed.batch).backward()
    optimizer.step()
    moved = {m: LowRank(torch.ones(1, i), torch.ones(o, 1)) for m, (o, i) in packed.layout.modules.items()}
    handle.set_base_change(moved, "moved")
    handle.loss(packed.batch).backward()
    after = packed.model.state_dict()
    assert any("codes" in n for n in before)
    assert all(torch.equal(x, after[n]) for n, x in before.items())


def test_modules_that_are_trained_whole_stay_floats():
    base = quantized_base.packed(base_of(llama(tied=False)), 4, ["lm_head", "model.layers.1.mlp"])
    assert not any(n.startswith("model.layers.1.mlp") for n in packed_in(base.model))
    assert any(n.startswith("model.layers.0.mlp") for n in packed_in(base.model))


def test_a_layer_that_a_model_looks_into_stays_a_float_one():
    class Router(nn.Linear):
        pass

    net = llama()
    net.model.layers[0].mlp.gate_proj = Router(16, 24, bias=False)
    assert "model.layers.0.mlp.gate_proj" not in packed_in(quantized_base.packed(base_of(net), 4).model)


def test_a_layer_that_two_places_share_is_packed_once():
    net = llama()
    net.model.layers[1].mlp = net.model.layers[0].mlp
    model = quantized_base.packed(base_of(net), 8).model
    assert model.model.layers[0].mlp.up_proj is model.model.layers[1].mlp.up_proj
    assert isinstance(model.model.layers[1].mlp.up_proj, PackedLinear)


def test_a_tied_weight_stays_one():
    net = llama()
    net.model.layers[1].mlp.up_proj.weight = net.model.layers[0].mlp.up_proj.weight
    model = quantized_base.packed(base_of(net), 8).model
    assert model.model.layers[0].mlp.up_proj.weight is model.model.layers[1].mlp.up_proj.weight


def test_a_wrong_module_is_said():
    with pytest.raises(DataError, match="modules_to_save: no module"):
        quantized_base.packed(base_of(llama()), 4, ["nowhere"])


@every_size
def test_conv1d_is_packed_as_out_in(bits):
    net = gpt2()
    weight = net.transformer.h[0].attn.c_attn.weight.detach().clone()
    packed = quantized_base.packed(base_of(copy.deepcopy(net)), bits).model.transformer.h[0].attn.c_attn
    quantized_base.rounded(base_of(net), bits)
    assert packed.weight.shape == weight.T.shape
    assert torch.equal(packed.weight, net.transformer.h[0].attn.c_attn.weight.T)


def test_the_layout_counts_packed_weights_in_full():
    packed, plain = both("llama", 4)
    assert dict(packed.layout.parameters) == dict(plain.layout.parameters)


def test_bytes_of_a_packed_body_are_as_computed():
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2}
    net = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=32, **sizes))
    n = sum(p.numel() for p in net.model.layers.parameters() if p.ndim == 2)
    for bits, each in ((4, 0.5159), (8, 1.03125)):
        model = quantized_base.packed(base_of(copy.deepcopy(net)), bits).model
        bytes_ = sum(b.numel() * b.element_size() for n, b in model.named_buffers() if "layers." in n)
        assert bytes_ / n == pytest.approx(each, rel=2e-3)
        assert not [n for n, p in parameters_of(model).items() if p.ndim == 2 and "layers." in n]
