"""`[model] modules_to_save`: trained, sent and exported whole, as peft does; tied ones stay tied or are refused."""

import json
import logging
import warnings

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from small_experts import drawn
from small_models import TOKENS, base_of, factors, gpt2, llama, small

import fedft
from fedft import run_file, strategies
from fedft.adapters.lora import LoRA
from fedft.errors import ConfigError, DataError
from fedft.models import adapter_folder, resident
from fedft.models.handle import ModelHandle
from fedft.models.layout import layout_of
from fedft.models.whole_modules import whole_modules
from fedft.simulations import finished_run

ALL = ["lm_head", "embed_tokens", "norm"]


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def folder(request, tmp_path_factory, tiny_base):
    to = tmp_path_factory.mktemp("base")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_base)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        pad_token_id=0, tie_word_embeddings=request.param,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformers.LlamaForCausalLM(config).save_pretrained(to)
    tokenizer.save_pretrained(to)
    return to


def tables(folder, tmp_path, strategy, **model):
    rows = [{"client": "ab"[i % 2], "prompt": f"say {i % 5}", "response": "one two"} for i in range(16)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "model": {"id": str(folder), **model},
        "data": {"train": str(tmp_path / "rows.jsonl"), "max_length": 32},
        "strategy": {"name": strategy},
        "local": {"steps": 2},
        "server": {"rounds": 1, "loggers": []},
        "clients": {"rank": 2},
    }


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=TOKENS).logits


def peft(folder, adapter):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        warnings.filterwarnings("ignore", message=".*ensure_weight_tying")
        return PeftModel.from_pretrained(transformers.AutoModelForCausalLM.from_pretrained(folder), str(adapter))


@pytest.mark.parametrize("strategy", ["fedit", "flora", "flexlora", "ffa_lora"])
def test_a_round_ends_with_one_model_by_whatever_way(folder, tmp_path, strategy):
    """Summary, `evaluate_run`, peft, the merged export; all three modules have moved; and the next run keeps them."""
    given = tables(folder, tmp_path, strategy, modules_to_save=ALL)
    run = fedft.simulate(run_file.from_dict(given), out=tmp_path / "run")
    first, last = run.summary["initial"]["loss"], run.summary["final"]["loss"]
    assert last < first - 1e-3
    assert finished_run.evaluate_run(run.folder)[1]["loss"] == pytest.approx(last, abs=1e-5)
    theirs = peft(folder, run.model)
    finished_run.export_run(run.folder, tmp_path / "merged", merged=True)
    plain, whole = (transformers.AutoModelForCausalLM.from_pretrained(f) for f in (folder, tmp_path / "merged"))
    torch.testing.assert_close(logits(theirs), logits(whole), atol=1e-5, rtol=0)
    for name in ("lm_head", "model.embed_tokens", "model.norm"):
        assert not torch.equal(plain.get_submodule(name).weight, whole.get_submodule(name).weight)
    if plain.config.tie_word_embeddings:
        assert whole.lm_head.weight is whole.model.embed_tokens.weight
    on = adapter_folder.load(str(run.model), "causal-lm")
    assert on.saved == {"lm_head", "model.embed_tokens", "model.norm"}
    torch.testing.assert_close(logits(on.model), logits(whole), atol=1e-5, rtol=0)
    then = fedft.simulate(run_file.from_dict(tables(run.model, tmp_path, strategy)), out=tmp_path / "two")
    assert then.summary["initial"]["loss"] == pytest.approx(last, abs=1e-5)
    finished_run.export_run(then.folder, tmp_path / "both", merged=True)
    both = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "both")
    torch.testing.assert_close(logits(peft(folder, then.model)), logits(both), atol=1e-5, rtol=0)
    assert torch.equal(both.model.norm.weight, whole.model.norm.weight)


def test_they_count_among_what_is_trained_and_sent(folder, tmp_path):
    headers = [
        fedft.simulate(run_file.from_dict(tables(folder, tmp_path, "fedit", **more)), out=tmp_path / str(len(more)))
        for more in ({}, {"modules_to_save": ["norm"]})
    ]
    without, along = (run.summary["header"] for run in headers)
    assert along["trainable"] == without["trainable"] + 16
    assert along["bytes_up"] >= without["bytes_up"] + 2 * 4 * 16


def test_a_tied_module_alone_is_refused_with_the_line_to_write():
    for wanted in (["lm_head"], ["embed_tokens"]):
        with pytest.raises(DataError, match=r"is tied to .*, write modules_to_save = ") as e:
            whole_modules(base_of(llama(tied=True)), wanted)
        written = json.loads(str(e.value).split("modules_to_save = ")[1])
        assert whole_modules(base_of(llama(tied=True)), written) == {"lm_head", "model.embed_tokens"}


