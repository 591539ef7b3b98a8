"""Which rows and columns go together, by type of model: cutting exactly them changes what their group did, no more."""

import pytest
import torch
from prunable_models import BATCH, every_prunable, layout, prunable
from small_models import distance, logits
from transformers import MambaConfig, MambaForCausalLM

from fedft.errors import ConfigError, DataError
from fedft.pruning.groups import adapted, groups_if_known, groups_of
from fedft.pruning.kept import Kept
from fedft.pruning.masks import masked


@every_prunable
def test_a_group_whose_weights_are_zero_changes_nothing_when_it_is_pruned(name: str) -> None:
    """All its rows, columns and entries of biases are put to zero by hand, and nothing else."""
    model = prunable(name)
    groups = groups_of(model)
    before = logits(model, BATCH)
    for number, (s, place) in enumerate(groups.each()):
        own = torch.ones(groups.size, dtype=torch.bool)
        own[place.start + 1] = False
        kept = Kept(groups, own)
        undone = []
        with torch.no_grad():
            for part in s.parts:
                layer, lost = model.get_submodule(part.module), kept.lost(part.module)
                weight = layer.weight.T if type(layer).__name__ == "Conv1D" else layer.weight
                undone.append((layer, {n: x.clone() for n, x in layer.state_dict().items()}))
                weight[lost if part.side == "rows" else (slice(None), lost)] = 0
                if part.side == "rows" and layer.bias is not None:
                    layer.bias[lost] = 0
            zeroed = logits(model, BATCH)
            with masked(model, kept):
                assert distance(logits(model, BATCH), zeroed) < 1e-5 * zeroed.abs().max(), s.name
            assert distance(zeroed, before) > 1e-4, f"group {number} does nothing in this model"
            for layer, state in undone:
                layer.load_state_dict(state)
    assert torch.equal(logits(model, BATCH), before)


@every_prunable
def test_every_weight_of_a_layer_is_in_its_groups_and_no_other(name: str) -> None:
    model = prunable(name)
    groups = groups_of(model)
    linear = {
        n for n, m in model.named_modules()
        if (isinstance(m, torch.nn.Linear) or type(m).__name__ == "Conv1D") and any(p.isdigit() for p in n.split("."))
    }  # fmt: skip
    assert {part.module for s in groups.structures for part in s.parts} == linear
    assert int(groups.weights.sum()) == sum(model.get_submodule(n).weight.numel() for n in linear)


@every_prunable
def test_a_layout_says_what_can_be_pruned(name: str) -> None:
    model = prunable(name)
    assert layout(model).groups == groups_of(model)


def test_query_heads_that_share_a_key_are_one_group() -> None:
    q, k, _, o = groups_of(prunable("llama")).structures[0].parts
    assert (q.width, k.width, o.width) == (8, 4, 8)  # 8 heads of 4 on 4 keys


def test_three_blocks_of_one_matrix_are_cut_alike() -> None:
    """c_attn is query, key and value in one, 4 heads of 8 each: head 1 is rows 8-15, 40-47 and 72-79."""
    groups = groups_of(prunable("gpt2"))
    bits = torch.ones(groups.size, dtype=torch.bool)
    bits[1] = False
    lost = Kept(groups, bits).lost("transformer.h.0.attn.c_attn")
    assert lost.nonzero().flatten().tolist() == [*range(8, 16), *range(40, 48), *range(72, 80)]


def test_a_body_alone_has_its_paths_without_a_prefix() -> None:
    model = prunable("bert")
    names = [s.name.removeprefix("bert.") for s in groups_of(model).structures]
    assert [s.name for s in groups_of(model.bert).structures] == names


def test_a_type_that_is_not_in_the_table_is_refused_in_one_line() -> None:
    model = MambaForCausalLM(MambaConfig(hidden_size=16, num_hidden_layers=1, vocab_size=20))
    with pytest.raises(ConfigError, match="'mamba' model") as refused:
        groups_of(model)
    assert "\n" not in str(refused.value)
    assert groups_if_known(model) is None
    with pytest.raises(ConfigError, match="not known; pruning knows llama, "):
        adapted(None, [])


def test_a_layer_of_another_size_than_its_config_says_is_refused() -> None:
    model = prunable("llama")
    layer = model.model.layers[1].mlp.down_proj
    layer.in_features -= 1
    with pytest.raises(DataError, match="down_proj has 47 columns, wanted 48"):
        groups_of(model)


def test_a_structure_without_an_adapter_is_refused() -> None:
    groups = groups_of(prunable("llama"))
    modules = list(groups.parts)
    assert adapted(groups, [m for m in modules if m.endswith(("q_proj", "up_proj"))]) is groups
    with pytest.raises(ConfigError, match=r"2 of 4 structures, such as model\.layers\.0\.feed_forward"):
        adapted(groups, [m for m in modules if m.endswith("q_proj")])
