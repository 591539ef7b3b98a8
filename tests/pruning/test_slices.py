"""A cut model computes what the masked one computes, trains as it does, and can be made whole again."""

import copy

import pytest
import torch
from prunable_models import BATCH, every_prunable, layout, prunable, some
from small_models import TOKENS, distance, factors, logits

from fedft.adapters.lora import LoRA
from fedft.errors import ConfigError
from fedft.models.handle import ModelHandle
from fedft.models.packed_linear import PackedLinear
from fedft.pruning.cut_adapters import cut, scattered
from fedft.pruning.groups import groups_of
from fedft.pruning.kept import Kept, everything
from fedft.pruning.masks import masked, zero_pruned
from fedft.pruning.slices import slice_for_good, sliced

SETS = 50
families = pytest.mark.parametrize("name", ["llama", "bert", "gpt2"])


def _adapted(name: str) -> ModelHandle:
    model = prunable(name)
    handle = ModelHandle(model, layout(model), LoRA())
    handle.write(factors(handle.layout, 4))
    return handle


def _both(model: torch.nn.Module, kept: Kept) -> tuple[torch.Tensor, torch.Tensor]:
    with masked(model, kept):
        under_masks = logits(model, BATCH)
    with sliced(model, kept):
        return under_masks, logits(model, BATCH)


def _agree(model: torch.nn.Module, seeds: range) -> None:
    whole = logits(model, BATCH)
    for seed in seeds:
        masks, slices = _both(model, some(groups_of(model), seed))
        assert distance(masks, slices) < 1e-5 * whole.abs().max(), seed
        assert distance(masks, whole) > 1e-3 * whole.abs().max()
        assert torch.equal(logits(model, BATCH), whole)


@families
def test_slice_is_mask_for_fifty_sets(name: str) -> None:
    _agree(prunable(name), range(SETS))


@families
def test_slice_is_mask_for_fifty_sets_with_adapters(name: str) -> None:
    _agree(_adapted(name).model, range(SETS))


@every_prunable
def test_slice_is_mask_for_every_type_of_model(name: str) -> None:
    _agree(_adapted(name).model, range(100, 103))


def test_layers_may_keep_unlike_numbers_and_all() -> None:
    """3, 1 and 4 of 4 key heads are what the sheet tried; here 3 and 4, and one channel and all of them."""
    model = prunable("llama")
    groups = groups_of(model)
    bits = torch.ones(groups.size, dtype=torch.bool)
    bits[1] = False
    bits[4 : 4 + 47] = False
    kept = Kept(groups, bits)
    assert [*kept.counts().values()] == [3, 1, 4, 48]
    assert distance(*_both(model, kept)) < 1e-4


@every_prunable
def test_adapters_get_the_same_gradients(name: str) -> None:
    handle = _adapted(name)
    kept = some(groups_of(handle.model), 8)
    found = []
    for how in (masked, sliced):
        with how(handle.model, kept):
            handle.forward(BATCH).logits.square().mean().backward()
            found.append({n: p.grad.clone() for n, p in handle.parameters().items()})
            for p in handle.parameters().values():
                p.grad = None
    masks, slices = found
    for n, x in cut(masks, kept).items():
        assert distance(x, slices[n]) <= 1e-5 * max(1.0, float(masks[n].abs().max())), n


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "gpt2"])
def test_generating_with_a_cache_gives_the_same_tokens(name: str) -> None:
    model = _adapted(name).model
    kept = some(groups_of(model), 9)
    how = {"max_new_tokens": 12, "do_sample": False, "min_new_tokens": 12}
    written = []
    for context in (masked, sliced):
        with context(model, kept):
            written.append(model.generate(**BATCH, **how))
    assert written[0].shape == (len(TOKENS), TOKENS.shape[1] + 12)
    assert torch.equal(*written)


