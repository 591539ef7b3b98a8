"""`[model] layers` leaves targets of layers by their numbers, and refuses numbers that there are not."""

import pytest
from small_experts import drawn
from small_models import base_of, gpt2, llama

from fedft import run_file
from fedft.errors import ConfigError, DataError
from fedft.models.layout import layout_of


def numbers(layout):
    return {next(part for part in m.split(".") if part.isdigit()) for m in layout.modules}


@pytest.mark.parametrize(
    ("layers", "found"), [("0", {"0"}), ("1", {"1"}), ("0-1", {"0", "1"}), (" 1 , 0 ", {"0", "1"})]
)
@pytest.mark.parametrize("model", [llama, gpt2])
def test_targets_are_taken_from_these_layers_only(model, layers, found):
    base = base_of(model())
    some, every = layout_of(base, "all-linear", layers=layers), layout_of(base, "all-linear")
    assert numbers(some) == found
    assert len(some.modules) == len(every.modules) * len(found) // 2
    assert (some.parameters, some.head) == (every.parameters, every.head)


def test_the_number_of_an_expert_is_not_that_of_its_layer():
    layout = layout_of(drawn("mixtral"), ["down_proj"], layers="1")
    assert set(layout.modules) == {f"model.layers.1.mlp.experts.down_proj.{e}" for e in range(3)}


@pytest.mark.parametrize(
    ("layers", "said"), [("2", "no layer 2"), ("0-7", "no layer 7"), ("999999", "no layer 999999")]
)
def test_a_number_that_the_model_lacks_is_refused(layers, said):
    with pytest.raises(DataError, match=rf"\[model\] layers: there is {said}; this model has layers 0 to 1"):
        layout_of(base_of(llama()), "all-linear", layers=layers)


def test_a_target_that_is_not_in_these_layers_is_refused():
    with pytest.raises(DataError, match=r"no layer in layers 0 ends in 'layers.1.mlp.up_proj'"):
        layout_of(base_of(llama()), "layers.1.mlp.up_proj", layers="0")


@pytest.mark.parametrize("text", ["", "a", "3-1", "0-", "-1", "0;1", "1.5", "0-9999999", "0,,1"])
def test_what_is_no_numbers_is_refused_with_the_run_file(text):
    with pytest.raises(ConfigError, match=r"layers is .*, wanted numbers and ranges from low to high"):
        run_file.from_dict({"model": {"layers": text}})
