"""The quickstart's rows and its base model: the same every time, whole or not there."""

import json
import sys
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from fedft.errors import ConfigError, DataError
from fedft.quickstart import base as stdlib_base
from fedft.quickstart import pretraining
from fedft.quickstart import rows as stdlib_docstrings
from fedft.quickstart.base import RECORD
from fedft.quickstart.pretraining import END, PAD, TINY, Settings

MINUTE = replace(TINY, steps=2)


@pytest.fixture(scope="module")
def base(tiny_base):
    return tiny_base


@pytest.fixture
def short(monkeypatch):
    """Little text: where it is not the model that is tested."""
    text = pretraining.training_text()[:30_000]
    monkeypatch.setattr(pretraining, "training_text", lambda: text)


@pytest.fixture(scope="module")
def rows():
    return stdlib_docstrings.rows()


def record(folder):
    return json.loads((folder / RECORD).read_text())


def test_a_base_built_twice_has_the_same_bytes(base, tmp_path):
    torch.manual_seed(123)  # what the caller did with the global generator does not matter
    again = stdlib_base.ensure(tmp_path, settings=TINY)
    assert again.name == base.name
    assert record(again) == record(base)
    for name in ("model.safetensors", "tokenizer.json"):
        assert (again / name).read_bytes() == (base / name).read_bytes()


def test_the_loss_falls(base):
    loss = record(base)["loss"]
    assert loss["last"] < loss["first"] - 0.5


def test_the_folder_loads_as_model_and_tokenizer(base):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    assert (tokenizer.eos_token, tokenizer.pad_token, tokenizer.bos_token) == (END, PAD, None)
    assert (model.config.eos_token_id, model.config.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert sum(p.numel() for p in model.parameters()) == record(base)["parameters"]
    text = 'def naïve(self, *, x=1)\n"""Größe, 漢字\t\x00'
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_the_quickstart_model_has_935040_parameters():
    """1024 * 128 + 4 * (4 * 128^2 + 3 * 128 * 352 + 2 * 128) + 128 = 935,040."""
    s = Settings()
    tokenizer = pretraining.trained_tokenizer("to be or not to be", s)
    assert sum(p.numel() for p in pretraining.new_model(tokenizer, s).parameters()) == 935_040


def test_neither_the_random_state_nor_the_threads_of_torch_change(short, tmp_path):
    before, threads = torch.random.get_rng_state(), torch.get_num_threads()
    stdlib_base.ensure(tmp_path, settings=MINUTE, threads=2)
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.get_num_threads() == threads


def test_a_base_that_is_there_is_not_built_again(base, monkeypatch):
    monkeypatch.setattr(stdlib_base, "_build", None)
    assert stdlib_base.ensure(base.parent, settings=TINY) == base


def test_other_settings_have_another_folder():
    assert stdlib_base._key("text", TINY) != stdlib_base._key("text", MINUTE)
    assert stdlib_base._key("text", TINY) != stdlib_base._key("texts", TINY)


@pytest.mark.parametrize(("module", "step"), [(pretraining, "training_losses"), (stdlib_base, "_save")])
def test_an_interrupted_build_leaves_nothing(short, tmp_path, monkeypatch, module, step):
    def interrupted(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as m:
        m.setattr(module, step, interrupted)
        with pytest.raises(KeyboardInterrupt):
            stdlib_base.ensure(tmp_path, settings=MINUTE)
    assert list(tmp_path.iterdir()) == []
    assert stdlib_base.intact(stdlib_base.ensure(tmp_path, settings=MINUTE))


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", RECORD])
def test_a_damaged_base_is_built_anew(short, tmp_path, name):
    folder = stdlib_base.ensure(tmp_path, settings=MINUTE)
    (folder / name).write_bytes((folder / name).read_bytes()[:-2])
    assert not stdlib_base.intact(folder)
    assert stdlib_base.intact(stdlib_base.ensure(tmp_path, settings=MINUTE))


def test_whoever_comes_second_takes_what_the_first_one_built(short, tmp_path, monkeypatch):
    build = stdlib_base._build

    def overtaken(*args):
        build(*args)
        monkeypatch.setattr(stdlib_base, "_build", build)
        stdlib_base.ensure(tmp_path, settings=MINUTE)

    monkeypatch.setattr(stdlib_base, "_build", overtaken)
    folder = stdlib_base.ensure(tmp_path, settings=MINUTE)
    assert stdlib_base.intact(folder)
    assert list(tmp_path.iterdir()) == [folder]


def test_a_cache_that_cannot_be_written_is_named(short, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot keep the base model in .*file"):
        stdlib_base.ensure(tmp_path / "file", settings=MINUTE)


def test_the_bar_is_quiet_without_a_terminal_and_says_once_when_asked(short, tmp_path, capfd):
    stdlib_base.ensure(tmp_path / "quiet", settings=MINUTE)
    assert capfd.readouterr() == ("", "")
    stdlib_base.ensure(tmp_path / "told", progress=True, settings=MINUTE)
    out, err = capfd.readouterr()
    assert out == ""
    assert "only once" in " ".join(err.split())


def test_the_environment_names_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("FEDFT_CACHE", raising=False)
    assert stdlib_base.cache_folder() == tmp_path / "fedft"
    monkeypatch.setenv("FEDFT_CACHE", str(tmp_path / "own"))
    assert stdlib_base.cache_folder() == tmp_path / "own"


def test_docstrings_stand_in_for_a_missing_language_reference(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    monkeypatch.setattr(stdlib_docstrings, "prose", lambda: "docstrings")
    assert pretraining.training_text() == "docstrings"


# --- the quickstart's rows


def test_rows_are_the_same_in_every_call(rows):
    stdlib_docstrings._documented.cache_clear()  # reads the files again
    assert rows == stdlib_docstrings.rows()


def test_rows_are_signatures_and_first_paragraphs_of_each_package(rows):
    assert list(dict.fromkeys(row["client"] for row in rows)) == list(stdlib_docstrings.DEFAULT)
    for row in rows:
        signature, quotes = row["prompt"].split("\n")
        assert signature.startswith(("def ", "class ", "async def "))
        assert quotes == '"""'
        assert row["response"].endswith('"""')
        assert 15 <= len(row["response"]) - 3 <= 160
    assert len({tuple(row.values()) for row in rows}) == len(rows)


def test_every_default_client_has_rows_enough(rows):
    counts = [sum(row["client"] == name for row in rows) for name in stdlib_docstrings.DEFAULT]
    assert min(counts) > 100


def test_nothing_of_the_packages_is_imported_and_unknown_ones_are_named():
    assert stdlib_docstrings.rows(["argparse"])  # a module of one file is a package too
    with pytest.raises(DataError, match="no source files of 'nosuch'"):
        stdlib_docstrings.rows(["nosuch"])
    with pytest.raises(DataError, match="not the name of a package"):
        stdlib_docstrings.rows(["../site-packages"])


def test_the_prose_holds_no_row_of_a_client(rows):
    prose = stdlib_docstrings.prose()
    assert len(prose) > 200_000
    learned = [row["response"][:-3] for row in rows if len(row["response"]) > 80]
    assert sum(text in prose for text in learned) < len(learned) / 50
