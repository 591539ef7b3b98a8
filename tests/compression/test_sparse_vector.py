"""Sparse vectors: exactly as many entries as a density says, the largest, and the bits that say where."""

import math

import pytest
import torch

from fedft.compression import sparse_vector


def test_a_density_counts_as_it_is_written():
    """0.07 * 100 is 7.000000000000001 in doubles, and 7 in the run file."""
    assert math.ceil(0.07 * 100) == 8
    assert sparse_vector.count(0.07, 100) == 7
    assert [sparse_vector.count(0.25, n) for n in (0, 1, 4, 5, 96)] == [0, 1, 1, 2, 24]


def test_a_density_rounded_down_leaves_one_entry():
    assert [sparse_vector.count(0.25, n, floor=True) for n in (0, 1, 4, 5, 7, 96)] == [0, 1, 1, 1, 1, 24]
    assert sparse_vector.largest(torch.ones(10), 0.35, floor=True).tolist() == [True] * 3 + [False] * 7


def test_ties_go_to_the_lower_index():
    assert sparse_vector.largest(torch.ones(10), 0.35).tolist() == [True] * 4 + [False] * 6
    assert sparse_vector.largest(torch.tensor([1.0, 3.0, 2.0, 2.0, 2.0]), 0.5).tolist() == [
        False,
        True,
        True,
        True,
        False,
    ]
    assert sparse_vector.largest(torch.zeros(3), 0.5).tolist() == [True, True, False]
    assert sparse_vector.largest(torch.zeros(0), 0.5).tolist() == []
    assert sparse_vector.largest(torch.tensor([1.0, math.nan, 2.0]), 0.3).tolist() == [False, True, False]


@pytest.mark.parametrize("entries", [1, 31, 32, 33, 100])
def test_what_is_packed_comes_out_as_it_was(entries):
    rng = torch.Generator().manual_seed(entries)
    x, chosen = torch.randn(entries, generator=rng), torch.rand(entries, generator=rng) < 0.5
    sent = sparse_vector.packed(x, chosen)
    assert sent["support"].shape == (math.ceil(entries / 32),)
    assert torch.equal(sparse_vector.unpacked(sent)[:entries].float(), x.masked_fill(~chosen, 0))
    assert not sparse_vector.unpacked(sent)[entries:].any()


@pytest.mark.parametrize("density", [0.0, 0.01, 0.3, 0.9, 1.0])
@pytest.mark.parametrize("zeros", [0.0, 0.5, 0.99])
def test_the_largest_are_those_of_a_stable_sort(density, zeros):
    """Also where the chosen must be filled up with zeros, and where many are equal."""
    rng = torch.Generator().manual_seed(3)
    score = (8 * torch.rand(40_000, generator=rng)).round()
    score[torch.rand(len(score), generator=rng) < zeros] = 0
    wanted = torch.zeros(len(score), dtype=torch.bool)
    wanted[torch.sort(score, descending=True, stable=True).indices[: sparse_vector.count(density, len(score))]] = True
    assert torch.equal(sparse_vector.largest(score, density), wanted)
