"""Coordinates on random directions: what they keep of a vector, and how a budget of them is shared out."""

import itertools
import math

import pytest
import torch

from fedft.randomness import directions, families, sketch
from fedft.randomness.independent import Table

FAMILIES = ("hadamard", "rademacher", "gaussian")


def normal(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# -- one block


def once(x: torch.Tensor, k: int, seed: int, *, scale="unbiased", family="hadamard") -> torch.Tensor:
    z = families.make(family, seed, k)
    sketch.rebuild(z, "w", sketch.coordinates(z, "w", x, scale, family), out := torch.zeros_like(x))
    return out.double()


def trials(d: int, k: int, *, n=60, **options) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(relative squared error, slope, cosine) of n updates, each on directions of its own."""
    found = []
    for seed in range(n):
        x = normal(d, seed=100 + seed).double()
        y = once(x.float(), k, seed, **options)
        found.append(((y - x) @ (y - x) / (x @ x), (y @ x) / (x @ x), (y @ x) / (y.norm() * x.norm())))
    error, slope, cosine = torch.tensor(found, dtype=torch.float64).T
    return error, slope, cosine


def spread(sample: torch.Tensor) -> float:
    """Standard error of a mean."""
    return float(sample.std()) / len(sample) ** 0.5


@pytest.mark.parametrize("family", FAMILIES)
def test_the_mean_over_seeds_is_the_update(family):
    """Slope 1 within three standard errors; and what is left of the mean of n rebuilt ones falls as 1 / n."""
    _, slope, _ = trials(512, 32, n=100, family=family)
    assert float(slope.mean()) == pytest.approx(1, abs=3 * spread(slope))
    assert spread(slope) < 0.05
    x = normal(512).double()
    mean = sum(once(x.float(), 32, seed, family=family) for seed in range(100)) / 100
    assert float((mean - x) @ (mean - x) / (x @ x)) == pytest.approx(512 / 32 / 100, rel=0.2)


@pytest.mark.parametrize(
    ("family", "d", "k", "law"),
    [
        ("rademacher", 1024, 64, 1023 / 64),
        ("rademacher", 1024, 128, 1023 / 128),
        ("gaussian", 512, 64, 513 / 64),
        ("hadamard", 8192, 512, 8192 / 512 - 1),
        ("hadamard", 8192, 1024, 8192 / 1024 - 1),
        ("hadamard", 1024, 64, 1024 / 64 - 1),
    ],
)
def test_the_squared_error_follows_its_law_and_halves_when_k_doubles(family, d, k, law):
    error, _, cosine = trials(d, k, family=family)
    assert float(error.mean()) == pytest.approx(law, rel=0.1)
    assert float(cosine.mean()) == pytest.approx(1 / math.sqrt(1 + law), rel=0.1)


def test_for_few_directions_the_cosine_is_that_of_the_sheet_in_every_family():
    """sqrt(K / (K + d)) = 0.243 for K = 64 and d = 1024, whatever the scale."""
    for family, scale in [("hadamard", "norm"), ("rademacher", "mmse"), ("gaussian", "unbiased")]:
        _, _, cosine = trials(1024, 64, n=30, family=family, scale=scale)
        assert float(cosine.mean()) == pytest.approx(math.sqrt(64 / (64 + 1024)), rel=0.1)


def test_uniform_directions_have_their_own_constant():
    """The paper's: kappa = 9/5; a small d, so that d - 0.2 could be told from d + 1: (4 - 0.2) / 2 = 1.9."""
    rng, errors = torch.Generator().manual_seed(3), []
    for _ in range(3000):
        v = (2 * torch.rand((2, 4), generator=rng) - 1) * math.sqrt(3)
        x = torch.randn(4, generator=rng)
        y = v.T @ (v @ x) / 2
        errors.append(float((y - x) @ (y - x) / (x @ x)))
    assert sum(errors) / len(errors) == pytest.approx(1.9, rel=0.05)


@pytest.mark.parametrize(("d", "k"), [(8192, 1024), (512, 128)])
@pytest.mark.parametrize("scale", ["projection", "mmse", "lstsq"])
def test_a_projection_leaves_one_less_k_over_d_and_never_more_than_there_was(scale, d, k):
    error, slope, _ = trials(d, k, n=20, scale=scale)
    assert float(error.mean()) == pytest.approx(1 - k / d, rel=0.05)
    assert float(error.max()) < 1
    assert float(slope.mean()) == pytest.approx(k / d, rel=0.1)


@pytest.mark.parametrize(("d", "k"), [(70, 64), (300, 256), (688, 200), (5000, 1000), (4095, 50)])
def test_blocks_of_any_size_keep_the_law_within_three_tenths(d, k):
    error, slope, _ = trials(d, k, n=30)
    assert float(slope.mean()) == pytest.approx(1, abs=4 * spread(slope))
    assert d / k - 1 - 4 * spread(error) <= float(error.mean()) <= d / k - 0.7 + 4 * spread(error)


@pytest.mark.parametrize("family", ["rademacher", "gaussian"])
def test_no_other_multiple_has_less_mean_error_than_mmse(family):
    """(K + d + kappa - 2) / K times the unbiased sum; a tenth more or less is worse."""
    d, k, errors = 64, 32, {0.9: 0.0, 1.0: 0.0, 1.1: 0.0}
    for seed in range(150):
        x = normal(d, seed=seed).double()
        y = once(x.float(), k, seed, scale="mmse", family=family)
        for factor in errors:
            errors[factor] += float((factor * y - x) @ (factor * y - x) / (x @ x)) / 150
    assert errors[1.0] < min(errors[0.9], errors[1.1])
    kappa = sketch.KAPPA[family]
    assert errors[1.0] == pytest.approx(1 - k / (k + d + kappa - 2), rel=0.05)


@pytest.mark.parametrize("d", [6, 64, 100, 688, 1000, 4095])
def test_least_squares_with_as_many_directions_as_numbers_loses_nothing(d):
    x = normal(d)
    assert float((once(x, d, 3, scale="lstsq") - x).norm() / x.norm()) < 1e-5


@pytest.mark.parametrize(("family", "d", "k"), [("hadamard", 300, 120), ("rademacher", 200, 60), ("gaussian", 90, 30)])
def test_least_squares_is_the_orthogonal_projection(family, d, k):
    z, x = families.make(family, 3, k), normal(d)
    columns = torch.stack([z.direction("w", j, (d,)) for j in range(k)], dim=1).double()
    q = torch.linalg.qr(columns).Q
    want = q @ (q.T @ x.double())
    assert float((once(x, k, 3, scale="lstsq", family=family) - want).norm() / want.norm()) < 1e-4


def test_directions_that_say_the_same_are_no_trouble_for_least_squares():
    x, z = normal(5), Table({"w": torch.ones(3, 5)})
    sketch.rebuild(z, "w", sketch.coordinates(z, "w", x, "lstsq", "table"), out := torch.zeros(5))
    assert torch.allclose(out, x.mean().expand(5), atol=1e-5)


@pytest.mark.parametrize("scale", sketch.SCALES)
def test_an_update_of_zero_has_coordinates_of_zero(scale):
    z = families.make("hadamard", 3, 8)
    assert not sketch.coordinates(z, "w", torch.zeros(20), scale).any()


@pytest.mark.parametrize("scale", ["unbiased", "projection", "mmse", "lstsq"])
def test_coordinates_of_a_sum_are_the_sum_of_the_coordinates(scale):
    z, x, y = families.make("rademacher", 3, 16), normal(100), normal(100, seed=2)
    of = [sketch.coordinates(z, "w", v, scale, "rademacher") for v in (x, y, 2 * x - y)]
    assert torch.allclose(2 * of[0] - of[1], of[2], atol=1e-4 * float(of[2].abs().max()))


def test_how_a_tensor_is_cut_changes_no_bit():
    z, x = families.make("hadamard", 3, 40), normal(20_000)
    pieces, e = [(0, 1), (1, 4096), (4096, 9001), (9001, 20_000)], directions.exponent(x)
    parts = [z.dot(x[a:b], "w", start=a, scale_exponent=e) for a, b in pieces]
    gamma = sketch.coordinates(z, "w", x)
    assert torch.equal((sum(parts) / 40).float(), gamma)
    sketch.rebuild(z, "w", gamma, whole := torch.zeros_like(x))
    for a, b in pieces:
        z.axpy_(part := torch.zeros(b - a), "w", gamma, start=a)
        assert torch.equal(part, whole[a:b])


# -- the budget


def test_the_budget_follows_the_weights_by_hand():
    """Shares of 10: 6.25, 2.5, 1.25 -> the last is lifted to 2; of the 8 left 5.71 and 2.29 -> 6 and 2."""
    assert sketch.allocate([5.0, 2.0, 1.0], [100, 100, 100], 10) == [6, 2, 2]


def test_remainders_that_are_equal_go_to_the_first():
    assert sketch.allocate([1.0, 1.0, 1.0], [100, 100, 100], 11) == [4, 4, 3]


def test_the_first_round_goes_by_the_root_of_the_sizes():
    assert sketch.allocate([0.0, 0.0], [900, 100], 40) == [30, 10]


def test_what_a_full_block_cannot_use_goes_to_the_others():
    assert sketch.allocate([100.0, 1.0, 1.0], [6, 100, 100], 26) == [6, 10, 10]
    assert sketch.allocate([1.0, 0.0, 0.0], [9000, 50, 50], 4096 + 20) == [4096, 10, 10]


def test_a_budget_that_is_too_large_fills_every_block():
    assert sketch.allocate([3.0, 0.0, 1.0], [5, 9000, 1], 10**6) == [5, 4096, 1]


def test_a_budget_that_is_too_small_says_what_it_takes():
    with pytest.raises(ValueError, match="K = 4 cannot give 2 to each of 3 blocks; wanted K >= 5"):
        sketch.allocate([1.0, 1.0, 1.0], [10, 10, 1], 4)


@pytest.mark.parametrize("seed", range(40))
def test_every_share_is_within_its_bounds_and_they_add_up(seed):
    rng = torch.Generator().manual_seed(seed)
    blocks = int(torch.randint(1, 60, (), generator=rng))
    sizes = (10 ** (6 * torch.rand(blocks, generator=rng))).long().clamp(min=1).tolist()
    weights = (10 ** (20 * torch.rand(blocks, generator=rng) - 15) * (torch.rand(blocks, generator=rng) < 0.9)).tolist()
    budget = int(torch.randint(2 * blocks, 300 * blocks, (), generator=rng))
    counts = sketch.allocate(weights, sizes, budget)
    assert sum(counts) == min(budget, sum(min(d, 4096) for d in sizes))
    assert all(min(2, d) <= k <= min(d, 4096) for k, d in zip(counts, sizes, strict=True))
    inside = [k / w for k, w, d in zip(counts, weights, sizes, strict=True) if 50 < k < min(d, 4096) and w]
    assert not inside or max(inside) / min(inside) < 1.1


@pytest.mark.parametrize(
    ("norms", "sizes", "weights", "want"),
    [
        ([4, 2, 1], [1000, 1000, 1000], [4.0, 2.0, 1.0], [16, 8, 4]),
        ([4, 2, 1], [100, 1600, 6400], [40.0, 80.0, 80.0], [10, 20, 20]),
    ],
    ids=["by norm among equals", "by root of size times norm among unlikes"],
)
def test_these_shares_have_the_least_error_of_all(norms, sizes, weights, want):
    """sum d |x|^2 / K: any direction moved to another block makes it worse."""

    def error(counts):
        return sum(n**2 * d / k for n, d, k in zip(norms, sizes, counts, strict=True))

    best = sketch.allocate(weights, sizes, sum(want))
    assert best == want
    for i, j in itertools.permutations(range(3), 2):
        assert error([k + (at == i) - (at == j) for at, k in enumerate(best)]) > error(best)
