"""A pruned model as a folder: what other tools load computes what was trained, and `load_sliced` cuts it."""

from pathlib import Path

import pytest
import torch
import transformers
from prunable_models import prunable, some
from safetensors.torch import load_file, save_file
from small_models import distance, factors

import fedft
from fedft import strategies
from fedft.errors import ConfigError, DataError
from fedft.models import dtypes, model_folder, resident
from fedft.models.resident import Resident
from fedft.models.sliced_folder import save
from fedft.pruning.groups import groups_of
from fedft.pruning.kept import Kept
from fedft.pruning.masks import Masks, kept_in, zero_pruned
from fedft.run_file import from_dict

IDS = torch.tensor([[3, 141, 59, 265, 35], [8, 97, 93, 238, 46]])
TYPES = pytest.mark.parametrize("name", ["llama", "gemma3_text", "bert", "gpt2"])


def _model_in(folder: Path, name: str, tiny_base: Path) -> Path:
    """A model of the type with the tokenizer of the tiny base."""
    prunable(name, vocab_size=512).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(tiny_base).save_pretrained(folder)
    return folder


def _logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def _uniform(model, heads: int, channels: int) -> Kept:
    """Of each layer other heads and channels, as many."""
    groups = groups_of(model)
    bits = torch.zeros(groups.size, dtype=torch.bool)
    for n, (s, place) in enumerate(groups.each()):
        some_of = torch.randperm(s.size, generator=torch.Generator().manual_seed(n))
        bits[place.start + some_of[: heads if s.name.endswith("attention") else channels]] = True
    return Kept(groups, bits)


