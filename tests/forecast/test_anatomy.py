"""What is read off a model: widths, roles, and that an architecture with other names says that it is not known."""

import pytest
import torch
import transformers
from torch import nn

from fedft.adapters.lora import LoRA
from fedft.forecast.anatomy import Anatomy, anatomy_of
from fedft.models import quantized_base
from fedft.models.handle import ModelHandle
from fedft.models.layout import layout_of
from fedft.update import Shape
from tests.cases.architectures import ARCHS
from tests.support.small_models import base_of, bert, gpt2, llama


def bare(name: str, kind: str) -> Anatomy:
    """The anatomy of a model of the tables of architectures, of which no weight exists."""
    config = getattr(transformers, ARCHS[name][0])(**ARCHS[name][1])
    with torch.device("meta"):
        model = getattr(transformers, f"AutoModelFor{kind}").from_config(config)
    return anatomy_of(base_of(model, "seq2seq-lm" if kind == "Seq2SeqLM" else "causal-lm"))


def test_widths_and_roles_of_a_llama_whose_heads_share_keys() -> None:
    of = anatomy_of(base_of(llama()))
    assert (of.layers, of.hidden, of.queries, of.keys, of.feed_forward, of.vocabulary) == (2, 16, 16, 8, 24, 20)
    assert (of.gated, of.closing_norm, of.centred, of.norms) == (True, True, False, 2)
    assert [p.role for n, p in of.parts.items() if ".0." in n] == ["attention_in"] * 3 + ["attention_out"] + [
        "feed_in", "feed_in", "feed_out"
    ]  # fmt: skip


@pytest.mark.parametrize("make", [llama, gpt2, bert])
def test_it_is_the_same_with_an_adapter_and_with_packed_weights(make: type[nn.Module]) -> None:
    model: nn.Module = make()
    base = base_of(model, "sequence-classification" if make is bert else "causal-lm")
    plain = anatomy_of(base)
    assert plain.known
    handle = ModelHandle(model, layout_of(base, "all-linear"), LoRA())
    handle.write(handle.kind.initial(handle.layout, Shape(2), 0))
    assert anatomy_of(base) == plain
    packed = anatomy_of(quantized_base.packed(base_of(make(), base.task), 4))
    assert (packed.parameters, packed.packed, packed.parts) == (plain.parameters, plain.packed, plain.parts)


@pytest.mark.parametrize(
    ("name", "kind", "known"),
    [
        ("mistral", "CausalLM", True), ("qwen3", "CausalLM", True), ("phi3", "CausalLM", True),
        ("mixtral", "CausalLM", False), ("mamba", "CausalLM", False), ("opt", "CausalLM", False),
        ("t5", "Seq2SeqLM", False), ("t5gemma", "Seq2SeqLM", False),
    ],
)  # fmt: skip
def test_what_the_formulas_were_not_made_for_is_not_known(name: str, kind: str, known: bool) -> None:
    assert bare(name, kind).known is known
