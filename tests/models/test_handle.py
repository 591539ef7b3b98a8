"""A resident model under a handle: unit scale, orientation and the way back, bit for bit."""

import copy

import pytest
import torch
from small_models import (
    SEED,
    TOKENS,
    changes,
    distance,
    every_model,
    factors,
    is_conv1d,
    logits,
    normal,
    pairs_of,
    shifted,
    small,
)

from fedft.adapters.full import Full
from fedft.adapters.lora import LoRA
from fedft.arithmetic.lowrank import LowRank, zero
from fedft.arithmetic.named_pairs import A_SUFFIX, B_SUFFIX
from fedft.contract import Layout
from fedft.data.examples import IGNORED
from fedft.errors import DataError
from fedft.models.handle import ModelHandle
from fedft.strategies.fedit import fedit
from fedft.testing import ToyModel
from fedft.update import Plan, Update

# -- adapters


@every_model
@pytest.mark.parametrize("alpha", [None, 1.0, 7.0])
def test_factors_come_back_in_unit_scale(name, alpha):
    s = small(name)
    handle = ModelHandle(s.model, s.layout, LoRA(), lora_alpha=alpha)
    values = factors(s.layout, 3)
    handle.write(values)
    got = handle.read()
    assert list(got) == sorted(values, key=str.encode)
    for n, x in got.items():
        assert x.dtype == torch.float32
        assert torch.allclose(x, values[n], rtol=2e-7, atol=2e-8)  # x / s * s, or w0 + change - w0


@every_model
@pytest.mark.parametrize("alpha", [None, 1.0, 7.0])
def test_a_written_pair_changes_the_function_by_b_a_whatever_alpha(name, alpha):
    """In the orientation of the layer: a GPT-2 Conv1D stores its weight transposed."""
    s = small(name)
    untouched, values = copy.deepcopy(s.model), factors(s.layout, 3)
    handle = ModelHandle(s.model, s.layout, LoRA(), lora_alpha=alpha)
    handle.write(values)
    want = logits(shifted(untouched, values, s.layout), s.batch)
    assert distance(logits(handle.model, s.batch), want) < 1e-5
    assert distance(want, logits(untouched, s.batch)) > 1e-2


def test_what_is_read_is_a_copy():
    handle = small("toy").handle()
    handle.write(factors(handle.layout, 2))
    got = handle.read()
    before = {n: x.clone() for n, x in got.items()}
    for x in got.values():
        x.zero_()
    assert all(torch.equal(x, before[n]) for n, x in handle.read().items())


@every_model
def test_a_fresh_a_with_b_zero_leaves_the_outputs_bit_for_bit(name):
    s = small(name)
    before = logits(s.model, s.batch)
    handle = s.handle()
    for seed in (1, 2):
        handle.write(LoRA().initial(s.layout, 2, seed))
        assert torch.equal(logits(handle.model, s.batch), before)


@every_model
def test_two_ranks_alternate_without_seeing_each_other(name):
    s = small(name)
    untouched, handle = copy.deepcopy(s.model), s.handle()
    by_rank = {r: factors(s.layout, r, seed=10 * r) for r in (2, 3)}
    for rank in (2, 3, 2, 3):
        handle.write(by_rank[rank])
        assert (
            distance(logits(handle.model, s.batch), logits(shifted(untouched, by_rank[rank], s.layout), s.batch)) < 1e-5
        )
        assert all(x.shape == by_rank[rank][n].shape for n, x in handle.read().items())


@every_model
@pytest.mark.parametrize("trained", [(A_SUFFIX, B_SUFFIX), (B_SUFFIX,), (A_SUFFIX,)], ids=["both", "B", "A"])
def test_exactly_what_is_trained_asks_for_gradients(name, trained):
    """Also after a second rank, and back: peft switches gradients of a whole adapter on."""
    s = small(name)
    handle = s.handle(LoRA(learns=trained))
    for rank in (2, 3, 2):
        handle.write(factors(s.layout, rank))
        wanting = {id(p) for p in handle.model.parameters() if p.requires_grad}
        assert wanting == {id(p) for p in handle.parameters().values()}
        modules = {m + t for m in s.layout.modules for t in trained}
        assert set(handle.parameters()) == modules | set(s.layout.head)
        assert handle.read().keys() == handle.parameters().keys()
        handle.loss(s.batch).backward()
        assert {id(p) for p in handle.model.parameters() if p.grad is not None} <= wanting
        handle.model.zero_grad()


