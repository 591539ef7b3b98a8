"""A packed base on loading: read in the dtype of its file, and the same whatever that is."""

import pytest
import small_runs
import torch
import transformers

from fedft.config import Model
from fedft.errors import DataError
from fedft.models import loaded_base, quantized_base
from fedft.models.packed_linear import PackedLinear


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """One model saved in half precision, and the same numbers in float32."""
    root = tmp_path_factory.mktemp("models")
    half, full = root / "half", root / "full"
    half.mkdir()
    full.mkdir()
    model = small_runs.causal(half, dtype=torch.bfloat16)
    transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).save_pretrained(full)
    small_runs.tokenizer(full)
    return half, full


def test_a_file_in_half_precision_is_packed_from_what_is_in_it_without_a_copy_in_float32(folders, monkeypatch):
    seen, real = [], quantized_base.packed

    def packed(base, **how):
        seen.append({p.dtype for p in base.model.parameters()})
        return real(base, **how)

    monkeypatch.setattr(quantized_base, "packed", packed)
    half, full = (loaded_base.load(Model(id=str(f), base_bits=4, dtype="float32")).model for f in folders)
    assert seen == [{torch.bfloat16}, {torch.float32}]
    ours, theirs = half.state_dict(), full.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(x, theirs[n]) and x.dtype == theirs[n].dtype for n, x in ours.items())
    layers = [m for m in half.modules() if isinstance(m, PackedLinear)]
    assert layers
    assert {m.weight.dtype for m in layers} == {torch.float32}
    ids = torch.arange(8)[None]
    assert torch.equal(half(ids).logits, full(ids).logits)


def test_a_base_in_half_precision_stays_so_around_its_packed_weights(folders):
    model = loaded_base.load(Model(id=str(folders[0]), base_bits=8, dtype="bfloat16")).model
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model(torch.arange(8)[None]).logits.dtype == torch.bfloat16


def test_a_repair_without_bits_is_said_to_be_idle(folders, caplog):
    loaded_base.load(Model(id=str(folders[1]), dtype="float32", repair_rank=4))
    assert "repair_rank = 4 has no effect" in caplog.text


def test_a_device_that_is_not_there_is_one_line(folders):
    with pytest.raises(DataError, match=r"\[model\] device: cannot use 'meta'"):
        loaded_base.load(Model(id=str(folders[1]), dtype="float32", base_bits=4, device="meta"))
