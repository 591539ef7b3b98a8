"""A base model is what its folder holds, whole, or one line says what is missing; ids and positions have bounds."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    OPTConfig,
    OPTForCausalLM,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from fedft import run_file, strategies
from fedft.errors import DataError
from fedft.models import export, lengths, load, resident
from fedft.models.layout import layout_of
from fedft.models.whole_modules import head_modules

ABC = ["a", "b", "c"]
SMALL = {"vocab_size": 300, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture
def saved(tiny_base, tmp_path):
    """Writes a model beside the tiny base's tokenizer; returns its folder."""

    def write(model):
        model.save_pretrained(tmp_path / "m")
        AutoTokenizer.from_pretrained(tiny_base).save_pretrained(tmp_path / "m")
        return tmp_path / "m"

    return write


def bert():
    return BertForMaskedLM(BertConfig(**SMALL, intermediate_size=16, max_position_embeddings=32))


def without(folder, word):
    file = folder / "model.safetensors"
    save_file({n: x for n, x in load_file(file).items() if word not in n}, file, {"format": "pt"})


def test_what_a_classifier_adds_is_trained_and_saved_whole(saved, tmp_path):
    """A masked language model has neither classifier nor pooler: both are drawn, and one seed draws the same ones."""
    folder = str(saved(bert()))
    base = load.load(folder, "sequence-classification", labels=ABC, seed=7)
    assert {n.partition(".")[0] for n in base.drawn} == {"bert", "classifier"}
    assert head_modules(base) == {"bert.pooler", "classifier"}
    layout = layout_of(base, "all-linear")
    assert set(layout.head) == set(base.drawn)
    assert not [m for m in layout.modules if "pooler" in m]
    assert load.load(folder, "sequence-classification", labels=ABC, seed=7).digest == base.digest
    assert load.load(folder, "sequence-classification", labels=ABC, seed=8).digest != base.digest


def test_a_drawn_pooler_is_in_the_export_that_peft_loads(saved, tmp_path):
    from peft import AutoPeftModelForSequenceClassification

    folder = str(saved(bert()))
    model = {"id": folder, "task": "sequence-classification", "labels": ["a", "b", "c"]}
    config = run_file.from_dict({"model": model, "data": {"max_length": 16}, "strategy": {"name": "fedit"}})
    recipe = strategies.of(config)
    here = resident.load(config, recipe)
    here.handle.write({n: x + 0.1 for n, x in recipe.space.start(here.layout, 2, 7).items()})
    with torch.no_grad():
        for p in (here.base.model.get_submodule("bert.pooler.dense"), here.base.model.classifier):
            p.weight += 0.5
    export.save_adapter(tmp_path / "out", here.handle, here.base, folder)
    theirs = AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "out", num_labels=3).eval()
    ids = torch.arange(5, 15)[None]
    torch.testing.assert_close(theirs(ids).logits, here.base.model(ids).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("lost", ["layer.0.intermediate", "word_embeddings", "attention.output.LayerNorm"])
def test_what_is_missing_of_the_body_is_named(saved, lost):
    folder = saved(bert())
    without(folder, lost)
    with pytest.raises(DataError, match=f"lacks .*{lost}.*random numbers"):
        layout_of(load.load(str(folder), "sequence-classification", labels=ABC[:2]), "all-linear")


@pytest.mark.parametrize(
    ("model", "task", "positions"),
    [
        (
            lambda: GPT2LMHeadModel(GPT2Config(vocab_size=300, n_embd=16, n_layer=1, n_head=2, n_positions=32)),
            "causal-lm",
            32,
        ),
        (
            lambda: OPTForCausalLM(
                OPTConfig(**SMALL, ffn_dim=16, max_position_embeddings=32, word_embed_proj_dim=16, pad_token_id=1)
            ),
            "causal-lm",
            32,
        ),
        (
            lambda: RobertaForSequenceClassification(
                RobertaConfig(**SMALL, intermediate_size=16, max_position_embeddings=34, pad_token_id=1)
            ),
            "sequence-classification",
            32,
        ),
    ],
    ids=["gpt2", "opt", "roberta"],
)
def test_positions_are_those_that_a_text_can_use(saved, model, task, positions):
    base = load.load(str(saved(model())), task, labels=ABC[:2])
    lengths.check_length(base, positions)
    base.model(torch.arange(3, 3 + positions)[None])
    with pytest.raises(DataError, match=f"max_length = {positions + 1}, but .* has {positions} positions"):
        lengths.check_length(base, positions + 1)
    with pytest.raises((IndexError, RuntimeError)):
        base.model(torch.arange(3, 4 + positions)[None])
    with pytest.raises(DataError, match=rf"generate_tokens.* up to {positions + 1} tokens"):
        lengths.check_length(base, positions, positions + 1)


@pytest.mark.parametrize(
    ("pad", "eos", "found"), [(7, 8, 7), (300, 8, 8), (None, 8, 8), (300, 301, 0), (None, None, 0)]
)
def test_padding_is_an_id_that_the_model_has(saved, pad, eos, found):
    base = load.load(
        str(saved(GPT2LMHeadModel(GPT2Config(vocab_size=300, n_embd=16, n_layer=1, n_head=2)))), "causal-lm"
    )

    class Tokenizer:
        pad_token_id, eos_token_id = pad, eos

    assert load.pad_id(base.model, Tokenizer()) == found
    assert base.ids == 300


def test_safetensors_are_loaded_where_there_are_both(saved):
    """What lies in `pytorch_model.bin` beside them is not even read: here it is no file of weights."""
    folder = saved(bert())
    wanted = load.load(str(folder), "sequence-classification", labels=ABC).digest
    (folder / "pytorch_model.bin").write_bytes(b"not a file of weights")
    assert load.load(str(folder), "sequence-classification", labels=ABC).digest == wanted
    zeros = {n: torch.zeros_like(x) for n, x in load_file(folder / "model.safetensors").items()}
    torch.save(zeros, folder / "pytorch_model.bin")
    assert load.load(str(folder), "sequence-classification", labels=ABC).digest == wanted
    (folder / "model.safetensors").unlink()
    assert load.load(str(folder), "sequence-classification", labels=ABC).digest != wanted


def test_a_word_that_is_no_folder_may_be_a_hub_id_and_a_path_may_not():
    with pytest.raises(DataError, match="cannot load 'gpt2'"):
        load.load("gpt2", "causal-lm")
    with pytest.raises(DataError, match=r"no folder '\./gpt2'"):
        load.load("./gpt2", "causal-lm")
