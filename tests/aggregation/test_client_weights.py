"""Shares in a mean: by norms, by examples, with a bound, and without the dilution of padding."""

import pytest
import torch

from fedft.aggregation import client_weights
from fedft.arithmetic import lowrank
from fedft.arithmetic.lowrank import LowRank

PAIRS = [
    (LowRank(torch.tensor([[1.0]]), torch.tensor([[2.0]])), 30),  # products 2 and 6
    (LowRank(torch.tensor([[3.0], [0.0]]), torch.tensor([[2.0, 1.0]])), 10),
]


def test_shares_by_norm_and_by_examples():
    assert client_weights.by_norm(PAIRS) == [0.25, 0.75]
    assert client_weights.by_examples(PAIRS) == [0.75, 0.25]


def test_where_all_changes_are_zero_examples_count():
    still = [(0.0 * d, n) for d, n in PAIRS]
    assert client_weights.by_norm(still) == client_weights.by_examples(PAIRS)


@pytest.mark.parametrize(
    ("given", "most", "wanted"),
    [
        ([0.2, 0.3, 0.5], 0.5, [0.2, 0.3, 0.5]),
        ([0.1, 0.1, 0.8], 0.5, [0.25, 0.25, 0.5]),
        ([0.9, 0.09, 0.01], 0.4, [0.4, 0.4, 0.2]),
        ([1.0, 0.0, 0.0], 0.5, [0.5, 0.25, 0.25]),
        ([0.9, 0.1], 0.5, [0.5, 0.5]),
        ([0.9, 0.1], 0.3, [0.5, 0.5]),
        ([1.0], 0.4, [1.0]),
    ],
)
def test_the_cap_by_hand(given, most, wanted):
    """In the third case the excess of the first lifts the second above the bound in turn."""
    assert client_weights.capped(given, most) == pytest.approx(wanted)
    assert sum(client_weights.capped(given, most)) == pytest.approx(1)


def test_undiluted_ranks_are_means_over_those_who_hold_them():
    """Rank 0 is held by both; rank 1 by the second only, so that its share goes; nobody holds rank 2 of the mean."""
    padded = lowrank.pad_to_largest([(d, w) for (d, _), w in zip(PAIRS, (0.25, 0.75), strict=True)])
    mean = lowrank.pad(lowrank.mean_factors(padded), 3)
    found = client_weights.undiluted(mean, [1, 2], [0.25, 0.75])
    assert found.A.flatten().tolist() == [2.5, 0.0, 0.0]
    assert found.B.flatten().tolist() == [2.0, 1.0, 0.0]
