"""Which dtype "auto" is, that one name of it is stored and travels, and that a slow one is said."""

import logging
import tomllib

import pytest
import torch
from transformers import AutoConfig

from fedft import quickstart, run_file, strategies
from fedft.errors import ConfigError
from fedft.models import dtypes, resident
from fedft.server.job import job_of
from fedft.simulations import run as runs


@pytest.fixture
def cuda(monkeypatch):
    """Torch says that there is a CUDA device, with bfloat16 or without."""

    def there(bf16):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(dtypes, "_has_bfloat16", lambda device: bf16)

    return there


@pytest.fixture
def stored(tiny_base, tmp_path):
    """The folder of a config whose file is of this dtype."""

    def write(dtype):
        config = AutoConfig.from_pretrained(tiny_base)
        config.dtype = dtype
        config.save_pretrained(tmp_path / "m")
        return str(tmp_path / "m")

    return write


@pytest.mark.parametrize("own", [torch.float32, torch.bfloat16, torch.float16, None])
def test_auto_is_float32_on_every_cpu(stored, own):
    assert dtypes.chosen(stored(own), "causal-lm", "cpu") == "float32"


@pytest.mark.parametrize(
    ("own", "bf16", "found"),
    [
        (torch.bfloat16, True, "bfloat16"),
        (torch.bfloat16, False, "float32"),  # float16 has not its range
        (torch.float16, False, "float16"),
        (torch.float32, True, "float32"),
        (torch.float64, True, "float32"),
        (None, True, "float32"),
    ],
)
def test_auto_is_the_files_own_where_the_device_computes_it(stored, cuda, own, bf16, found):
    cuda(bf16)
    folder = stored(own)
    assert dtypes.chosen(folder, "causal-lm", "cuda:0") == found
    assert dtypes.chosen(folder, "sequence-classification", "cuda:0") == "float32"
    assert dtypes.chosen(quickstart.BASE, "causal-lm", "cuda:0") == "float32"


def test_a_model_that_is_not_there_is_left_for_loading_to_name(cuda, tmp_path):
    cuda(True)
    assert dtypes.chosen(str(tmp_path), "causal-lm", "cuda") == "float32"


@pytest.mark.parametrize(
    ("said", "stored"),
    [("fp32", "float32"), ("float", "float32"), ("bf16", "bfloat16"), ("fp16", "float16"), ("auto", "auto")],
)
def test_short_names_are_stored_as_the_long_ones(said, stored):
    assert run_file.from_dict({"model": {"dtype": said}}).model.dtype == stored
    assert run_file.load(None, [f"model.dtype={said}"]).model.dtype == stored
    with pytest.raises(ConfigError, match="dtype"):
        run_file.from_dict({"model": {"dtype": "int8"}})


def test_the_job_and_config_toml_hold_what_auto_was_resolved_to(tiny_base, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        "".join(f'{{"client": "{c}", "prompt": "a{i}", "response": "b{i}"}}\n' for c in "xy" for i in range(5))
    )
    tables = {"server": {"rounds": 1}, "local": {"steps": 1, "batch_size": 2}, "model": {"id": str(tiny_base)}}
    tables |= {"data": {"train": str(rows), "max_length": 16}, "strategy": {"name": "fedit"}}
    config = run_file.from_dict(tables)
    assert config.model.dtype == "auto"
    assert job_of(dtypes.resolved(config), "0" * 64, []).table("model")["dtype"] == "float32"
    done = runs.simulate(config, out=tmp_path / "run")
    assert tomllib.loads((tmp_path / "run/config.toml").read_text())["model"]["dtype"] == "float32"
    more = run_file.from_dict({**tables, "server": {"rounds": 2}})
    assert runs.simulate(more, out=done.folder, resume=True).summary["rounds"] == 2


@pytest.mark.parametrize(("dtype", "lines"), [("float32", 0), ("bfloat16", 1), ("float16", 1)])
def test_half_precision_on_a_cpu_is_one_warning(tiny_base, caplog, dtype, lines):
    model = {"id": str(tiny_base), "dtype": dtype}
    config = run_file.from_dict({"model": model, "data": {"max_length": 16}, "strategy": {"name": "fedit"}})
    with caplog.at_level(logging.WARNING):
        resident.load(config, strategies.of(config))
    said = [r.getMessage() for r in caplog.records if "on a CPU" in r.getMessage()]
    assert len(said) == lines
    assert all(dtype in line for line in said)


def test_float32_on_an_accelerator_is_said_where_there_is_something_faster(cuda):
    cuda(True)
    assert "'bfloat16' takes half the memory" in dtypes.slow("float32", "causal-lm", "cuda:0")
    assert dtypes.slow("float32", "sequence-classification", "cuda:0") == ""  # it has no choice
    assert dtypes.slow("bfloat16", "causal-lm", "cuda:0") == ""
    cuda(False)
    assert dtypes.slow("float32", "causal-lm", "cuda:0") == ""
