"""Blocks as coordinates: which tensors are one, how many each gets, and which of the published code's are used."""

import math

import pytest
import torch

from fedft.randomness import sketch
from fedft.randomness.block_sketch import Budget, Subsets
from fedft.randomness.independent import Table
from fedft.randomness.source import Source


def drawn_of(blocks: dict[str, torch.Tensor], counts: list[int], source: Source) -> list:
    return [((n,), source.directions(7, k)) for n, k in zip(blocks, counts, strict=True)]


@pytest.mark.parametrize(("allocation", "want"), [("norm", [16, 8, 4]), ("error", [8, 8, 12]), ("size", [3, 6, 19])])
def test_a_budget_follows_the_norms_or_the_errors_by_hand(allocation, want):
    """|x| = 4, 2, 1 and d = 100, 400, 3600: weights 4, 2, 1, or 40, 40, 60, or 10, 20, 60."""
    assert Budget(28, "unbiased", allocation).counts([4.0, 2.0, 1.0], [100, 400, 3600]) == want


def test_without_norms_a_budget_follows_the_sizes_by_hand():
    """Roots of 900 and 100 are 30 and 10; by error they count twice, 900 and 100."""
    assert Budget(40, "unbiased", "norm").counts(None, [900, 100]) == [30, 10]
    assert Budget(40, "unbiased", "error").counts(None, [900, 100]) == [36, 4]


def test_a_table_bounds_the_coordinates_of_a_block():
    source = Source(table=Table({"a": torch.ones(5, 9), "b": torch.ones(5, 9)}))
    assert Budget(100, "unbiased", "norm", source).counts([1.0, 1.0], [9, 9]) == [5, 5]
    assert source.directions(7, 3).count == 3


def test_subsets_are_as_large_as_the_blocks_moved_by_hand():
    """|x| = 8, 3, 0 of K = 16: n = 16, 6 and 2; those used are K / n / 3 of the unbiased ones."""
    rng = torch.Generator().manual_seed(1)
    blocks = {n: torch.randn(64, generator=rng) for n in "abc"}
    subsets = Subsets(16)
    assert subsets.counts([1.0, 2.0, 3.0], [64] * 3) == [16] * 3
    drawn = drawn_of(blocks, [16] * 3, subsets.source)
    gammas = subsets.coordinates(drawn, blocks, torch.tensor([8.0, 3.0, 0.0]), seed=5)
    for ((name,), z), gamma, n in zip(drawn, gammas, (16, 6, 2), strict=True):
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
    ("sizes", "want"),
    [
        ([64, 8, 8, 64], [[0], [1, 2], [3]]),  # median 36, so 32 at most: 8 + 8 fit, 64 stands alone
        ([10, 10, 10], [[0], [1], [2]]),  # 9 at most: nothing joins
        ([3, 5, 1, 1, 10, 10, 10], [[0], [1], [2, 3], [4], [5], [6]]),  # 4 at most: 3 + 5 does not fit, 5 + 1 neither
        ([7], [[0]]),
    ],
    ids=str,
)
def test_small_neighbours_are_one_block_in_the_order_given_by_hand(sizes, want):
    names = [f"{9 - i}" for i in range(len(sizes))]  # not the order of their bytes
    found = Subsets(4).blocks(dict(zip(names, sizes, strict=True)))
    assert found == [tuple(names[i] for i in block) for block in want]
    assert Budget(4, "unbiased", "norm").blocks(dict.fromkeys(names, 1)) == [(n,) for n in sorted(names)]


def test_a_block_of_two_tensors_is_one_vector():
    """<z, x> of the whole is the sum over its tensors, and its coordinates are those of the whole."""
    z = Table({"a": torch.tensor([[1.0, 2.0], [0.0, 1.0]]), "b": torch.tensor([[3.0], [-1.0]])})
    x, subsets = {"a": torch.tensor([1.0, 1.0]), "b": torch.tensor([2.0])}, Subsets(2, Source(table=z))
    (gamma,) = subsets.coordinates([(("a", "b"), z)], x, torch.tensor([6**0.5]), seed=1)
    assert gamma.tolist() == pytest.approx([9 / 2 / 3, -1 / 2 / 3])


@pytest.mark.parametrize("family", ["hadamard", "rademacher", "gaussian"])
def test_no_term_is_longer_than_ten_times_the_rate(family):
    """Two tensors of 60 and 40: terms of lengths 0, 5, 40 and 400 at rate 3 are 0, 5, 30 and 30 long."""
    subsets, sizes = Subsets(4, Source(family)), {"a": 60, "b": 40}
    z = subsets.source.directions(7, 4)
    length = torch.tensor(
        [math.hypot(*(float(z.direction(n, j, (d,)).norm()) for n, d in sizes.items())) for j in range(4)]
    )
    gamma = torch.tensor([0.0, -5.0, 40.0, -400.0]) / length
    got = subsets.bounded(gamma, z, sizes, 3.0) * length
    assert got.tolist() == pytest.approx([0, -5, 30, -30], rel=1e-5)
    assert Budget(4, "unbiased", "norm", Source(family)).bounded(gamma, z, sizes, 3.0) is gamma


def test_terms_of_given_directions_are_clipped_whatever_their_size():
    z = Table({"w": torch.tensor([[300.0, 400.0], [0.3, 0.4]])})
    got = Subsets(2, Source(table=z)).bounded(torch.tensor([0.1, 0.1]), z, {"w": 2}, 1.0)
    assert got.tolist() == pytest.approx([10 / 500, 0.1])


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Budget(1, "unbiased", "norm"), "2 <= K"),
        (lambda: Budget(2**24 + 1, "unbiased", "norm"), "K <= 16777216"),
        (lambda: Budget(4, "unbaised", "norm"), "did you mean 'unbiased'"),
        (lambda: Budget(4, "unbiased", "sizes"), "did you mean 'size'"),
        (lambda: Budget(4, "unbiased", "norm", Source(table=Table({"w": torch.ones(1, 3)}))), "at least 2 directions"),
        (lambda: Subsets(4097), "K <= 4096"),
        (lambda: Subsets(4, Source(table=Table({"w": torch.ones(3, 3)}))), "at least 4 directions, got 3"),
        (lambda: Source("hadamrd"), "did you mean 'hadamard'"),
    ],
)
def test_what_makes_no_sense_is_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()
