"""Rows of numbers that travel with the seeds of their directions."""

import pytest
import torch

from fedft.randomness import philox
from fedft.strategies.parts import seeded_rows
from fedft.update import Update


def sent(seed: int, *numbers: float) -> dict[str, torch.Tensor]:
    return {"scalar": torch.tensor(numbers), "seed": philox.key_as_words(seed)}


def test_rows_are_weighted_by_examples_and_keep_their_order_by_hand():
    """n = 1 and 3: 0.25 (4, 8) and 0.75 (-4), which is filled up."""
    seeds = [2**64 - 1, 2**31]  # the sign of an int32 is a bit like any other
    told = seeded_rows.rows([Update(sent(seeds[0], 4.0, 8.0), 1), Update(sent(seeds[1], -4.0), 3)], "scalar")
    assert told["scalar"].tolist() == [[1.0, 2.0], [-3.0, 0.0]]
    assert told["seed"].shape == (2, 2)
    assert [(seed, row.tolist()) for seed, row in seeded_rows.each(told, "scalar")] == [
        (seeds[0], [1.0, 2.0]),
        (seeds[1], [-3.0, 0.0]),
    ]


def test_a_round_of_nobody_is_refused():
    with pytest.raises(ValueError, match="none"):
        seeded_rows.rows(iter([]), "scalar")


@pytest.mark.parametrize("seed", [0, 7, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1])
def test_a_seed_that_travelled_is_the_same(seed):
    assert seeded_rows.seed_of(Update(sent(seed), 1)) == seed