def test_making_an_adapter_does_not_touch_the_global_random_numbers():
    torch.manual_seed(1)
    want = torch.rand(3)
    torch.manual_seed(1)
    s = small("llama")
    s.handle().write(factors(s.layout, 2))
    assert torch.equal(torch.rand(3), want)


# -- moving the base


@every_model
def test_standing_moves_the_weights_by_the_dense_change_in_their_orientation(name):
    s = small(name)
    w0 = {m: s.model.get_submodule(m).weight.detach().clone() for m in s.layout.modules}
    change, handle = changes(s.layout, 3), s.handle()
    handle.set_base_change(change, "a")
    for m, d in change.items():
        module = handle.model.get_submodule(m)
        assert torch.equal(module.weight, w0[m] + (d.dense().T if is_conv1d(module) else d.dense()))


@every_model
@pytest.mark.parametrize(
    "empty",
    [lambda layout: {}, lambda layout: {m: zero(*s) for m, s in layout.modules.items()}],
    ids=["no modules", "zeros"],
)
def test_standing_at_nothing_is_w0_bit_for_bit(name, empty):
    s = small(name)
    w0 = {n: p.detach().clone() for n, p in s.model.named_parameters()}
    handle = s.handle()
    for k in range(3):
        handle.set_base_change(changes(s.layout, k + 1, seed=k), f"round {k}")
    handle.set_base_change(empty(s.layout), "none")
    assert all(torch.equal(p, w0[n]) for n, p in handle.model.named_parameters())


def test_modules_left_out_of_a_change_stand_at_w0():
    s = small("llama")
    w0 = {m: s.model.get_submodule(m).weight.detach().clone() for m in s.layout.modules}
    change, handle = changes(s.layout, 2), s.handle()
    handle.set_base_change(change, "all")
    first = next(iter(change))
    handle.set_base_change({first: change[first]}, "first")
    for m, w in w0.items():
        assert torch.equal(handle.model.get_submodule(m).weight, w) == (m != first)


@every_model
def test_standing_does_not_depend_on_where_the_model_stood(name):
    s, other = small(name), small(name)
    handle, fresh = s.handle(), other.handle()
    for k in range(5):
        handle.set_base_change(changes(s.layout, 2, seed=k), str(k))
    fresh.set_base_change(changes(s.layout, 2, seed=4), "4")
    assert torch.equal(logits(handle.model, s.batch), logits(fresh.model, s.batch))


def test_a_known_key_is_not_computed_again():
    s = small("toy")
    handle = s.handle()
    handle.set_base_change(changes(s.layout, 2), "key")
    moved = handle.model.first.weight.detach().clone()
    handle.set_base_change(changes(s.layout, 2, seed=9), "key")
    assert torch.equal(handle.model.first.weight, moved)


@every_model
def test_adapter_and_base_change_add_and_are_reported_as_one(name):
    s = small(name)
    untouched, handle = copy.deepcopy(s.model), s.handle()
    values, under = factors(s.layout, 2), changes(s.layout, 3, seed=7)
    handle.set_base_change(under, "under")
    handle.write(values)
    pairs, whole = handle.change()
    for m, (a, b) in pairs_of(values, s.layout).items():
        assert distance(pairs[m].dense(), under[m].dense() + b @ a) < 1e-5
    assert whole.keys() == s.layout.head.keys()
    both = {n: values[n] for n in s.layout.head}
    both |= {m + x: t for m, d in pairs.items() for x, t in ((A_SUFFIX, d.A), (B_SUFFIX, d.B))}
    assert distance(logits(handle.model, s.batch), logits(shifted(untouched, both, s.layout), s.batch)) < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_half_precision_base_is_w0_plus_change_with_one_rounding(name, dtype):
    """A running sum would round once per round; here round 50 is as near as round 1."""
    s = small(name, dtype)
    w0 = {m: s.model.get_submodule(m).weight.detach().clone() for m in s.layout.modules}
    handle = s.handle()
    for k in range(50):
        change = {m: LowRank(d.A, (k + 1) * 1e-3 * d.B) for m, d in changes(s.layout, 2).items()}
        handle.set_base_change(change, str(k))
    for m, d in change.items():
        module = handle.model.get_submodule(m)
        assert module.weight.dtype == dtype
        assert torch.equal(module.weight, (w0[m].float() + (d.dense().T if is_conv1d(module) else d.dense())).to(dtype))
    handle.set_base_change({m: zero(*x) for m, x in s.layout.modules.items()}, "none")
    assert all(torch.equal(handle.model.get_submodule(m).weight, w) for m, w in w0.items())


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert"])
def test_adapters_on_a_half_precision_base_are_float32(name):
    """In bfloat16 a step below 2^-9 of the value is lost, and what is read is not what was written."""
    s = small(name, torch.bfloat16)
    handle, values = s.handle(), factors(s.layout, 2)
    handle.write(values)
    adapter = {n: p for n, p in handle.parameters().items() if n not in s.layout.head}
    assert {p.dtype for p in adapter.values()} == {torch.float32}
    assert all(torch.allclose(handle.read()[n], values[n], rtol=2e-7) for n in adapter)
    assert torch.isfinite(handle.loss(s.batch))


