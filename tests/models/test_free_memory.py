"""What a pass keeps is measured, and free memory is the machine's or the container's, whichever is less."""

import pytest
import torch
from client_turns import batch_of, handle_on, llama, start, turn_of

from fedft.models import free_memory
from fedft.models.free_memory import free_bytes, kept_bytes


def test_what_a_pass_keeps_grows_with_its_rows_and_has_no_weights_in_it():
    handle = handle_on(llama())
    start(handle, turn_of(1))
    few, many = (kept_bytes(handle, batch_of(1, rows, 12)) for rows in (2, 8))
    assert 3.5 < many / few < 4.5
    weights = sum(4 * p.numel() for p in handle.model.parameters())
    assert 0 < kept_bytes(handle, batch_of(1, 1, 4)) < weights + few


def test_measuring_changes_nothing():
    handle = handle_on(llama())
    start(handle, turn_of(1))
    before = {n: x.clone() for n, x in handle.read().items()}
    kept_bytes(handle, batch_of(1))
    assert all(torch.equal(x, before[n]) for n, x in handle.read().items())
    assert all(p.grad is None for p in handle.parameters().values())


@pytest.mark.parametrize(("most", "free"), [("max", None), ("1000", 400)])
def test_a_container_s_limit_counts_where_it_is_less_than_the_machine_has(tmp_path, monkeypatch, most, free):
    machine = free_bytes(torch.device("cpu"))
    monkeypatch.setattr(free_memory, "CGROUP", tmp_path)
    (tmp_path / "memory.max").write_text(most)
    (tmp_path / "memory.current").write_text("600\n")
    monkeypatch.setattr(free_memory, "_of_machine", lambda: 10_000)
    assert machine is None or machine > 0
    assert free_bytes(torch.device("cpu")) == (free or 10_000)
    assert free_bytes(torch.device("meta")) is None
