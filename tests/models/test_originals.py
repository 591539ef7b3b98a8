"""w0 of a parameter is never lost, and costs no memory where the model's files hold it."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from fedft.benchmarks.measure import Peak
from fedft.models import stored_weights
from fedft.models.originals import Originals


def stored(folder: Path, values: Tensor) -> Originals:
    """Originals of a model whose file says that "w" is these values."""
    save_file({"w": values}, folder / "model.safetensors")
    return Originals(stored_weights.in_files([folder / "model.safetensors"]))


@pytest.mark.parametrize("loaded", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("in_file", [torch.float32, torch.bfloat16])
def test_w0_that_a_file_holds_is_the_same_to_the_bit_and_takes_no_memory(tmp_path, in_file, loaded):
    w0 = torch.randn(64, 32).to(in_file)
    originals, copied, change = stored(tmp_path, w0), Originals(), torch.randn(64, 32)
    here, there = w0.to(loaded).clone(), w0.to(loaded).clone()
    with Peak() as live:
        originals.move("w", here, change)
        assert live.now == 0
    copied.move("w", there, change)
    assert torch.equal(here, there)
    assert torch.equal(originals.change("w", here), copied.change("w", there))
    assert torch.equal(originals.original("w", here), w0.to(loaded))
    originals.restore("w", here)
    assert torch.equal(here, w0.to(loaded))


@pytest.mark.parametrize("other", ["values", "sign of zero", "shape", "dtype"])
def test_a_file_that_holds_anything_else_is_not_believed(tmp_path, other):
    """As where an adapter is merged, a head is reordered, or another tensor has the name."""
    w0 = torch.randn(8, 8)
    w0[0, 0] = 0.0
    said = {"values": w0 + 1, "sign of zero": torch.where(w0 == 0, -w0, w0), "shape": w0[:4], "dtype": w0.int()}[other]
    originals, here = stored(tmp_path, said.contiguous()), w0.clone()
    originals.move("w", here, torch.ones(8, 8))
    originals.restore("w", here)
    assert torch.equal(here.view(torch.int32), w0.view(torch.int32))


def test_a_change_that_nobody_asks_for_again_is_not_kept():
    originals, weight = Originals(), torch.randn(64, 32)
    originals.move("w", weight, torch.zeros(64, 32))
    with Peak() as live:
        originals.move("w", weight, torch.randn(64, 32))
        assert live.now == 0


def test_where_a_turn_began_is_found_again_from_the_change_that_led_there():
    originals, weight = Originals(), torch.randn(64, 32)
    w0, changes = weight.clone(), {"w": torch.randn(64, 32)}
    originals.move_to("w", weight, changes)
    began = originals.start("w", weight)
    expected = weight - w0
    weight.add_(1)
    assert callable(began)
    assert torch.equal(began(), expected)
