"""Medians and trimmed means entry by entry: known answers, any block size, attacks, and honest costs."""

import pytest
import torch

from fedft.aggregation import entry_blocks, entrywise

SHEET = torch.tensor([[0.0], [1.0], [1.1], [0.9], [10.0]])


def test_the_sheet_s_median_and_trimmed_mean_are_one():
    assert entrywise.median(SHEET).item() == pytest.approx(1.0)
    assert entrywise.trimmed_mean(SHEET, 0.2).item() == pytest.approx(1.0)


def test_of_an_even_number_the_median_is_the_mean_of_the_two_in_the_middle():
    assert entrywise.median(SHEET[1:]).item() == pytest.approx(1.05)


@pytest.mark.parametrize(("n", "trim", "k"), [(5, 0.2, 1), (10, 0.3, 3), (9, 0.2, 1), (4, 0.0, 1), (20, 0.1, 2)])
def test_the_share_that_is_trimmed_is_rounded_down_to_one_at_least(n, trim, k):
    assert entrywise.left_out(n, trim) == k


def test_nothing_left_over_is_refused():
    with pytest.raises(ValueError, match=r"2 updates, of which \[robust\] trim = 0.2 leaves out 1"):
        entrywise.trimmed_mean(SHEET[:2], 0.2)


@pytest.mark.parametrize("held", [entry_blocks.HELD, 30, 1])
def test_blocks_change_nothing_and_a_name_is_taken_over_those_who_have_it(monkeypatch, held):
    monkeypatch.setattr(entry_blocks, "HELD", held)
    g = torch.Generator().manual_seed(0)
    clients = [{"w": torch.randn(3, 5, generator=g), "b": torch.randn(4, generator=g)} for _ in range(5)]
    del clients[0]["b"]
    found = entrywise.of_clients_tensors(clients, entrywise.median)
    w, b = torch.stack([c["w"] for c in clients]), torch.stack([c["b"] for c in clients[1:]])
    assert torch.equal(found["w"], w.median(dim=0).values)
    assert torch.equal(found["b"], b.double().quantile(0.5, dim=0).float())


@pytest.mark.parametrize("lie", [-6.0, 100.0, 0.0, 0.7])
@pytest.mark.parametrize("share", [0, 10, 20, 30])
def test_a_minority_moves_them_within_what_honest_clients_scatter(lie, share):
    """20 clients around 1 with a spread of 0.3; the dishonest all say `lie` times the truth."""
    g, f = torch.Generator().manual_seed(share), 20 * share // 100
    rows = 1 + 0.3 * torch.randn(20, 400, generator=g)
    rows[20 - f :] = lie
    for found in (entrywise.median(rows), entrywise.trimmed_mean(rows, 0.3)):
        assert float((found - 1).square().mean().sqrt()) <= 0.3
