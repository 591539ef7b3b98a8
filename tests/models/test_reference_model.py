"""`without_adapter`: inside, the model is w0 itself, whatever a strategy has done; outside nothing has changed."""

import pytest
import torch
from small_models import changes, factors, logits, small

from fedft.adapters.full import Full
from fedft.adapters.lora import LoRA
from fedft.training.first_order import frozen


@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_inside_it_is_w0_bit_for_bit_also_where_the_base_moved(name, dtype):
    s = small(name, dtype)
    at_first = logits(s.model, s.batch)
    handle = s.handle()
    handle.write(factors(s.layout, 2))
    handle.set_base_change(changes(s.layout, 3, seed=4), "a round")
    moved = logits(s.model, s.batch)
    assert not torch.equal(moved, at_first)
    for _ in range(2):
        with handle.without_adapter():
            assert torch.equal(logits(s.model, s.batch), at_first)
        assert torch.equal(logits(s.model, s.batch), moved)
    handle.set_base_change({}, "none")  # what is kept of w0 is still w0
    handle.write({n: torch.zeros_like(x) for n, x in factors(s.layout, 2).items()})
    assert torch.equal(logits(s.model, s.batch), at_first)


def test_changes_that_modules_add_to_their_output_are_undone_too(monkeypatch):
    s = small("llama")
    at_first = logits(s.model, s.batch)
    handle = s.handle()
    monkeypatch.setattr(handle._base, "_packed", lambda m: True)
    handle.write(factors(s.layout, 2))
    handle.set_base_change(changes(s.layout, 3, seed=4), "a round")
    moved = logits(s.model, s.batch)
    with handle.without_adapter():
        assert torch.equal(logits(s.model, s.batch), at_first)
    assert torch.equal(logits(s.model, s.batch), moved)


def test_an_error_inside_leaves_no_trace():
    s = small("llama")
    handle = s.handle()
    handle.write(factors(s.layout, 2))
    handle.set_base_change(changes(s.layout, 3, seed=4), "a round")
    moved = logits(s.model, s.batch)
    with pytest.raises(ZeroDivisionError), handle.without_adapter():
        1 / 0  # noqa: B018
    assert torch.equal(logits(s.model, s.batch), moved)


@pytest.mark.parametrize("kind", [LoRA(), LoRA(("lora_B",))], ids=["both factors", "B alone"])
def test_what_does_not_learn_in_a_turn_gets_no_gradient_behind_it(kind):
    """RoLoRA and others learn one factor a round: a gradient that is left in the other would be the next round's."""
    s = small("llama")
    handle = s.handle(kind)
    handle.write(handle.kind.initial(s.layout, 2, 0))
    others = [p for n, p in handle.parameters().items() if n.endswith("lora_A")]
    asked = {n: p.requires_grad for n, p in s.model.named_parameters()}
    with frozen(others):
        with handle.without_adapter():
            pass
        handle.loss(s.batch).backward()
    assert {n: p.requires_grad for n, p in s.model.named_parameters()} == asked
    learned = {n for n, p in s.model.named_parameters() if p.grad is not None}
    assert learned
    assert all("lora_B" in n for n in learned)


def test_full_fine_tuning_has_no_reference_model():
    s = small("llama")
    handle = s.handle(Full())
    with pytest.raises(ValueError, match="no adapter that could be switched off"), handle.without_adapter():
        pass