def _trained(folder: Path, kept_of) -> tuple[Resident, object]:
    """The run file's resident model with an adapter in it and masks, and the run file."""
    task = "sequence-classification" if "Classification" in (folder / "config.json").read_text() else "causal-lm"
    model = {"id": str(folder), "task": task} | ({} if task == "causal-lm" else {"labels": ["a", "b", "c"]})
    config = dtypes.resolved(from_dict({"model": model, "strategy": {"name": "fedit"}}))
    here = resident.load(config, strategies.of(config))
    here.handle.write(factors(here.handle.layout, 4))
    kept = kept_of(here.handle.model)
    Masks(here.handle.model, kept)
    zero_pruned(here.handle.adapter(), kept)
    here.handle.training(False)
    return here, config


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text"])
def test_as_many_of_every_layer_is_a_standard_folder_of_a_smaller_model(name: str, tmp_path: Path) -> None:
    model = prunable(name, vocab_size=512)
    kept = _uniform(model, 2, 20)
    Masks(model, kept)
    wanted = _logits(model)
    assert save(tmp_path, prunable(name, vocab_size=512), kept) == "merged model, cut"
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert distance(_logits(loaded), wanted) < 1e-5 * wanted.abs().max()
    less = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in loaded.parameters())
    assert less >= int(kept.groups.weights[~kept.bits].sum())
    assert [*groups_of(loaded).weights.shape] == [int(kept.bits.sum())]  # it is a model that can be pruned again


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_of_types_whose_heads_are_as_wide_as_the_states_allow_channels_alone_make_a_smaller_model(
    name: str, tmp_path: Path
) -> None:
    model = prunable(name, vocab_size=512)
    heads = next(iter(groups_of(model).structures)).size
    for n, said in ((heads, "merged model, cut"), (heads // 2, "merged model with zeros")):
        masked = prunable(name, vocab_size=512)
        Masks(masked, kept := _uniform(masked, n, 20))
        assert save(tmp_path / str(n), prunable(name, vocab_size=512), kept) == said
        loaded = type(model).from_pretrained(tmp_path / str(n)).eval()
        assert distance(_logits(loaded), _logits(masked)) < 1e-5 * _logits(masked).abs().max()


@TYPES
def test_a_merged_export_computes_what_was_trained_and_is_cut_when_it_is_loaded(
    name: str, tiny_base: Path, tmp_path: Path
) -> None:
    here, config = _trained(_model_in(tmp_path / "base", name, tiny_base), lambda model: some(groups_of(model), 3))
    wanted, kept = _logits(here.handle.model), kept_in(here.handle.model)
    assert model_folder.write(tmp_path / "to", config, here.base, here.handle, merged=True) == "merged model with zeros"
    anyones = type(here.handle.model).from_pretrained(tmp_path / "to").eval()
    ours = fedft.load_sliced(tmp_path / "to")
    for model in (anyones, ours):
        assert distance(_logits(model), wanted) < 1e-5 * wanted.abs().max()
    sizes = [sum(p.numel() for p in model.parameters()) for model in (anyones, ours)]
    assert sizes[0] - sizes[1] >= int(kept.groups.weights[~kept.bits].sum())
    assert kept_in(ours) is None


@TYPES
def test_an_exported_adapter_of_a_pruned_model_says_so_and_load_sliced_gives_that_model(
    name: str, tiny_base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    here, config = _trained(_model_in(tmp_path / "base", name, tiny_base), lambda model: some(groups_of(model), 4))
    wanted = _logits(here.handle.model)
    assert model_folder.write(tmp_path / "to", config, here.base, here.handle, merged=False) == "adapter"
    assert "% of the weights in heads and channels are pruned" in caplog.text
    assert "`fedft.load_sliced(folder)` gives that model" in (tmp_path / "to" / "README.md").read_text()
    ours = fedft.load_sliced(str(tmp_path / "to"))
    assert distance(_logits(ours), wanted) < 1e-5 * wanted.abs().max()
    whole = sum(p.numel() for p in prunable(name, vocab_size=512).parameters())
    assert sum(p.numel() for p in ours.parameters()) < whole
    again = from_dict({"model": {"id": str(tmp_path / "to")}, "strategy": {"name": "fedit"}})
    with pytest.raises(DataError, match="is of a pruned model"):
        resident.load(again, strategies.of(again))


def test_a_pruned_model_has_no_lower_rank(tiny_base: Path, tmp_path: Path) -> None:
    """The best of the whole matrices is not the best of what is left of them."""
    here, config = _trained(tiny_base, lambda model: some(groups_of(model), 4))
    with pytest.raises(ConfigError, match="--rank 2: this client's model is pruned") as e:
        model_folder.write(tmp_path / "to", config, here.base, here.handle, rank=2)
    assert "\n" not in str(e.value)
    assert not (tmp_path / "to").exists()


def test_a_model_of_which_nothing_is_pruned_is_exported_as_ever(tiny_base: Path, tmp_path: Path) -> None:
    here, config = _trained(tiny_base, lambda model: Kept(g := groups_of(model), torch.ones(g.size, dtype=torch.bool)))
    assert model_folder.write(tmp_path / "to", config, here.base, here.handle, merged=False) == "adapter"
    assert model_folder.write(tmp_path / "to", config, here.base, here.handle, merged=True) == "merged model"
    assert not (tmp_path / "to" / "fedft_slices.safetensors").exists()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda x: x.pop("model.layers.0.attention"), "only one of the file and the model"),
        (lambda x: x.update({"model.layers.0.attention": torch.tensor([1, 1], dtype=torch.int32)}), "ascending"),
        (lambda x: x.update({"model.layers.0.attention": torch.tensor([0, 9], dtype=torch.int32)}), "from 0 to 3"),
        (lambda x: x.update({"model.layers.0.attention": torch.zeros(0, dtype=torch.int32)}), "from 0 to 3"),
        (lambda x: x.update({"model.layers.0.attention": torch.tensor([-1, 2], dtype=torch.int32)}), "from 0 to 3"),
    ],
)
def test_slices_that_do_not_fit_are_refused(change, why: str, tiny_base: Path, tmp_path: Path) -> None:
    folder = _model_in(tmp_path, "llama", tiny_base)
    save(folder, model := prunable("llama", vocab_size=512), some(groups_of(model), 5))
    numbers = load_file(folder / "fedft_slices.safetensors")
    change(numbers)
    save_file(numbers, folder / "fedft_slices.safetensors")
    with pytest.raises(DataError, match=why):
        fedft.load_sliced(folder)
    (folder / "fedft_slices.safetensors").write_bytes(b"no such file")
    with pytest.raises(DataError, match="cannot be read"):
        fedft.load_sliced(folder)


def test_a_folder_without_a_model_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError) as refused:
        fedft.load_sliced(tmp_path)
    assert "\n" not in str(refused.value)
