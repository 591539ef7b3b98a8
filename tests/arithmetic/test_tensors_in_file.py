"""Tensors that stay in their file are those that were written, whatever becomes of the file's name."""

import copy
import gc
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fedft.arithmetic.tensors_in_file import TensorsInFile, as_it_is
from fedft.errors import DataError
from fedft.models import stored_weights

SOME = {
    "a": torch.arange(6.0).reshape(2, 3),
    "b": torch.tensor([1.5, -0.0, float("nan")], dtype=torch.bfloat16),
    "c": torch.tensor([3, -4], dtype=torch.int32),
    "empty": torch.zeros(0, 4),
    "one": torch.tensor(2.5, dtype=torch.float64),
}


def in_file(path: Path) -> TensorsInFile:
    save_file(SOME, path)
    (found,) = {id(x): x for x in stored_weights.in_files([path]).values()}.values()
    assert isinstance(found, TensorsInFile)
    return found


def equal(x: torch.Tensor, y: torch.Tensor) -> bool:
    return x.dtype == y.dtype and x.shape == y.shape and bool((x.isnan() & y.isnan() | (x == y)).all())


def test_each_is_read_in_new_memory_and_as_it_was_written(tmp_path: Path) -> None:
    there = in_file(tmp_path / "some.safetensors")
    assert there.keys() == SOME.keys()
    assert all(equal(there[n], x) for n, x in SOME.items())
    there["a"].zero_()
    assert torch.equal(there["a"], SOME["a"])
    assert "z" not in there
    with pytest.raises(KeyError):
        there["z"]


def test_the_file_is_read_on_when_its_name_is_gone_and_closed_with_the_last_reader(tmp_path: Path) -> None:
    path = tmp_path / "some.safetensors"
    there = in_file(path)
    number = there._file.fileno()
    os.replace(path, tmp_path / "elsewhere")
    path.write_bytes(b"another one")
    assert equal(there["one"], SOME["one"])
    del there
    gc.collect()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)


@pytest.mark.parametrize("spoil", ["cut", "written to"])
def test_a_file_that_was_written_to_is_refused_and_not_read_as_something_else(tmp_path: Path, spoil: str) -> None:
    path = tmp_path / "some.safetensors"
    there = in_file(path)
    with path.open("r+b") as f:
        if spoil == "cut":
            f.truncate(path.stat().st_size - 1)
        else:
            f.seek(-1, os.SEEK_END)
            f.write(b"x")
    os.utime(path, ns=(0, 1))  # of whatever clock the file system has
    with pytest.raises(DataError, match="was written to"):
        there["c"]


def test_a_copy_for_another_process_is_the_tensors_themselves(tmp_path: Path) -> None:
    found = copy.deepcopy(in_file(tmp_path / "some.safetensors"))
    assert type(found) is dict
    assert all(equal(found[n], x) for n, x in SOME.items())


def test_a_file_that_is_opened_for_each_tensor_is_refused_when_it_is_gone_or_another_one(tmp_path: Path) -> None:
    path = tmp_path / "some"
    path.write_bytes(b"abcd")
    there = TensorsInFile(path, {"w": as_it_is(torch.uint8, (2,), 1)}, stays_open=False)
    assert there["w"].tolist() == [98, 99]
    (tmp_path / "other").write_bytes(b"abcd")
    os.replace(tmp_path / "other", path)
    with pytest.raises(DataError, match="was written to"):
        there["w"]
    path.unlink()
    with pytest.raises(DataError, match="cannot be read any more: No such file"):
        there["w"]