@families
def test_training_a_slice_is_training_under_masks(name: str) -> None:
    """Five steps of AdamW with weight decay; the slice's values are in the whole adapter afterwards."""
    ends = []
    for how in (masked, sliced):
        handle = _adapted(name)
        kept = some(groups_of(handle.model), 10)
        zero_pruned(handle.parameters(), kept)
        with how(handle.model, kept):
            optimizer = torch.optim.AdamW(handle.parameters().values(), lr=0.01, weight_decay=0.1)
            for _ in range(5):
                optimizer.zero_grad()
                handle.forward(BATCH).logits.square().mean().backward()
                optimizer.step()
            inside = handle.read()
        ends.append(handle.read())
    for n, x in ends[0].items():
        assert distance(x, ends[1][n]) < 1e-3, n
    assert all(torch.equal(x, ends[1][n]) for n, x in scattered(inside, kept).items())


@families
def test_a_model_is_whole_again_bit_for_bit_also_after_an_error(name: str) -> None:
    handle = _adapted(name)
    before = {n: x.clone() for n, x in handle.model.state_dict().items()}
    objects = {n: id(p) for n, p in handle.model.named_parameters()}

    def fail() -> None:
        assert any(x.shape != before[n].shape for n, x in handle.model.state_dict().items())
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), sliced(handle.model, some(groups_of(handle.model), 11)):
        fail()
    assert all(torch.equal(x, before[n]) for n, x in handle.model.state_dict().items())
    assert objects == {n: id(p) for n, p in handle.model.named_parameters()}


@every_prunable
def test_a_slice_of_a_slice_is_the_smaller_slice(name: str) -> None:
    model = _adapted(name).model
    more, other = some(groups_of(model), 12), some(groups_of(model), 13)
    bits = more.bits & other.bits
    for _, place in more.groups.each():
        bits[place.start + int(more.bits[place].nonzero()[0])] = True
    less = Kept(more.groups, bits)
    assert less <= more
    assert less != more
    once, twice = copy.deepcopy(model), copy.deepcopy(model)
    slice_for_good(once, less)
    slice_for_good(twice, more)
    slice_for_good(twice, less, more)
    with pytest.raises(ValueError, match="has been cut away"):
        slice_for_good(twice, more, less)
    assert all(torch.equal(x, twice.state_dict()[n]) for n, x in once.state_dict().items())
    assert torch.equal(logits(once, BATCH), logits(twice, BATCH))
    with sliced(model, more), masked(model, less, more):  # masks within a slice
        assert distance(logits(model, BATCH), logits(once, BATCH)) < 1e-4


def test_what_is_cut_for_good_is_gone_from_memory() -> None:
    model = prunable("llama")
    kept = some(groups_of(model), 14)
    before = sum(p.numel() for p in model.parameters())
    biases = sum(
        len(kept.lost(m)) - len(kept.places(m)) for m, (part, _) in kept.groups.parts.items() if part.side == "rows"
    )
    slice_for_good(model, kept)
    left = before - int(kept.groups.weights[~kept.bits].sum()) - biases
    assert sum(p.numel() for p in model.parameters()) == left
    assert sum(p.untyped_storage().nbytes() for p in model.parameters()) == 4 * left


def test_nothing_pruned_changes_no_bit() -> None:
    model = prunable("gpt2")
    whole = logits(model, BATCH)
    with sliced(model, everything(groups_of(model))):
        assert torch.equal(logits(model, BATCH), whole)


def test_a_packed_weight_is_refused_by_slices_and_taken_by_masks() -> None:
    model = prunable("llama")
    layer = model.get_submodule("model.layers.1.mlp.up_proj")
    model.set_submodule("model.layers.1.mlp.up_proj", PackedLinear(layer.weight, layer.bias, 4))
    kept = some(groups_of(model), 15)
    whole = logits(model, BATCH)
    with pytest.raises(ConfigError, match="up_proj is packed"), sliced(model, kept):
        raise AssertionError("it was sliced")
    assert torch.equal(logits(model, BATCH), whole)
    with masked(model, kept):
        assert not torch.equal(logits(model, BATCH), whole)
