"""Blocks as coordinates: how many each gets by either rule, and which of the published code's are used."""

import pytest
import torch

from fedft.randomness import sketch
from fedft.randomness.block_sketch import Budget, Source, Subsets
from fedft.randomness.independent import Table


def drawn_of(blocks: dict[str, torch.Tensor], counts: list[int], source: Source) -> list:
    return [(n, source.directions(7, n, k)) for n, k in zip(blocks, counts, strict=True)]


@pytest.mark.parametrize(("allocation", "want"), [("norm", [16, 8, 4]), ("error", [8, 8, 12])])
def test_a_budget_follows_the_norms_or_the_errors_by_hand(allocation, want):
    """|x| = 4, 2, 1 and d = 100, 400, 3600: weights 4, 2, 1, or 40, 40, 60."""
    assert Budget(28, "unbiased", allocation).counts([4.0, 2.0, 1.0], [100, 400, 3600]) == want


def test_without_norms_a_budget_follows_the_sizes_by_hand():
    """Roots of 900 and 100 are 30 and 10; by error they count twice, 900 and 100."""
    assert Budget(40, "unbiased", "norm").counts(None, [900, 100]) == [30, 10]
    assert Budget(40, "unbiased", "error").counts(None, [900, 100]) == [36, 4]


def test_a_table_bounds_the_coordinates_of_a_block():
    source = Source(table=Table({"a": torch.ones(5, 9), "b": torch.ones(5, 9)}))
    assert Budget(100, "unbiased", "norm", source).counts([1.0, 1.0], [9, 9]) == [5, 5]
    assert source.directions(7, "a", 3).count == 3


def test_subsets_are_as_large_as_the_blocks_moved_by_hand():
    """|x| = 8, 3, 0 of K = 16: n = 16, 6 and 2; those used are K / n / 3 of the unbiased ones."""
    rng = torch.Generator().manual_seed(1)
    blocks = {n: torch.randn(64, generator=rng) for n in "abc"}
    subsets = Subsets(16)
    assert subsets.counts([1.0, 2.0, 3.0], [64] * 3) == [16] * 3
    drawn = drawn_of(blocks, [16] * 3, subsets.source)
    gammas = subsets.coordinates(drawn, blocks, torch.tensor([8.0, 3.0, 0.0]), seed=5)
    for (name, z), gamma, n in zip(drawn, gammas, (16, 6, 2), strict=True):
        used, full = gamma != 0, sketch.coordinates(z, name, blocks[name])
        assert int(used.sum()) == n
        assert torch.allclose(gamma[used], full[used] * (16 / n / 3))


def test_which_are_used_is_up_to_the_sender():
    blocks = {"a": torch.full((64,), 1.0), "b": torch.full((64,), 0.25)}
    drawn, norms = drawn_of(blocks, [16, 16], Source()), torch.tensor([8.0, 2.0])
    one, two = (Subsets(16).coordinates(drawn, blocks, norms, seed) for seed in (5, 6))
    assert torch.equal(one[0], two[0])
    assert not torch.equal(one[1] != 0, two[1] != 0)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Budget(1, "unbiased", "norm"), "2 <= K"),
        (lambda: Budget(2**24 + 1, "unbiased", "norm"), "K <= 16777216"),
        (lambda: Budget(4, "unbaised", "norm"), "did you mean 'unbiased'"),
        (lambda: Budget(4, "unbiased", "size"), "allocation is 'size'"),
        (lambda: Budget(4, "unbiased", "norm", Source(table=Table({"w": torch.ones(1, 3)}))), "at least 2 directions"),
        (lambda: Subsets(4097), "K <= 4096"),
        (lambda: Subsets(4, Source(table=Table({"w": torch.ones(3, 3)}))), "at least 4 directions, got 3"),
        (lambda: Source("hadamrd"), "did you mean 'hadamard'"),
    ],
)
def test_what_makes_no_sense_is_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()
