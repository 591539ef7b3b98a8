"""What can be trained in a model, by name and shape."""

import pytest
import torch
from small_models import base_of, llama, small

from fedft.adapters.full import Full
from fedft.errors import DataError
from fedft.models.layout import layout_of


@pytest.mark.parametrize(("name", "ends"), [("gpt2", ("lm_head", "wte")), ("llama", ("lm_head", "embed_tokens"))])
def test_a_tied_weight_is_one_parameter_under_its_first_name_in_canonical_order(name, ends):
    s = small(name)
    assert s.model.get_input_embeddings().weight is s.model.get_output_embeddings().weight
    found = [n for n in s.layout.parameters if n.split(".")[-2] in ends]
    assert found == ["lm_head.weight"]  # bytewise before "model." and "transformer."
    assert [n for n in s.handle(Full()).parameters() if n.split(".")[-2] in ends] == found


@pytest.mark.parametrize(("name", "linear"), [("gpt2", 2 * 4), ("llama", 2 * 7), ("bert", 2 * 6 + 1)])
def test_all_linear_is_every_linear_layer_but_output_and_head(name, linear):
    """GPT-2: c_attn, c_proj, c_fc, c_proj; LLaMA: q k v o gate up down; BERT: q k v, three dense, and the pooler."""
    layout = small(name).layout
    assert len(layout.modules) == linear
    assert not any(n.split(".")[0] in ("lm_head", "classifier", "score") for n in layout.modules)
    assert list(layout.modules) == sorted(layout.modules, key=str.encode)


def test_an_untied_output_layer_is_left_out_too():
    with torch.random.fork_rng(devices=[]):
        untied = llama(tied=False)
    layout = layout_of(base_of(untied), "all-linear")
    assert "lm_head" not in layout.modules
    assert "lm_head.weight" in layout.parameters


def test_shapes_are_out_and_in_whatever_the_orientation_in_memory():
    assert small("gpt2").layout.modules["transformer.h.0.attn.c_attn"] == (48, 16)
    assert small("llama").layout.modules["model.layers.0.mlp.down_proj"] == (16, 24)


def test_targets_choose_by_ending():
    base = base_of(small("llama").model)
    assert len(layout_of(base, ["q_proj", "v_proj"]).modules) == 4
    assert list(layout_of(base, "layers.1.self_attn.q_proj").modules) == ["model.layers.1.self_attn.q_proj"]


@pytest.mark.parametrize("targets", ["query", ["q_proj", "query"], "proj"])
def test_an_unknown_target_is_one_line_that_names_the_endings(targets):
    base = base_of(small("llama").model)
    with pytest.raises(DataError) as error:
        layout_of(base, targets)
    wanted = targets if isinstance(targets, str) else targets[-1]
    assert repr(wanted) in str(error.value)
    assert "down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj" in str(error.value)
    assert "\n" not in str(error.value)
