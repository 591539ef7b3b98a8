"""A base is known by its weights as stored: at any precision, from shards or one file, of either format."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from fedft.errors import DataError
from fedft.models import adapter_folder, hashed_files, stored_weights

TASK = "causal-lm"


@pytest.fixture
def folder(tiny_base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_base, tmp_path / "model"))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own, for files of any size."""
    monkeypatch.setenv("FEDFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hashed_files, "LEAST_BYTES", 0)
    return tmp_path / "cache"


def digest(folder: Path, **how: object) -> str:
    return adapter_folder.load(str(folder), TASK, **how).digest


def rewritten(folder: Path, **how: object) -> Path:
    """The model written anew beside itself, as `how` says."""
    to = folder.with_name(f"{folder.name}-again")
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(to, **how)
    AutoTokenizer.from_pretrained(folder).save_pretrained(to)
    return to


def at_rest(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Time goes on, so that the files are as old as they must be to be remembered."""
    later = max(p.stat().st_ctime for p in path.iterdir()) + 10
    monkeypatch.setattr(hashed_files.time, "time", lambda: later)


def test_the_precision_that_a_base_is_loaded_in_is_no_part_of_its_digest(folder: Path) -> None:
    found = {digest(folder, dtype=dtype) for dtype in ("float32", "bfloat16", "float16")}
    assert len(found) == 1


def test_a_checkpoint_stored_in_another_precision_is_another_base(folder: Path) -> None:
    file = folder / "model.safetensors"
    before = digest(folder)
    save_file({n: x.bfloat16() for n, x in load_file(file).items()}, file, {"format": "pt"})
    assert digest(folder) != before


@pytest.mark.parametrize(("size", "shards"), [("100KB", 6), ("10GB", 1)])
def test_shards_do_not_matter(folder: Path, size: str, shards: int) -> None:
    to = rewritten(folder, max_shard_size=size)
    assert len(list(to.glob("*.safetensors"))) == shards
    assert digest(to) == digest(folder)


def test_a_file_of_torch_has_the_digest_of_its_safetensors_though_it_holds_tied_weights_twice(folder: Path) -> None:
    before, weights = digest(folder), load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save({**weights, "lm_head.weight": weights["model.embed_tokens.weight"]}, folder / "pytorch_model.bin")
    assert stored_weights.files_of(str(folder)) == [folder / "pytorch_model.bin"]
    assert digest(folder) == before


def test_any_bit_any_name_and_any_shape_count() -> None:
    x = stored_weights.of_tensor(torch.arange(6.0).reshape(2, 3))
    y = stored_weights.of_tensor(torch.arange(6.0).reshape(3, 2))
    z = stored_weights.of_tensor(torch.arange(6.0).reshape(2, 3).nextafter(torch.tensor(9.0)))
    digests = [stored_weights.digest_of(said, {}) for said in ({"a": x}, {"b": x}, {"a": y}, {"a": z}, {})]
    digests += [stored_weights.digest_of({}, {"a": torch.zeros(2)}), stored_weights.digest_of({"a": x}, {"b": x0()})]
    assert len({*digests}) == len(digests)


def x0() -> torch.Tensor:
    return torch.zeros(2)


def test_an_adapter_counts_at_any_precision_and_its_scale_does(folder: Path, tmp_path: Path) -> None:
    found = []
    for alpha in (2, 4):
        torch.manual_seed(0)
        options = LoraConfig(r=2, lora_alpha=alpha, target_modules=["q_proj"], init_lora_weights=False)
        get_peft_model(AutoModelForCausalLM.from_pretrained(folder), options).save_pretrained(tmp_path / str(alpha))
        found.append(digest(tmp_path / str(alpha)))
        assert digest(tmp_path / str(alpha), dtype="bfloat16") == found[-1]
    assert len({*found, digest(folder)}) == 3


def test_a_remembered_file_is_not_read_again(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at_rest(folder, monkeypatch)
    before = digest(folder)
    assert len(list((cache / "digests").iterdir())) == 1

    def read(path: Path) -> None:
        raise AssertionError(f"{path} is read")

    monkeypatch.setattr(stored_weights, "_hashed", read)
    assert digest(folder, dtype="bfloat16") == before


def test_a_changed_file_is_another_one_whatever_its_size_and_time_say(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_rest(folder, monkeypatch)
    file = folder / "model.safetensors"
    before, was = digest(folder), file.stat()
    assert list((cache / "digests").iterdir())
    with file.open("r+b") as f:  # one bit, in place
        f.seek(-1, os.SEEK_END)
        byte = f.read(1)[0]
        f.seek(-1, os.SEEK_END)
        f.write(bytes([byte ^ 1]))
    os.utime(file, ns=(was.st_atime_ns, was.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns, file.stat().st_ino) == (
        was.st_size,
        was.st_mtime_ns,
        was.st_ino,
    )
    assert digest(folder) != before


@pytest.mark.parametrize("spoilt", [b"", b"x" * 100, None])
def test_a_damaged_record_counts_for_nothing(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, spoilt: bytes | None
) -> None:
    at_rest(folder, monkeypatch)
    before = digest(folder)
    (record,) = (cache / "digests").iterdir()
    data = record.read_bytes()
    at = data.index(b'"sha256"') if b'"sha256"' in data else len(data) - 40
    record.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :] if spoilt is None else spoilt)
    assert digest(folder) == before


def test_a_file_that_was_just_written_is_not_remembered_nor_is_a_cache_needed(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "model.safetensors").touch()
    before = digest(folder)
    assert not cache.exists()
    at_rest(folder, monkeypatch)
    cache.write_bytes(b"a file where the folder would be")
    assert digest(folder) == before


def test_a_file_that_changes_while_the_model_is_loaded_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = AutoModelForCausalLM.from_pretrained

    def slowly(*args: object, **how: object) -> object:
        made = load(*args, **how)
        (folder / "model.safetensors").touch()
        return made

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", slowly)
    with pytest.raises(DataError, match=r"model.safetensors has changed while the model was loaded"):
        digest(folder)
