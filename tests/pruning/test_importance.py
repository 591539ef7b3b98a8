"""What groups are worth by an adapter's gradients, against the formula multiplied out."""

from dataclasses import replace

import pytest
import torch
from prunable_models import BATCH, every_prunable, layout, prunable, some
from small_models import factors, normal

from fedft.adapters.lora import LoRA
from fedft.arithmetic.named_pairs import A_SUFFIX, B_SUFFIX
from fedft.config import Local
from fedft.contract import Turn
from fedft.models.handle import ModelHandle
from fedft.models.packed_linear import PackedLinear
from fedft.pruning import importance
from fedft.pruning.groups import groups_of
from fedft.pruning.importance import Importance, Sums, importance_sums
from fedft.pruning.kept import everything
from fedft.pruning.masks import masked, zero_pruned
from fedft.training.first_order import FirstOrder
from fedft.update import Plan


def test_the_example_of_the_sheet() -> None:
    """s = 2, W = I: G = [[.46 -.28] [-.18 .24]], W + s B A = [[2 -1] [0 1]], I = [[.8464 .0784] [0 .0576]]."""
    weight, a, b = torch.eye(2), torch.tensor([[1.0, -1.0]]), torch.tensor([[0.5], [0.0]])
    gradients = torch.tensor([[0.1, 0.2]]), torch.tensor([[0.2], [-0.1]])
    how = (lambda start, end: weight[start:end], a, b, *gradients, 2.0)
    assert importance_sums(*how, "rows").tolist() == pytest.approx([0.9248, 0.0576])
    assert importance_sums(*how, "columns").tolist() == pytest.approx([0.8464, 0.136])


