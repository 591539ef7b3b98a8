"""What `[model] targets` chooses, what it refuses or leaves out, and what share of a model it covers."""

import logging

import pytest
import torch
import transformers
from small_models import base_of, factors, llama, small
from torch import nn

from fedft import run_file, strategies
from fedft.adapters.lora import LoRA
from fedft.errors import ConfigError, DataError
from fedft.models import resident, targets
from fedft.models.handle import ModelHandle
from fedft.models.layout import layout_of

TINY = {"vocab_size": 20, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
TINY |= {"num_attention_heads": 2, "num_key_value_heads": 1}


def drawn(config):
    with torch.random.fork_rng(devices=[]):
        return base_of(transformers.AutoModelForCausalLM.from_config(config))


def mamba():
    return drawn(transformers.MambaConfig(vocab_size=20, hidden_size=16, num_hidden_layers=2, state_size=4))


class Named(nn.Module):
    """Linear layers of these names, and nothing else."""

    def __init__(self, *names):
        super().__init__()
        self.config = transformers.PretrainedConfig()
        for n in names:
            self.add_module(n, nn.Linear(2, 2))

    def get_output_embeddings(self):
        return None


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("q_proj", ["q_proj"]),
        (["q_proj"], ["q_proj"]),
        ("xq_proj", ["xq_proj"]),
        (["q_proj", "xq_proj"], ["q_proj", "xq_proj"]),
        ("re:x?q_proj", ["q_proj", "xq_proj"]),
        ("re:q_.*", ["q_proj"]),
    ],
)
def test_endings_match_at_dots_only(wanted, found):
    assert list(layout_of(base_of(Named("q_proj", "xq_proj", "v")), wanted).modules) == found


@pytest.mark.parametrize("wanted", ["proj", "_proj", "re:proj", "re:q_pro"])
def test_a_part_of_a_name_chooses_nothing(wanted):
    with pytest.raises(DataError, match=r"no layer .*; this model has q_proj, v, xq_proj"):
        layout_of(base_of(Named("q_proj", "xq_proj", "v")), wanted)


def test_an_ending_may_have_dots_and_several_add_up():
    base = base_of(llama())
    both = layout_of(base, ["layers.1.mlp.up_proj", "self_attn.q_proj"]).modules
    wanted = [f"model.layers.{n}" for n in ("0.self_attn.q_proj", "1.mlp.up_proj", "1.self_attn.q_proj")]
    assert list(both) == wanted
    assert len(layout_of(base, "re:.*layers\\.(1|2)\\..*_proj").modules) == 7


def test_an_expression_that_is_none_is_refused_with_the_run_file():
    with pytest.raises(ConfigError, match=r"targets: '\(' is no regular expression"):
        run_file.from_dict({"model": {"targets": ["q_proj", "re:("]}})


def test_coverage_counts_layers_and_the_share_of_the_body():
    """A Llama's layer has 16 x 16 q and o, 8 x 16 k and v, three of 16 x 24, two norms of 16; the last norm is one."""
    base = base_of(llama())
    layer = 2 * 256 + 2 * 128 + 3 * 384
    body = 2 * (layer + 32) + 16
    every = targets.coverage(base, layout_of(base, "all-linear"))
    assert (every.layers, every.share) == (14, 2 * layer / body)
    handle = ModelHandle(base.model, layout := layout_of(base, "q_proj"), LoRA())
    handle.write(factors(layout, 2))
    q = targets.coverage(base, layout)
    assert (q.layers, q.share) == (2, 2 * 256 / body)
    assert str(q) == f"2 layers, {512 / body:.1%} of the body's parameters"


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert"])
def test_all_linear_covers_nearly_all_of_a_dense_body(name):
    s = small(name)
    base = base_of(s.model, "sequence-classification" if name == "bert" else "causal-lm")
    assert 0.9 < targets.coverage(base, s.layout).share < 1


