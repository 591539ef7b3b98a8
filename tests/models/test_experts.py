"""Experts that lie in one parameter: each is a module of its own to strategies, and one `target_parameters` to peft."""

import copy
from dataclasses import replace

import pytest
import torch
import transformers
from small_experts import BATCH, KINDS, TINY, drawn, every_kind, experts_in, logits, moved, unlike
from small_models import factors, pairs_of

from fedft import run_file, strategies
from fedft.adapters.lora import LoRA
from fedft.arithmetic.lowrank import LowRank
from fedft.contract import Kind
from fedft.errors import ConfigError, DataError
from fedft.models import resident, targets
from fedft.models.handle import ModelHandle
from fedft.models.layout import layout_of
from fedft.randomness import families


@every_kind
def test_all_linear_reaches_every_expert(kind):
    base = drawn(kind)
    layout = layout_of(base, "all-linear")
    assert len(layout.experts) == 2 * 2 * 3
    assert layout.modules["model.layers.1.mlp.experts.gate_up_proj.2"] == (
        (48, 16) if kind != "qwen3_moe" else (16, 16)
    )
    covered = targets.coverage(base, layout)
    assert (covered.layers, covered.experts) == (8, 12)
    assert covered.share > 0.9
    assert str(covered).startswith("8 layers and 12 matrices of experts, 9")


def test_targets_name_all_experts_of_a_parameter_or_single_ones():
    base = drawn("mixtral")
    chosen = layout_of(base, ["down_proj"])
    assert (
        chosen.modules.keys()
        == chosen.experts
        == {f"model.layers.{n}.mlp.experts.down_proj.{e}" for n in (0, 1) for e in range(3)}
    )
    one = layout_of(base, "re:.*0.*gate_up_proj.1")
    assert set(one.modules) == {"model.layers.0.mlp.experts.gate_up_proj.1"}
    with pytest.raises(DataError, match="this model has down_proj, gate_up_proj, k_proj, o_proj, q_proj, v_proj"):
        layout_of(base, ["w1"])


@every_kind
@pytest.mark.parametrize("chosen", ["all-linear", "re:.*(gate_up_proj.[02]|down_proj.1)"])
def test_a_forward_pass_is_that_of_weights_moved_by_hand(kind, chosen):
    """Of unlike ranks; where some experts only are adapted, the others stay."""
    base = drawn(kind)
    plain, layout = copy.deepcopy(base.model), layout_of(base, chosen)
    before, values = logits(plain), unlike(layout)
    handle = ModelHandle(base.model, layout, LoRA())
    handle.write(values)
    wanted = logits(moved(plain, values, layout))
    assert (wanted - before).abs().max() > 0.1
    torch.testing.assert_close(logits(base.model), wanted, atol=1e-5, rtol=0)
    assert all(torch.allclose(x, values[n]) for n, x in handle.read().items())
    with handle.without_adapter():
        assert torch.equal(logits(base.model), before)
    handle.write(factors(layout, 2, seed=9))  # another shape, and back again
    handle.write(values)
    torch.testing.assert_close(logits(base.model), wanted, atol=1e-5, rtol=0)
    assert all(torch.equal(p, q) for p, q in zip(experts_in(base.model), experts_in(plain), strict=True))


@every_kind
def test_a_base_change_is_written_into_each_experts_part_and_taken_back(kind):
    base = drawn(kind)
    plain, layout = copy.deepcopy(base.model), layout_of(base, "all-linear")
    handle, values = ModelHandle(base.model, layout, LoRA()), factors(layout, 2)
    d = {m: LowRank(a, b) for m, (a, b) in pairs_of(values, layout).items()}
    handle.set_base_change(d, "one")
    torch.testing.assert_close(logits(base.model), logits(moved(plain, values, layout)), atol=1e-5, rtol=0)
    handle.set_base_change({m: x.dense() for m, x in d.items()}, "multiplied out")
    torch.testing.assert_close(logits(base.model), logits(moved(plain, values, layout)), atol=1e-5, rtol=0)
    handle.set_base_change({}, "none")
    assert all(torch.equal(p, q) for p, q in zip(experts_in(base.model), experts_in(plain), strict=True))