# -- predictions


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_causal_model_predicts_every_next_token(name):
    s = small(name)
    labels = TOKENS.clone()
    labels[:, :3] = IGNORED
    guess, wanted = s.handle().predictions({**s.batch, "labels": labels})
    assert torch.equal(wanted[:, :-1], labels[:, 1:])
    assert (wanted[:, -1] == IGNORED).all()  # no token comes after the last: nothing is learned there
    assert torch.equal(guess, logits(s.model, s.batch).argmax(-1))


def test_a_classifier_predicts_a_class_per_row():
    s = small("bert")
    guess, wanted = s.handle().predictions(s.batch)
    assert torch.equal(wanted, s.batch["labels"])
    assert torch.equal(guess, logits(s.model, s.batch).argmax(-1))


def test_numbers_to_fit_have_no_predictions():
    s = small("toy")
    with pytest.raises(DataError, match="numbers to fit"):
        s.handle().predictions(s.batch)


# -- the full space


@every_model
def test_the_full_space_reads_and_writes_changes_since_w0(name):
    s = small(name)
    w0 = {n: p.detach().clone() for n, p in s.model.named_parameters(remove_duplicate=False)}
    handle = s.handle(Full())
    assert list(handle.parameters()) == sorted(s.layout.parameters, key=str.encode)
    assert not any(x.any() for x in handle.read().values())
    change = {n: 0.01 * normal(k, *shape) for k, (n, shape) in enumerate(s.layout.parameters.items())}
    handle.write(change)
    assert all(torch.equal(p, w0[n] + change[n]) for n, p in handle.parameters().items())
    assert all(distance(x, change[n]) < 1e-6 for n, x in handle.read().items())
    handle.write({n: -x for n, x in change.items()})  # since w0, not since the last write
    assert all(torch.equal(p, w0[n] - change[n]) for n, p in handle.parameters().items())
    handle.reset()
    assert all(torch.equal(p, w0[n]) for n, p in handle.model.named_parameters())


def test_reset_comes_back_from_steps_that_no_write_preceded():
    s = small("toy")
    handle = s.handle(Full())
    w0 = {n: p.detach().clone() for n, p in handle.parameters().items()}
    handle.reset()
    for p in handle.parameters().values():
        p.data.add_(0.3)
    handle.reset()
    assert all(torch.equal(p, w0[n]) for n, p in handle.parameters().items())


# -- a head beside the adapter


def test_a_classification_head_is_trained_counted_and_averaged():
    s = small("bert")
    assert s.layout.head == {"classifier.bias": (3,), "classifier.weight": (3, 16)}
    recipe = fedit()
    spec = recipe.spec(s.layout, Plan("", 0, 0, rank=2))
    assert {n: spec[n].shape for n in s.layout.head} == s.layout.head
    handle = s.handle()
    handle.write(LoRA().initial(s.layout, 2, SEED))
    assert set(s.layout.head) <= handle.parameters().keys()
    assert not any(handle.read()[n].any() for n in s.layout.head)
    updates = [Update({n: normal(k, *x.shape) for n, x in spec.items()}, 3 * k + 1) for k in range(2)]
    mean = recipe.aggregate(updates)
    for n in s.layout.head:
        assert distance(mean[n], (updates[0].delta[n] + 4 * updates[1].delta[n]) / 5) < 1e-6


# -- loss


def test_dropout_is_on_only_while_gradients_are():
    seen = []

    class Watching(ToyModel):
        def forward(self, x, labels=None):
            seen.append(self.training)
            return super().forward(x, labels)

    handle = ModelHandle(Watching(), Layout(parameters={"second.weight": (4, 6)}), Full())
    batch = small("toy").batch
    assert handle.loss(batch).requires_grad
    with torch.no_grad():
        assert not handle.loss(batch).requires_grad
    assert seen == [True, False]


def test_the_loss_is_float32_even_of_a_half_precision_model():
    s = small("llama", torch.bfloat16)
    assert s.handle(Full()).loss(s.batch).dtype == torch.float32