@pytest.mark.parametrize("chunk", [1, 40, 1 << 18])
def test_sums_are_those_of_the_whole_matrix_however_many_rows_are_taken_at_once(chunk: int, monkeypatch) -> None:
    monkeypatch.setattr(importance, "CHUNK", chunk)
    (o, i, r), s = (13, 9, 3), 0.7
    weight, a, b, ga, gb = normal(1, o, i), normal(2, r, i), normal(3, o, r), normal(4, r, i), normal(5, o, r)
    whole = ((s * (gb @ a + b @ ga - gb @ ga)) * (weight + s * b @ a)).square()
    taken = []

    def rows(start: int, end: int) -> torch.Tensor:
        taken.append(end - start)
        return weight[start:end]

    torch.testing.assert_close(importance_sums(rows, a, b, ga, gb, s, "rows"), whole.sum(1))
    torch.testing.assert_close(importance_sums(rows, a, b, ga, gb, s, "columns"), whole.sum(0))
    assert max(taken) <= max(1, chunk // i)


def _turn(steps: int) -> Turn:
    plan = Plan("", 0, 0, rank=4, steps=steps, learning_rate=0.01)
    return Turn(plan, {}, "", Local(), 0, 0)


class _Data:
    rows = (1,)

    def batches(self, turn: Turn):
        labels = BATCH["input_ids"] if _Data.tokens else torch.tensor([0, 2])
        while True:
            yield {**BATCH, "labels": labels}


def _handle(name: str) -> ModelHandle:
    model = prunable(name)
    _Data.tokens = hasattr(model, "lm_head")
    handle = ModelHandle(model, layout(model), LoRA())
    handle.write(factors(handle.layout, 4))
    return handle


@every_prunable
def test_a_steps_scores_are_the_formulas(name: str) -> None:
    """One step: the weights, factors and gradients of this very step, multiplied out by hand for each group."""
    handle, after = _handle(name), _handle(name)
    groups = groups_of(handle.model)
    term = Importance(handle.model, Sums(groups))
    FirstOrder(terms=(term,))(handle, _Data(), _turn(1))
    after.loss(next(_Data().batches(_turn(1)))).backward()
    wanted = torch.zeros(groups.size, dtype=torch.float64)
    for s, place in groups.each():
        elements = torch.zeros(s.size, dtype=torch.float64)
        for part in s.parts:
            (a, b), scale = (after.parameters()[part.module + x] for x in (A_SUFFIX, B_SUFFIX)), 2.0
            layer = after.model.get_submodule(part.module).base_layer
            w = layer.weight.T if type(layer).__name__ == "Conv1D" else layer.weight
            g = scale * (b.grad @ a + b @ a.grad - b.grad @ a.grad)
            worth = (g * (w + scale * b @ a)).double().square()
            worth = (worth / worth.mean()).mean(1 if part.side == "rows" else 0)
            for n, value in enumerate(worth):  # group by group, place by place
                of = n % (s.size * part.width) // part.width
                wanted[place.start + of] += value
                elements[of] += 1
        wanted[place] /= elements
    torch.testing.assert_close(term.sums.scores(everything(groups)), wanted.detach(), rtol=1e-3, atol=1e-6)


def test_sums_are_smoothed_over_steps() -> None:
    groups = groups_of(prunable("llama"))
    sums, module = Sums(groups), "model.layers.0.mlp.up_proj"
    for x in (1.0, 2.0, 4.0):
        sums.add(module, torch.full((48,), x))
    assert sums.by_module[module][0].item() == pytest.approx(0.1 * (0.81 * 1 + 0.9 * 2 + 4))


@every_prunable
def test_what_is_pruned_is_worth_nothing_and_means_are_of_what_is_kept(name: str) -> None:
    handle = _handle(name)
    kept = some(groups_of(handle.model), 5)
    zero_pruned(handle.parameters(), kept)
    term = Importance(handle.model, Sums(kept.groups))
    with masked(handle.model, kept):
        FirstOrder(terms=(term,))(handle, _Data(), _turn(2))
    scores = term.sums.scores(kept)
    assert not scores[~kept.bits].any()
    assert (scores[kept.bits] > 0).all()
    for s, place in kept.groups.each():
        parts = {part.module: part for part in s.parts}
        assert scores[place][kept.bits[place]].mean().item() == pytest.approx(1, rel=1e-4), parts
    assert all(not x[kept.lost(m)].any() for m, x in term.sums.by_module.items())


def test_reading_changes_nothing() -> None:
    with_term, without = _handle("gpt2"), _handle("gpt2")
    term = Importance(with_term.model, Sums(groups_of(with_term.model)))
    one = FirstOrder(terms=(term,))(with_term, _Data(), _turn(3)).delta
    other = FirstOrder()(without, _Data(), _turn(3)).delta
    assert all(torch.equal(x, other[n]) for n, x in one.items())


@pytest.mark.parametrize("bits", [4, 8])
def test_a_packed_base_is_worth_what_the_floats_that_it_stands_for_are(bits, monkeypatch) -> None:
    """Unpacked some rows at a time."""
    monkeypatch.setattr(importance, "CHUNK", 100)
    scores = []
    for floats in (False, True):
        handle = _handle("llama")
        for module in groups_of(handle.model).parts:
            layer = handle.model.get_submodule(module)
            packed = PackedLinear(layer.base_layer.weight, layer.base_layer.bias, bits)
            with torch.no_grad():
                layer.base_layer.weight.copy_(packed.weight)
            layer.base_layer = layer.base_layer if floats else packed
        term = Importance(handle.model, Sums(groups_of(handle.model)))
        FirstOrder(terms=(term,))(handle, _Data(), _turn(2))
        scores.append(term.sums.scores(everything(term.sums.groups)))
    torch.testing.assert_close(*scores, rtol=1e-4, atol=0)


def test_a_frozen_factor_counts_with_a_gradient_of_zero() -> None:
    model = prunable("bert")
    _Data.tokens = False
    handle = ModelHandle(model, layout(model), LoRA((B_SUFFIX,)))
    values = factors(handle.layout, 4)
    handle.write(values)
    term = Importance(model, Sums(groups_of(model)))
    FirstOrder(terms=(term,))(handle, _Data(), _turn(1))
    assert (term.sums.scores(everything(term.sums.groups)) > 0).all()
    assert replace(term, sliced=None) == term