def test_what_peft_forbids_is_left_out_and_named(caplog):
    base = mamba()
    with caplog.at_level(logging.WARNING):
        layout = layout_of(base, "all-linear")
    assert {n.split(".")[-1] for n in layout.modules} == {"in_proj", "x_proj", "dt_proj"}
    assert "2 layers (out_proj) are left out: peft puts no adapter on them in a mamba model" in caplog.text
    with pytest.raises(
        DataError, match="no adapter on 'out_proj' of a mamba model; there are dt_proj, in_proj, x_proj"
    ):
        layout_of(base, ["in_proj", "out_proj"])


@pytest.mark.parametrize("kind", sorted(targets.BYPASSING))
def test_the_forbidden_layers_are_those_of_peft(kind):
    from peft import LoraConfig
    from peft.tuners.tuners_utils import _check_lora_target_modules_mamba

    model = Named("x")
    model.config.model_type = kind
    with pytest.raises(ValueError, match="incompatible"):
        _check_lora_target_modules_mamba(LoraConfig(), model, targets.BYPASSED)


def test_layers_that_peft_takes_for_experts_are_left_out(caplog):
    """DeepSeek-V3 has dense layers and shared experts beside the fused ones; peft means the latter by their names."""
    config = transformers.DeepseekV3Config(
        **{**TINY, "num_key_value_heads": 2, "num_hidden_layers": 2},
        n_routed_experts=4, num_experts_per_tok=2, n_group=2, topk_group=1, moe_intermediate_size=8,
        first_k_dense_replace=1, q_lora_rank=8, kv_lora_rank=8, qk_nope_head_dim=8, qk_rope_head_dim=8, v_head_dim=8,
    )  # fmt: skip
    base = drawn(config)
    with pytest.raises(DataError, match="no adapter on 'gate_proj' of a deepseek_v3 model"):
        layout_of(base, ["gate_proj", "q_a_proj"])
    assert not caplog.text
    layout = layout_of(base, "all-linear")
    assert "6 layers (down_proj, gate_proj, up_proj) are left out" in caplog.text
    assert layout.experts == {m for m in layout.modules if "gate_up_proj" in m or "down_proj" in m}
    assert len(layout.experts) == 2 * 4
    ModelHandle(base.model, layout, LoRA()).write(factors(layout, 2))  # and peft takes what is left


@pytest.mark.parametrize("kind", ["Llama4Text", "Phimoe"])
def test_routers_that_are_linear_layers_are_left_out(kind, caplog):
    """They give the choice of experts too: what peft would add to is a tuple."""
    base = drawn(getattr(transformers, f"{kind}Config")(**TINY, num_local_experts=3, head_dim=8))
    layout = layout_of(base, "all-linear")
    assert "2 layers (router) are left out" in caplog.text
    ModelHandle(base.model, layout, LoRA()).write(factors(layout, 2))
    base.model(input_ids=torch.tensor([[1, 2, 3]]))


def test_a_models_own_linear_layers_that_are_plain_stay():
    assert len(layout_of(drawn(transformers.FalconConfig(**TINY)), "all-linear").modules) == 8


def test_convolutions_and_tables_are_no_experts():
    layout_of(mamba(), "all-linear")  # conv1d.weight [16, 1, 4], A_log [32, 4]
    layout_of(base_of(small("bert").model, "sequence-classification"), "all-linear")


def test_full_fine_tuning_needs_no_targets(tmp_path, tiny_base, caplog):
    """It trains experts too; targets that say something else are said to have no effect."""
    base = transformers.AutoTokenizer.from_pretrained(tiny_base)
    drawn(transformers.MixtralConfig(**{**TINY, "vocab_size": len(base)}, num_local_experts=3)).model.save_pretrained(
        tmp_path
    )
    base.save_pretrained(tmp_path)
    model = {"id": str(tmp_path), "targets": ["q_proj"]}
    config = run_file.from_dict({"model": model, "data": {"max_length": 16}, "strategy": {"name": "fedkseed"}})
    with caplog.at_level(logging.WARNING):
        here = resident.load(config, strategies.of(config))
    assert any("experts" in n for n in here.layout.parameters)
    assert "targets = ['q_proj'] has no effect" in caplog.text
