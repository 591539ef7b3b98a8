"""Checkpoints of packed weights load where their library is here, and are refused by name before weights are read."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

import fedft
from fedft import run_file, strategies
from fedft.errors import ConfigError, DataError
from fedft.models import adapter_folder, model_folder, resident, stored_quantization
from fedft.simulations import workplace

SAID: dict[str, dict[str, Any]] = {
    "aqlm": {},
    "awq": {"bits": 4},
    "bitsandbytes": {"load_in_4bit": True},
    "compressed-tensors": {"config_groups": {}},
    "gptq": {"bits": 4},
    "quanto": {},
    "torchao": {"quant_type": "int8_weight_only"},
    "vptq": {},
}
"""What config.json says beside the name of a method."""


@pytest.fixture
def made_up(tiny_base: Path, tmp_path: Path):
    """Writes the folder of a method, whose file of weights is none: whoever reads it fails in another way."""

    def write(**said: Any) -> str:
        folder = Path(shutil.copytree(tiny_base, tmp_path / "model"))
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"quantization_config": said}))
        (folder / "model.safetensors").write_bytes(b"not read")
        return str(folder)

    return write


def refused(folder: str, **how: Any) -> str:
    with pytest.raises(DataError) as e:
        adapter_folder.load(folder, "causal-lm", **how)
    assert str(e.value).startswith(f"[model] id: {folder!r} holds its weights packed by ")
    assert "\n" not in str(e.value)
    return str(e.value)


@pytest.mark.parametrize("method", SAID)
def test_a_method_whose_library_is_not_here_is_refused_with_its_name(made_up, method, monkeypatch) -> None:
    monkeypatch.setattr(stored_quantization, "installed", lambda package: False)
    said = refused(made_up(quant_method=method, **SAID[method]))
    needs = stored_quantization.NEEDS[method]
    assert f"packed by {method}, and {needs[0]}" in said
    assert said.endswith(f"not installed here: pip install {' '.join(needs)}")


def test_a_folder_of_before_methods_had_names_is_one_of_bitsandbytes(made_up, monkeypatch) -> None:
    monkeypatch.setattr(stored_quantization, "installed", lambda package: False)
    assert "packed by bitsandbytes, and bitsandbytes is not" in refused(made_up(load_in_8bit=True))


@pytest.mark.parametrize(("method", "why"), [("nonsense", "Unknown quantization type"), ("nvfp4", "not supported yet")])
def test_what_transformers_cannot_read_is_refused_in_its_words(made_up, method, why) -> None:
    assert why in refused(made_up(quant_method=method))


def test_a_library_that_transformers_does_not_find_is_no_traceback(made_up, monkeypatch) -> None:
    monkeypatch.setattr(stored_quantization, "installed", lambda package: True)
    refused(made_up(quant_method="aqlm"))


def test_a_run_that_cannot_have_such_a_base_is_refused_whatever_is_installed(made_up) -> None:
    folder = made_up(quant_method="gptq", bits=4)
    for name, bits, why in (
        ("fedkseed", None, "fedkseed writes all weights"),
        ("fedit", 4, "base_bits = 4 packs floats"),
    ):
        model = {"id": folder} | ({"base_bits": bits} if bits else {})
        config = run_file.from_dict({"model": model, "data": {"max_length": 16}, "strategy": {"name": name}})
        with pytest.raises(DataError, match=why):
            resident.load(config, strategies.make(name, {}))


def test_a_model_in_floats_is_none_of_these(tiny_base) -> None:
    config = adapter_folder.load(str(tiny_base), "causal-lm", only_floats="never asked").model.config
    assert stored_quantization.method_of(config) == ""


def test_packages_are_found_by_the_names_that_pip_has() -> None:
    assert stored_quantization.installed("huggingface-hub")
    assert not stored_quantization.installed("optimum-quanto-that-is-not-there")
    assert not any(
        stored_quantization.installed(f"{name}-not-here") for of in stored_quantization.NEEDS.values() for name in of
    )


@pytest.fixture
def packed(tiny_base: Path, tmp_path: Path) -> str:
    """A folder of bitsandbytes in 4 bits, in sizes that its kernels for a CPU take."""
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed here")
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 1, "num_attention_heads": 4}
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(tmp_path / "float")
    how = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "float", quantization_config=how, device_map={"": "cpu"})
    model.save_pretrained(tmp_path / "packed")
    for folder in ("packed", "float"):
        tokenizer.save_pretrained(tmp_path / folder)
    return str(tmp_path / "packed")


@pytest.mark.parametrize("name", ["fedit", "flora"])
@pytest.mark.filterwarnings("ignore")  # bitsandbytes on processors
def test_a_folder_of_bitsandbytes_is_a_base(packed: str, tmp_path: Path, name: str) -> None:
    rows = [{"client": "xy"[i % 2], "prompt": f"a{i}", "response": f"b{i}"} for i in range(16)]
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    tables = {"model": {"id": packed}, "data": {"train": str(tmp_path / "rows.jsonl"), "max_length": 16}}
    tables |= {"strategy": {"name": name}, "local": {"steps": 1}, "server": {"rounds": 2, "loggers": []}}
    found = fedft.simulate(run_file.from_dict(tables | {"clients": {"rank": 2}}), out=tmp_path / "run").summary
    assert found["final"]["loss"] < found["initial"]["loss"]
    place, _ = workplace.reopen(tmp_path / "run")
    assert found["base_digest"] == place.base.digest != adapter_folder.load(str(tmp_path / "float"), "causal-lm").digest
    with pytest.raises(ConfigError, match=r"--merged: .* packed by bitsandbytes; export the adapter alone"):
        model_folder.write(tmp_path / "to", place.config, place.base, place.handle, merged=True)
    assert model_folder.write(tmp_path / "to", place.config, place.base, place.handle, merged=False) == "adapter"
    with pytest.raises(DataError, match="packed by bitsandbytes, into which nothing can be merged"):
        adapter_folder.load(str(tmp_path / "to"), "causal-lm")
