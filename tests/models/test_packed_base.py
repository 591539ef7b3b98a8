"""A base whose weights are packed into 4 bits: what is trained, sent and measured is as on a float base.

"The base stands at w0 + change" is a promise about what modules compute: a packed weight is never written.
"""

from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from fedft import config, strategies
from fedft.arithmetic import tensors
from fedft.arithmetic.lowrank import LowRank
from fedft.contract import Turn
from fedft.models.handle import ModelHandle
from fedft.models.layout import layout_of
from fedft.models.load import Base
from fedft.models.parameters import digest_of
from fedft.testing import Ready
from fedft.update import Plan, Update

IDS = torch.arange(8)[None]
BATCH = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS), "labels": IDS}


class Packed(nn.Linear):
    """The weight as uint8 [out * in / 2, 1], two numbers of 4 bits in each, as bitsandbytes keeps it."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None)
        self.scale = float(linear.weight.detach().abs().max()) / 7
        q = (linear.weight.detach() / self.scale).round().clamp(-7, 7).to(torch.int8) + 8
        flat = q.flatten().to(torch.uint8)
        self.weight = nn.Parameter((flat[0::2] | (flat[1::2] << 4))[:, None], requires_grad=False)

    def unpacked(self) -> torch.Tensor:
        q = torch.stack([self.weight[:, 0] & 15, self.weight[:, 0] >> 4], 1).flatten().float() - 8
        return (q * self.scale).view(self.out_features, self.in_features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.unpacked(), self.bias)


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=64, **sizes)).eval()


def both() -> tuple[Base, Base]:
    """A packed model, and a float one with the numbers that its packed weights stand for."""
    packed, plain = llama(), llama()
    for name, module in list(packed.named_modules()):
        if isinstance(module, nn.Linear) and "proj" in name:
            parent, _, leaf = name.rpartition(".")
            small = Packed(module)
            setattr(packed.get_submodule(parent), leaf, small)
            plain.get_submodule(name).weight.data.copy_(small.unpacked())
    return tuple(Base(net, None, "causal-lm", "x", digest_of(net)) for net in (packed, plain))


@pytest.fixture
def bases():
    return both()


def standing(base: Base, name: str, **options):
    """(recipe, handle, state 0, turn) of a client that begins."""
    recipe = strategies.make(name, options)
    handle = ModelHandle(base.model, layout_of(base, ["q_proj", "up_proj"]), recipe.space)
    state = recipe.first_state(handle.layout, 4, 0)
    plan = Plan("", 0, 0, rank=4, steps=2, learning_rate=1e-2)
    plan = replace(plan, tensors=recipe.downlink(state, None, plan))
    held = recipe.receive(None, plan)
    turn = Turn(plan, held, tensors.digest(held), config.Local(), 0, 0)
    recipe.start(handle, turn)
    return recipe, handle, state, turn


def test_the_layout_of_a_packed_base_is_that_of_the_float_one(bases):
    packed, plain = (layout_of(base, ["q_proj", "up_proj"]) for base in bases)
    assert packed.modules == plain.modules
    assert packed.modules["model.layers.0.mlp.up_proj"] == (48, 32)


@pytest.mark.parametrize("name", ["fedit", "ffa_lora", "flora", "fedex_lora"])
def test_a_turn_on_a_packed_base_is_that_on_the_numbers_it_stands_for(bases, name):
    sent = []
    for base in bases:
        recipe, handle, _, turn = standing(base, name)
        before = {n: p.detach().clone() for n, p in handle.base().items()}
        sent.append(recipe.local(handle, Ready(BATCH), turn).delta)
        assert all(torch.equal(p, before[n]) for n, p in handle.base().items())
    assert sent[0].keys() == sent[1].keys()
    for n in sent[0]:
        assert torch.allclose(sent[0][n], sent[1][n], atol=1e-5), n


@pytest.mark.parametrize("name", ["flora", "fedex_lora"])
def test_a_strategy_that_moves_the_base_moves_what_a_packed_one_computes(bases, name):
    losses = []
    for base in bases:
        recipe, handle, state, turn = standing(base, name)
        packed = {n: p.detach().clone() for n, p in handle.base().items() if p.dtype == torch.uint8}
        updates = [Update(recipe.local(handle, Ready(BATCH), turn).delta, n, client=str(n)) for n in (1, 2)]
        after = recipe.next_state(state, recipe.aggregate(iter(updates)))
        plan = Plan("", 1, 1, rank=4)
        held = recipe.receive(None, replace(plan, tensors=recipe.downlink(after, None, plan)))
        recipe.start(handle, replace(turn, plan=plan, held=held, held_digest=tensors.digest(held)))
        with torch.no_grad():
            losses.append(float(handle.loss(BATCH)))
        assert all(torch.equal(p, packed[n]) for n, p in handle.base().items() if n in packed)
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_a_packed_base_goes_to_another_change_and_back(bases):
    packed, _ = bases
    handle = standing(packed, "fedit")[1]
    with torch.no_grad():
        at_w0 = float(handle.loss(BATCH))
        d = {m: LowRank(torch.randn(2, i), torch.randn(o, 2)) for m, (o, i) in handle.layout.modules.items()}
        handle.set_base_change(d, "one")
        moved = float(handle.loss(BATCH))
        handle.set_base_change({}, "none")
        assert float(handle.loss(BATCH)) == at_w0
    assert abs(moved - at_w0) > 1e-3
    assert not handle.change()[0]


def test_what_a_packed_base_differs_by_is_said_as_factors(bases):
    packed, _ = bases
    handle = standing(packed, "fedit")[1]
    d = {m: LowRank(torch.randn(2, i), torch.randn(o, 2)) for m, (o, i) in handle.layout.modules.items()}
    handle.set_base_change(d, "one")
    found, _ = handle.change()
    for m in d:
        assert torch.allclose(found[m].dense(), d[m].dense(), atol=1e-5)


def test_a_dense_change_is_added_to_what_a_packed_module_gives(bases):
    losses = []
    for base in bases:
        handle = standing(base, "fedit")[1]
        packed = {n: p.detach().clone() for n, p in handle.base().items() if p.dtype == torch.uint8}
        rng = torch.Generator().manual_seed(1)
        d = {m: torch.randn(shape, generator=rng) / 8 for m, shape in handle.layout.modules.items()}
        with torch.no_grad():
            handle.set_base_change(d, "one")
            losses.append(float(handle.loss(BATCH)))
            with handle.without_adapter():
                losses.append(float(handle.loss(BATCH)))
        assert all(torch.equal(handle.base()[n], w) for n, w in packed.items())
        assert all(torch.equal(handle.change()[0][m], x) for m, x in d.items())
    assert losses[:2] == pytest.approx(losses[2:], abs=1e-5)
    assert abs(losses[0] - losses[1]) > 1e-3
