"""How long records may be where the run file does not say: known before the model is loaded, the same everywhere."""

import json
import tomllib

import pytest
from transformers import AutoConfig, BloomConfig, GPT2Config, LlamaConfig, OPTConfig, RobertaConfig

from fedft import run_file
from fedft.models import dtypes, lengths
from fedft.server.job import job_of
from fedft.simulations import run as runs
from fedft.simulations.split_for_sites import split

CLASSES = {"task": "sequence-classification", "labels": ["a", "b"]}
WIDE = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 512}


def asked(folder, data=None, **model):
    return run_file.from_dict({"model": {"id": str(folder), **model}, "data": data or {}})


@pytest.fixture
def saved(tiny_base, tmp_path):
    """The folder of a model's config, with a tokenizer that allows so many tokens; there are no weights."""

    def write(config, limit=None):
        config.save_pretrained(tmp_path / "m")
        said = json.loads((tiny_base / "tokenizer_config.json").read_text())
        said = {k: v for k, v in said.items() if k != "model_max_length"}
        (tmp_path / "m/tokenizer_config.json").write_text(
            json.dumps(said | ({"model_max_length": limit} if limit else {}))
        )
        (tmp_path / "m/tokenizer.json").write_bytes((tiny_base / "tokenizer.json").read_bytes())
        return tmp_path / "m"

    return write


@pytest.mark.parametrize(
    ("config", "model", "limit", "found"),
    [
        (GPT2Config(), {}, 1024, 1024),
        (GPT2Config(n_positions=600), {}, None, 600),
        (RobertaConfig(max_position_embeddings=514, pad_token_id=1), CLASSES, 512, 512),
        (RobertaConfig(max_position_embeddings=514, pad_token_id=1), CLASSES, None, 512),  # two positions are padding's
        (OPTConfig(max_position_embeddings=64, ffn_dim=32, word_embed_proj_dim=16, **WIDE), {}, None, 64),
        (LlamaConfig(max_position_embeddings=2048), {}, None, 1024),
        (LlamaConfig(max_position_embeddings=131072), {}, 131072, 1024),
        (LlamaConfig(max_position_embeddings=200, intermediate_size=32, **WIDE), {}, None, 200),
        (LlamaConfig(max_position_embeddings=2048), {}, 700, 700),
        (BloomConfig(), {}, None, 1024),  # no positions to run out of
    ],
    ids=[
        "gpt2",
        "short gpt2",
        "roberta",
        "roberta, no limit",
        "opt",
        "2048",
        "131072",
        "rope of 200",
        "limit",
        "bloom",
    ],
)
def test_it_is_what_model_and_tokenizer_can_take_at_most_1024(saved, config, model, limit, found):
    folder = saved(config, limit)
    assert dtypes.resolved(asked(folder, **model)).data.max_length == found
    assert dtypes.resolved(asked(folder, {"max_length": 77}, **model)).data.max_length == 77


def test_what_is_generated_on_a_prompt_has_its_positions_too(saved):
    folder = saved(GPT2Config(n_positions=100))
    tables = {"model": {"id": str(folder)}, "eval": {"rouge": True, "generate_tokens": 48}}
    assert dtypes.resolved(run_file.from_dict(tables)).data.max_length == 52
    assert dtypes.resolved(run_file.from_dict({**tables, "data": {"max_prompt": 40}})).data.max_length == 100


def test_a_model_that_cannot_be_read_is_left_for_loading_to_name(tmp_path):
    assert lengths.chosen(asked(tmp_path / "nowhere")) == 1024
    (tmp_path / "config.json").write_text("{")
    assert lengths.chosen(asked(tmp_path)) == 1024
    assert lengths.chosen(run_file.from_dict({})) == 512  # the built-in base, which is not made for this


def test_run_folder_job_and_sites_have_the_number(tiny_base, tmp_path, capsys):
    """A run without max_length: what is stored and travels is what the tiny Llama takes, and nothing cuts at 96."""
    rows = [{"client": c, "prompt": "def f", "response": "word " * n} for c in "xy" for n in (5, 150, 600)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tables = {"server": {"rounds": 1}, "local": {"steps": 1, "batch_size": 2}, "clients": {"rank": 2}}
    tables |= {"data": {"train": str(tmp_path / "rows.jsonl"), "holdout": 0.0}, "strategy": {"name": "fedit"}}
    config = run_file.from_dict(tables | {"model": {"id": str(tiny_base)}})
    wanted = AutoConfig.from_pretrained(tiny_base).max_position_embeddings
    assert config.data.max_length == "auto"
    assert job_of(dtypes.resolved(config), "0" * 64, []).table("data")["max_length"] == wanted
    done = runs.simulate(config, out=tmp_path / "run")
    assert tomllib.loads((tmp_path / "run/config.toml").read_text())["data"]["max_length"] == wanted
    assert done.summary["header"]["max_length"] == wanted
    assert done.summary["rows"]["cut"] == 2  # those of 600 words
    site = tomllib.loads(split(config, tmp_path / "sites", server="[::1]:9092")[0].read_text())
    assert site["policy"]["max_tokens"] == wanted
    more = run_file.from_dict({**tables, "model": {"id": str(tiny_base)}, "server": {"rounds": 2}})
    assert runs.simulate(more, out=done.folder, resume=True).summary["rounds"] == 2
