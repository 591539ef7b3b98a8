"""Sparse directions: one random mask in everything that is done with them, of exactly the share that was asked for."""

import math

import pytest
import torch

from fedft.randomness import families, masked
from fedft.randomness.independent import Table
from fedft.randomness.masked import Masked

SEED, N = 5, 300_000  # more than one chunk


def of(zeroed: float, family: str = "hadamard", count: int = 8, seed: int = SEED) -> Masked:
    return Masked(families.make(family, 1, count), seed, zeroed)


@pytest.mark.parametrize("rho", [0.1, 0.5, 0.9])
def test_the_share_of_zeros_is_what_was_asked_for(rho):
    """300,000 independent entries: five standard deviations."""
    zeros = float((of(rho).direction("w", 3, (N,)) == 0).double().mean())
    assert abs(zeros - rho) < 5 * math.sqrt(rho * (1 - rho) / N)


@pytest.mark.parametrize(("rho", "share"), [(0.1, 0.54), (0.5, 0.69), (0.9, 0.82)])
def test_the_published_mask_zeroes_another_share(rho, share):
    assert masked.fraction(rho, "reference") == pytest.approx(share, abs=0.005)
    assert masked.fraction(rho, "exact") == rho


def test_nothing_zeroed_is_the_dense_direction_bit_for_bit():
    w, dense = torch.zeros(N), torch.zeros(N)
    of(0.0).add_(w, "w", 2, 0.3)
    of(0.0).inner.add_(dense, "w", 2, 0.3)
    assert torch.equal(w, dense)


def test_all_directions_are_zero_in_the_same_entries_and_other_tensors_in_others():
    z = of(0.5)
    support = [z.direction("w", j, (1000,)) != 0 for j in range(8)]
    assert all(torch.equal(s, support[0]) for s in support)
    assert not torch.equal(z.direction("v", 0, (1000,)) != 0, support[0])
    assert not torch.equal(of(0.5, seed=6).direction("w", 0, (1000,)) != 0, support[0])


@pytest.mark.parametrize("family", ["hadamard", "rademacher", "gaussian"])
def test_sums_and_products_are_those_of_the_masked_direction(family):
    z, n = of(0.4, family), 5000
    rows = torch.stack([z.direction("w", j, (n,)) for j in range(8)])
    kept = z.kept("w", 0, n)
    assert torch.equal(rows, torch.stack([z.inner.direction("w", j, (n,)) for j in range(8)]) * kept)
    start, c = torch.linspace(-1, 1, n), torch.linspace(-1, 2, 8)
    w = start.clone()
    z.add_(w, "w", 5, 0.25)
    assert torch.allclose(w, start + 0.25 * rows[5], atol=1e-6)
    assert torch.equal(w[~kept], start[~kept])
    w = start.clone()
    z.axpy_(w, "w", c)
    assert torch.allclose(w, start + c @ rows, atol=1e-4)  # 19 bits
    assert torch.equal(w[~kept], start[~kept])
    assert torch.allclose(z.dot(start, "w"), rows.double() @ start.double(), atol=1e-2)


@pytest.mark.parametrize("cut", [1, 1023, 2**18, 2**18 + 7])
def test_a_tensor_may_be_walked_in_pieces(cut):
    z, whole = of(0.5), torch.zeros(N)
    z.add_(whole, "w", 1, 1.0)
    first, second = torch.zeros(cut), torch.zeros(N - cut)
    z.add_(first, "w", 1, 1.0)
    z.add_(second, "w", 1, 1.0, start=cut)
    assert torch.equal(torch.cat([first, second]), whole)
    assert torch.equal(z.direction("w", 1, (N - cut,), start=cut), whole[cut:])


def test_a_mask_lies_on_given_directions_too():
    z = Masked(Table({"w": torch.tensor([[3.0, 4.0, 5.0, 6.0]])}), SEED, 0.5)
    kept = z.kept("w", 0, 4).float()
    assert torch.equal(z.direction("w", 0, (2, 2)), (torch.tensor([3.0, 4.0, 5.0, 6.0]) * kept).view(2, 2))
    assert z.count == 1


@pytest.mark.parametrize("zeroed", [-0.1, 1.1, math.nan])
def test_shares_out_of_range_are_refused(zeroed):
    with pytest.raises(ValueError, match="zeroed"):
        of(zeroed)
