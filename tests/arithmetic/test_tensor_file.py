"""A file of tensors in parts is one that the library reads, and costs no copy of them."""

import json
import tempfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save

from fedft import durable
from fedft.arithmetic import tensor_file
from fedft.arithmetic.tensors_in_file import TensorsInFile

SOME = {
    "/a": torch.arange(6.0).reshape(2, 3),
    "b/ä": torch.tensor([1, 2], dtype=torch.uint16),
    "b/bits": torch.tensor([True, False, True]),
    "b/empty": torch.zeros(0, 4),
    "b/one": torch.tensor(3.5, dtype=torch.float64),
    "b/half": torch.ones(3, dtype=torch.bfloat16),
}
META = {"version": "3", "notes": json.dumps({"who": 'König "K" \\ \u2028'})}


def test_the_library_reads_the_same_tensors_and_we_the_same_texts() -> None:
    data = b"".join(tensor_file.parts(SOME, META))
    found = load(data)
    assert found.keys() == SOME.keys()
    assert all(found[n].dtype == t.dtype and torch.equal(found[n], t) for n, t in SOME.items())
    assert durable.metadata(data) == META


def test_it_is_the_library_s_own_file_where_its_header_is_in_one_order() -> None:
    assert b"".join(tensor_file.parts(SOME, {"a": "b"})) == save(SOME, {"a": "b"})


@pytest.mark.parametrize("dtype", tensor_file.DTYPES)
def test_every_dtype_has_its_name(dtype: torch.dtype) -> None:
    one = {"x": torch.ones(3, dtype=dtype)}
    found = load(b"".join(tensor_file.parts(one, {})))["x"]
    assert (found.dtype, found.tolist()) == (dtype, one["x"].tolist())


def test_tensors_that_lie_in_order_are_not_copied_and_others_are_written_in_order() -> None:
    x = torch.zeros(4)
    _, part = tensor_file.parts({"x": x}, {})
    x[1] = 1.0
    assert bytes(part) == x.numpy().tobytes()
    turned = torch.arange(6.0).reshape(2, 3).T
    assert torch.equal(load(b"".join(tensor_file.parts({"x": turned}, {})))["x"], turned)


def test_each_tensor_is_found_at_its_place_behind_whatever_stands_before(tmp_path: Path) -> None:
    path = tmp_path / "some"
    path.write_bytes(b"before." + b"".join(tensor_file.parts(SOME, META)))
    with path.open("rb") as f:
        found = TensorsInFile(path, tensor_file.places(f, 7))
    assert found.keys() == SOME.keys()
    assert all(found[n].dtype == t.dtype and torch.equal(found[n], t) for n, t in SOME.items())


def test_what_is_put_aside_is_read_from_a_file_that_nobody_finds_and_holds_no_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert tensor_file.aside(SOME) is SOME
    monkeypatch.setattr(tensor_file, "LARGE", 1)
    found = tensor_file.aside(SOME)
    assert isinstance(found, TensorsInFile)
    assert list(tmp_path.iterdir()) == []
    assert all(found[n].dtype == t.dtype and torch.equal(found[n], t) for n, t in SOME.items())


def test_where_there_is_no_room_aside_tensors_stay_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_file, "LARGE", 1)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    assert tensor_file.aside(SOME) is SOME
