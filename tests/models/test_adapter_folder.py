"""An adapter's folder is a base model, and what is trained on it is exported as one adapter of the base below."""

import json

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

import fedft
from fedft import run_file
from fedft.errors import DataError
from fedft.models import adapter_folder

IDS = torch.arange(5, 25)[None]


@pytest.fixture
def rows(tmp_path):
    lines = [{"client": "ab"[i % 2], "prompt": f"say {i % 5}", "response": "one two"} for i in range(16)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(tmp_path / "rows.jsonl")


def run(base, rows, out, **tables):
    config = {
        "model": {"id": str(base)},
        "data": {"train": rows},
        "strategy": {"name": "fedit"},
        "local": {"steps": 2},
        "server": {"rounds": 1, "loggers": []},
        "clients": {"rank": 2},
    }
    return fedft.simulate(run_file.from_dict(config | tables), out=out)


def test_a_run_goes_on_from_a_run_and_peft_loads_what_it_saved(tiny_base, rows, tmp_path):
    first = run(tiny_base, rows, tmp_path / "one")
    second = run(tmp_path / "one/model", rows, tmp_path / "two")
    assert second.summary["initial"]["loss"] == pytest.approx(first.summary["final"]["loss"], rel=1e-5)
    assert second.summary["final"]["loss"] < second.summary["initial"]["loss"]
    said = json.loads((tmp_path / "two/model/adapter_config.json").read_text())
    assert (said["base_model_name_or_path"], said["r"]) == (str(tiny_base), 4)
    theirs = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "two/model").eval()
    ours = adapter_folder.load(str(tmp_path / "two/model"), "causal-lm").model
    torch.testing.assert_close(theirs(IDS).logits, ours(IDS).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("options", "said"), [({"use_dora": True}, "use_dora"), ({"bias": "all"}, "bias all")])
def test_what_is_no_plain_lora_is_refused(tiny_base, tmp_path, options, said):
    inner = AutoModelForCausalLM.from_pretrained(tiny_base)
    get_peft_model(inner, LoraConfig(target_modules=["q_proj"], r=2, **options)).save_pretrained(tmp_path)
    with pytest.raises(DataError, match=f"{said}.*; wanted a plain LoRA"):
        adapter_folder.load(str(tmp_path), "causal-lm")


@pytest.mark.filterwarnings("ignore")  # peft and transformers on the tied embeddings that this unties
def test_tied_weights_that_an_adapter_saves_once_are_refused(tiny_base, tmp_path):
    inner = AutoModelForCausalLM.from_pretrained(tiny_base)
    options = {"target_modules": ["q_proj"], "r": 2, "modules_to_save": ["lm_head"]}
    get_peft_model(inner, LoraConfig(**options)).save_pretrained(tmp_path)
    with pytest.raises(DataError, match=r"lm_head\.weight, which hold layers or share weights"):
        adapter_folder.load(str(tmp_path), "causal-lm")


def test_adapters_that_name_each_other_end(tiny_base, tmp_path):
    for name, below in (("a", "b"), ("b", "a")):
        inner = AutoModelForCausalLM.from_pretrained(tiny_base)
        get_peft_model(inner, LoraConfig(target_modules=["q_proj"], r=2)).save_pretrained(tmp_path / name)
        file = tmp_path / name / "adapter_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "base_model_name_or_path": str(tmp_path / below)}))
    with pytest.raises(DataError, match="more than 8 deep"):
        adapter_folder.load(str(tmp_path / "a"), "causal-lm")