def test_gradients_are_those_of_the_weights_moved_by_hand():
    """dL/dA = B^T G and dL/dB = G A^T with G = dL/dW_e, times alpha / rank by which B is smaller in the layer."""
    base = drawn("mixtral")
    plain, layout = copy.deepcopy(base.model), layout_of(base, ["gate_up_proj"])
    values = factors(layout, 2)
    handle = ModelHandle(base.model, layout, LoRA())
    handle.write(values)
    handle.loss(BATCH).backward()
    other = moved(plain, values, layout).requires_grad_(True)
    other(**BATCH).loss.backward()
    for m, (a, b) in pairs_of(values, layout).items():
        stack, _, index = m.rpartition(".")
        g = other.get_parameter(stack).grad[int(index)]
        torch.testing.assert_close(handle.parameters()[m + ".lora_A"].grad, b.T @ g, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(handle.parameters()[m + ".lora_B"].grad / 2, g @ a.T, atol=1e-5, rtol=1e-4)
    assert all(p.grad is None for p in experts_in(base.model))


def test_perturbed_factors_are_seen_and_their_difference_is_the_gradients():
    base = drawn("qwen3_moe")
    layout = layout_of(base, ["gate_up_proj", "down_proj"])
    handle = ModelHandle(base.model, layout, LoRA())
    handle.write(factors(layout, 2))
    z = families.make("gaussian", 7, 2)
    found = []
    with torch.no_grad():
        still = float(handle.loss(BATCH))
        for epsilon in (1e-3, -1e-3):
            with handle.perturbed(z, 0, epsilon):
                found.append(float(handle.loss(BATCH)))
        assert float(handle.loss(BATCH)) == still
    handle.loss(BATCH).backward()
    wanted = sum(float((p.grad * z.direction(n, 0, p.shape)).sum()) for n, p in handle.parameters().items())
    assert abs(wanted) > 0.1
    assert (found[0] - found[1]) / 2e-3 == pytest.approx(wanted, rel=2e-2)


def test_a_base_in_half_precision_is_summed_in_float32_and_rounded_once():
    base = drawn("mixtral", torch.bfloat16)
    layout = layout_of(base, ["down_proj"])
    handle, values = ModelHandle(base.model, layout, LoRA()), factors(layout, 2)
    plain = copy.deepcopy(base.model)
    handle.write(values)
    seen = logits(base.model)
    handle.write({n: torch.zeros_like(x) for n, x in values.items()})
    d = {m: LowRank(a, b) for m, (a, b) in pairs_of(values, layout).items()}
    handle.set_base_change(d, "one")
    assert torch.equal(seen, logits(base.model))
    assert not torch.equal(seen, logits(plain))


def test_a_failed_injection_leaves_no_pairs_of_experts_behind(monkeypatch):
    base = drawn("mixtral")
    names, before = [n for n, _ in base.model.named_modules()], logits(base.model)
    layout = layout_of(base, "all-linear")
    handle = ModelHandle(base.model, layout, LoRA())
    monkeypatch.setattr("fedft.adapters.lora_experts.Pairs.__init__", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        handle.write(factors(layout, 2))
    assert [n for n, _ in base.model.named_modules()] == names
    assert torch.equal(logits(base.model), before)


def test_adapters_used_longest_ago_leave_the_model_with_their_hooks():
    base = drawn("mixtral")
    layout = layout_of(base, ["gate_up_proj"])
    handle = ModelHandle(base.model, layout, LoRA())
    for rank in range(1, 8):
        handle.write(factors(layout, rank))
    owner = base.model.model.layers[0].mlp.experts
    assert {n for n in owner._modules if "proj" in n} == {f"gate_up_proj_r{rank}" for rank in (4, 5, 6, 7)}
    assert len(owner._forward_pre_hooks) == len(owner._forward_hooks) == 4


def test_two_handles_on_one_model_share_pairs():
    """As they share peft's layers: a change is not added twice."""
    base = drawn("mixtral")
    plain, layout = copy.deepcopy(base.model), layout_of(base, ["gate_up_proj"])
    values = factors(layout, 2)
    for _ in range(2):
        ModelHandle(base.model, layout, LoRA()).write(values)
    torch.testing.assert_close(logits(base.model), logits(moved(plain, values, layout)), atol=1e-5, rtol=0)


def test_a_copy_of_the_model_has_pairs_of_its_own():
    base = drawn("mixtral")
    layout = layout_of(base, ["gate_up_proj"])
    handle = ModelHandle(base.model, layout, LoRA())
    handle.write(factors(layout, 2))
    other, seen = copy.deepcopy(base.model), logits(base.model)
    handle.write(factors(layout, 2, seed=8))
    assert torch.equal(logits(other), seen)
    assert not torch.equal(logits(base.model), seen)


def test_experts_in_a_form_without_a_matrix_of_each_are_refused_by_name():
    """Of DBRX: all experts' rows below each other."""
    base = drawn("mixtral")
    for layer in base.model.model.layers:
        old = layer.mlp.experts.down_proj
        layer.mlp.experts.down_proj = torch.nn.Parameter(old.detach().flatten(0, 1))
    with pytest.raises(
        DataError, match=r"does not reach the experts of this mixtral model: .*down_proj and 1 more"
    ) as e:
        layout_of(base, "all-linear")
    assert '"gate_up_proj", "k_proj"' in str(e.value)


class Scaled(Kind):
    """A kind that knows layers only."""

    name = "scaled"


@pytest.mark.parametrize(("model", "said"), [({"lora_dropout": 0.1}, "take no lora_dropout"), ({}, "of kind 'scaled'")])
def test_what_experts_cannot_have_is_refused_in_a_line(tmp_path, tiny_base, model, said):
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_base)
    config = KINDS["mixtral"](**{**TINY, "vocab_size": len(tokenizer)})
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    config = run_file.from_dict({"model": {"id": str(tmp_path), **model}, "strategy": {"name": "fedit"}})
    recipe = strategies.of(config)
    with pytest.raises(ConfigError, match=r"model.layers.0.mlp.experts.down_proj.0 and 11 more are experts .*" + said):
        resident.load(config, recipe if model else replace(recipe, space=Scaled()))
