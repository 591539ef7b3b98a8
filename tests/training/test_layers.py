"""Which layer a tensor is in, by its name."""

import pytest

from fedft.training.layers import by_layer, layer_of


def test_layers_of_one_number_in_unlike_stacks_are_two():
    names = ["encoder.layer.1.q.lora_A", "encoder.layer.1.v.lora_A", "decoder.layer.1.q.lora_A", "head.weight"]
    assert by_layer(names) == [names[:2], names[2:3], names[3:]]


@pytest.mark.parametrize("name", ["lm_head.weight", "model.embed_tokens.weight", "conv1d.weight"])
def test_a_name_without_a_number_of_its_own_is_in_no_layer(name: str):
    assert layer_of(name) is None


def test_the_first_number_is_the_layer_s():
    assert layer_of("model.layers.11.experts.3.up.weight") == ("model.layers.11", 11)