def test_endings_match_at_dots_and_layers_in_what_is_whole_get_no_adapter():
    base = base_of(llama(tied=False))
    assert whole_modules(base, ["norm"]) == {"model.norm"}
    assert whole_modules(base, ["layers.0", "layers.0.mlp"]) == {"model.layers.0"}
    layout = layout_of(base, "all-linear", modules_to_save=["layers.0"])
    assert {m.split(".")[2] for m in layout.modules} == {"1"}
    assert len(layout.head) == 9
    assert layout.whole == {"model.layers.0"}
    with pytest.raises(DataError, match=r"no module with weights ends in 'lmhead'; did you mean 'lm_head'\?"):
        whole_modules(base, ["lmhead"])


def test_without_the_adapter_they_are_the_bases_own():
    """As a reference model must be: what is trained whole is put back for the time of the pass."""
    base = base_of(llama(tied=False).eval())
    before = logits(base.model)
    handle = ModelHandle(base.model, layout := layout_of(base, "q_proj", modules_to_save=["lm_head", "norm"]), LoRA())
    handle.write(factors(layout, 2))
    moved = logits(base.model)
    with handle.without_adapter():
        assert torch.equal(logits(base.model), before)
    assert torch.equal(logits(base.model), moved)
    assert not torch.equal(moved, before)


def test_where_all_layers_are_whole_none_is_left():
    with pytest.raises(DataError, match="'all-linear' finds no linear layer beside what is trained whole"):
        layout_of(base_of(llama(tied=False)), "all-linear", modules_to_save=["model"])


def test_experts_in_one_parameter_are_not_trained_whole():
    base = drawn("mixtral")
    with pytest.raises(
        DataError, match=r"experts\.gate_up_proj has 3 dimensions, .*; experts get adapters, see targets"
    ):
        whole_modules(base, ["experts"])
    assert whole_modules(base, ["gate"]) == {f"model.layers.{i}.mlp.gate" for i in range(2)}


def test_a_classifiers_head_is_whole_without_being_named():
    base = base_of(small("bert").model, "sequence-classification")
    assert whole_modules(base, ["embeddings.LayerNorm"]) == {"classifier", "bert.embeddings.LayerNorm"}


def test_names_that_peft_would_take_for_others_too_are_refused():
    model = llama(tied=False)
    model.model.xlm_head = torch.nn.Linear(2, 2)
    with pytest.raises(DataError, match=r"peft would save model.xlm_head too, whose name ends in 'lm_head'"):
        whole_modules(base_of(model), ["lm_head"])


@pytest.mark.parametrize(
    ("model", "target"), [(llama, "embed_tokens"), (llama, "lm_head"), (gpt2, "wte"), (llama, "norm")]
)
def test_targets_that_are_no_layers_of_the_body_name_what_to_write(model, target):
    with pytest.raises(DataError, match=rf'no linear layer of the body; .* modules_to_save = \["[a-z_.]*{target}"\]'):
        layout_of(base_of(model()), ["q_proj" if model is llama else "c_attn", target])


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"modules_to_save": ["norm"], "dtype": "bfloat16"}, "modules_to_save are trained in float32"),
        ({"modules_to_save": ["re:.*"]}, "wanted names or endings"),
        ({"modules_to_save": [""]}, "wanted names or endings"),
    ],
)
def test_a_run_file_that_cannot_be_is_refused(model, said):
    with pytest.raises(ConfigError, match=said):
        run_file.from_dict({"model": model})


def test_full_fine_tuning_says_that_they_have_no_effect(folder, caplog):
    config = run_file.from_dict(
        {"model": {"id": str(folder), "modules_to_save": ["norm"], "layers": "0"}, "data": {"max_length": 16},
         "strategy": {"name": "fedkseed"}}
    )  # fmt: skip
    with caplog.at_level(logging.WARNING):
        here = resident.load(config, strategies.of(config))
    assert not here.layout.head
    assert "modules_to_save = ['norm'] has no effect" in caplog.text
    assert "layers = '0' has no effect" in caplog.text


def test_what_others_saved_of_a_tied_base_or_changed_there_is_refused(tiny_base, tmp_path):
    """peft adds to one of the two, and would merge into both."""
    for k, options in enumerate(({"target_modules": ["lm_head"]}, {"modules_to_save": ["embed_tokens"]})):
        inner = transformers.AutoModelForCausalLM.from_pretrained(tiny_base)
        assert inner.lm_head.weight is inner.model.embed_tokens.weight
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            get_peft_model(inner, LoraConfig(r=2, **{"target_modules": ["q_proj"]} | options)).save_pretrained(
                tmp_path / str(k)
            )
            with pytest.raises(DataError, match="share weights with others; give a merged model"):
                adapter_folder.load(str(tmp_path / str(k)), "causal-lm")
