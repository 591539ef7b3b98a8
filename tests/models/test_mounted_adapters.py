"""Adapters of several shapes in one model; one that cannot be put in leaves the model as it was."""

import pytest
import torch
from small_models import factors, logits, small

from fedft.adapters.lora import LoRA
from fedft.models.handle import ModelHandle


class Injection(Exception):
    pass


@pytest.fixture
def failing(monkeypatch):
    """Makes peft fail at the nth layer that it is to adapt, until it is called with None."""
    from peft.tuners.lora.layer import LoraLayer

    real = LoraLayer.update_layer

    def at(n):
        left = [n]

        def update(self, *args, **kwargs):
            left[0] -= 1
            if not left[0]:
                raise Injection("no room")
            return real(self, *args, **kwargs)

        monkeypatch.setattr(LoraLayer, "update_layer", real if n is None else update)

    return at


def looks(model):
    """Modules by identity, parameters by name and whether they ask for gradients, and peft's own note."""
    modules = {n: id(m) for n, m in model.named_modules()}
    parameters = {n: (id(p), p.requires_grad) for n, p in model.named_parameters()}
    return modules, parameters, sorted(getattr(model, "peft_config", {}))


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert"])
@pytest.mark.parametrize("n", [1, 3])
def test_an_injection_that_fails_leaves_the_model_as_it_was(name, n, failing):
    s = small(name)
    before, said, asked = looks(s.model), logits(s.model, s.batch), [p.requires_grad for p in s.model.parameters()]
    handle = ModelHandle(s.model, s.layout, LoRA())
    s.model.requires_grad_(True)
    failing(n)
    with pytest.raises(Injection):
        handle.write(factors(s.layout, 2))
    assert looks(s.model) == before
    assert [p.requires_grad for p in s.model.parameters()] == asked
    assert torch.equal(logits(s.model, s.batch), said)
    failing(None)
    handle.write(factors(s.layout, 2))
    other = small(name)
    whole = ModelHandle(other.model, other.layout, LoRA())
    whole.write(factors(s.layout, 2))
    assert torch.equal(logits(s.model, s.batch), logits(other.model, other.batch))


@pytest.mark.parametrize("n", [1, 3])
def test_a_second_shape_that_fails_leaves_the_first_one_live(n, failing):
    s = small("llama")
    handle = ModelHandle(s.model, s.layout, LoRA())
    handle.write(factors(s.layout, 2))
    before, said, read = looks(s.model), logits(s.model, s.batch), handle.read()
    failing(n)
    with pytest.raises(Injection):
        handle.write(factors(s.layout, 3))
    assert looks(s.model) == before
    assert torch.equal(logits(s.model, s.batch), said)
    assert all(torch.equal(read[name], x) for name, x in handle.read().items())
    failing(None)
    handle.write(factors(s.layout, 3))
    assert {x.shape[0] for name, x in handle.read().items() if name.endswith("lora_A")} == {3}
    handle.write(factors(s.layout, 2))
    assert torch.equal(logits(s.model, s.batch), said)
