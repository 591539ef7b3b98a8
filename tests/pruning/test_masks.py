"""A model with groups switched off: exact zeros where nothing flows, and the model whole again afterwards."""

import torch
from prunable_models import BATCH, every_prunable, layout, prunable, some
from small_models import factors, logits

from fedft.adapters.lora import LoRA
from fedft.arithmetic.named_pairs import A_SUFFIX, B_SUFFIX
from fedft.models.handle import ModelHandle
from fedft.pruning.groups import groups_of
from fedft.pruning.kept import everything
from fedft.pruning.masks import masked, zero_pruned


def _adapted(name: str) -> ModelHandle:
    model = prunable(name)
    handle = ModelHandle(model, layout(model), LoRA())
    handle.write(factors(handle.layout, 4))
    return handle


def _loss(handle: ModelHandle) -> torch.Tensor:
    return handle.forward(BATCH).logits.square().mean()


@every_prunable
def test_what_is_pruned_has_gradients_of_exactly_zero_and_the_rest_has_some(name: str) -> None:
    handle = _adapted(name)
    kept = some(groups_of(handle.model), 4)
    adapter = handle.parameters()
    with masked(handle.model, kept):
        zero_pruned(adapter, kept)
        _loss(handle).backward()
    for module, (part, _) in kept.groups.parts.items():
        lost = kept.lost(module)
        assert lost.any()
        p = adapter[module + (B_SUFFIX if part.side == "rows" else A_SUFFIX)]
        for x in (p, p.grad):
            of_places = x.abs().amax(1 if part.side == "rows" else 0)
            assert not of_places[lost].any(), module
        assert p.grad.abs().amax(1 if part.side == "rows" else 0)[~lost].count_nonzero() > 0


@every_prunable
def test_the_model_is_whole_again_and_no_weight_has_moved(name: str) -> None:
    handle = _adapted(name)
    groups = groups_of(handle.model)
    before, state = logits(handle.model, BATCH), {n: x.clone() for n, x in handle.model.state_dict().items()}
    with masked(handle.model, everything(groups)) as masks:
        assert torch.equal(logits(handle.model, BATCH), before)
        masks.set(some(groups, 1))
        assert not torch.equal(logits(handle.model, BATCH), before)
    assert torch.equal(logits(handle.model, BATCH), before)
    assert all(torch.equal(x, state[n]) for n, x in handle.model.state_dict().items())


def test_a_pruned_feature_that_is_infinite_does_not_matter() -> None:
    handle = _adapted("llama")
    groups = groups_of(handle.model)
    kept = some(groups, 2)
    layer = handle.model.get_submodule("model.layers.0.mlp.up_proj")
    with torch.no_grad():
        layer.base_layer.bias[kept.lost("model.layers.0.mlp.up_proj")] = torch.inf
    with masked(handle.model, kept):
        assert logits(handle.model, BATCH).isfinite().all()


def test_what_was_pruned_stays_at_zero_under_weight_decay_and_fresh_moments() -> None:
    handle = _adapted("bert")
    kept = some(groups_of(handle.model), 3)
    adapter = handle.parameters()
    zero_pruned(adapter, kept)
    optimizer = torch.optim.AdamW(adapter.values(), lr=0.1, weight_decay=0.1)
    with masked(handle.model, kept):
        for _ in range(3):
            optimizer.zero_grad()
            _loss(handle).backward()
            optimizer.step()
    now = {n: p.detach().clone() for n, p in adapter.items()}
    zero_pruned(adapter, kept)
    assert all(torch.equal(p, now[n]) for n, p in adapter.items())
