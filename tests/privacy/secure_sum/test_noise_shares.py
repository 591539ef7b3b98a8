"""Noise in shares: exactly the distribution that is said, enough of it whoever is lost, and room for it in the ring."""

import itertools
import math
import os
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from secure_blocks import RUN, begun, counted, roster, set_up, signing_key, spec, total, vectors

from fedft.errors import PlanRefused, RejectedUpdate
from fedft.privacy.secure_sum import member, noise_shares

SPEC = spec(3000)


@pytest.mark.parametrize("variance", [1, 2, 16])
def test_draws_are_as_likely_as_said(variance: int) -> None:
    """Chi-square over all values that are expected 20 times or more; at the level 1e-6, from a fixed seed."""
    words, count = noise_shares._words(counted(variance)), 20_000
    found = np.array([noise_shares.discrete_gaussian(variance, words) for _ in range(count)])
    whole = sum(math.exp(-(x**2) / (2 * variance)) for x in range(-200, 201))
    expected = {x: count * math.exp(-(x**2) / (2 * variance)) / whole for x in range(-200, 201)}
    often = [x for x, e in expected.items() if e >= 20]
    chi = sum((np.count_nonzero(found == x) - expected[x]) ** 2 / expected[x] for x in often)
    assert len(often) >= 7
    assert chi < len(often) + 6 * math.sqrt(2 * len(often))
    assert np.abs(found).max() < 8 * math.sqrt(variance)


def test_a_large_deviation_has_its_moments() -> None:
    words = noise_shares._words(counted(7))
    found = np.array([noise_shares.discrete_gaussian(10**12, words) for _ in range(20_000)]) / 10**6
    assert abs(found.mean()) < 5 / math.sqrt(20_000)
    assert found.var() == pytest.approx(1, abs=5 * math.sqrt(2 / 20_000))
    assert (found**4).mean() == pytest.approx(3, abs=5 * math.sqrt(96 / 20_000))


def test_coins_are_exact() -> None:
    """over / under decides by its digits: two words beside the first digit, equal to it, and what comes next."""
    half, third = 1 << 63, (1 << 64) // 3
    cases = [
        (1, 2, [half - 1], True), (1, 2, [half + 1], False), (1, 2, [half, 0, 5], False), (0, 5, [0, 0, 9], False),
        (1, 3, [third - 1], True), (1, 3, [third, third, third - 1], True), (1, 3, [third, third + 1], False),
        (5, 5, [2**64 - 1], True),
    ]  # fmt: skip
    for over, under, words, wanted in cases:
        assert noise_shares._below(over, under, iter(words)) is wanted


@pytest.mark.parametrize(("over", "under"), [(0, 3), (1, 7), (1, 1), (5, 2), (7, 3)])
def test_coins_of_an_exponential(over: int, under: int) -> None:
    words, count = noise_shares._words(counted(over)), 20_000
    share = sum(noise_shares._below_exp(over, under, words) for _ in range(count)) / count
    p = math.exp(-Fraction(over, under))
    assert abs(share - p) <= 5 * math.sqrt(p * (1 - p) / count)


def test_uniform_integers_leave_nothing_out() -> None:
    words = iter([0, 1, 2**64 - 1, 12])
    assert 2**64 % 10 == 6
    assert [noise_shares._uniform(10, words) for _ in range(2)] == [(2**64 - 1) % 10, 2], "below 6 is drawn again"


def test_any_t_shares_are_enough_noise() -> None:
    """n 5, t 4: over every four the variance is sigma^2 or more, over all five 5/4 of it."""
    noisy = replace(SPEC, noise=40.0)
    shares = [noise_shares.share(noisy, 5, counted(k)) for k in range(5)]
    for some in itertools.combinations(shares, 4):
        assert np.sum(some, axis=0).var() / 40**2 == pytest.approx(1, rel=5 * math.sqrt(2 / 3000))
    assert np.sum(shares, axis=0).var() / 40**2 == pytest.approx(1.25, rel=5 * math.sqrt(2 / 3000))
    assert (shares[0] != shares[1]).any()


def test_sums_with_noise_are_the_integers_and_the_noise() -> None:
    noisy = replace(spec(200), noise=1e5)
    sites = set_up(begun(5, noisy))
    q = {
        n: x + noise_shares.share(noisy, 5, os.urandom).astype(np.int32)
        for n, x in vectors(sites.members, noisy).items()
    }
    assert (sites.sum(0, q, lost=["site-2"]) == total({n: x for n, x in q.items() if n != "site-2"})).all()


def test_the_range_is_wider_by_ten_deviations_and_not_more() -> None:
    wide = replace(spec(3), noise=1000.0)
    assert wide.most(4, 4) == 4 * wide.largest + 10_000
    assert wide.most(1, 4) == wide.largest + 5_000
    sites = set_up(begun(5, wide))
    edge = np.array([0, wide.most(1, 4), -wide.most(1, 4)], np.int32)
    sites.masked(0, dict.fromkeys(sites.members, edge))
    with pytest.raises(ValueError, match="within"):
        sites.masked(1, dict.fromkeys(sites.members, edge * 2))
    with pytest.raises(ValueError, match="within"):
        set_up(begun(5, spec(3))).masked(0, {"site-1": edge})
    y = sites.masked(1, dict.fromkeys(sites.members, edge))
    sites.opened(1, y, y)
    with pytest.raises(RejectedUpdate) as refused:
        sites.block.sum(1, y)
    assert refused.value.code == "secagg_out_of_range", "all at ten deviations of one: not of honest sites"


def test_the_ring_has_room_for_the_noise_or_the_block_is_refused() -> None:
    replace(spec(3), noise=2.0**24).check_fits(100)
    too_much = replace(spec(3), noise=2.0**27)
    with pytest.raises(ValueError, match="have room for"):
        too_much.check_fits(100)
    with pytest.raises(ValueError, match="have room for"):
        begun(100, too_much)
    silent = replace(spec(3), noise=0.0)
    assert silent.json() == spec(3).json()
    assert replace(silent, noise=1.0).digest != silent.digest


def test_noise_that_was_not_agreed_on_is_refused() -> None:
    """A server that asks for a sum with less noise than the job says."""
    opening = begun(5, replace(SPEC, noise=4.0)).block.open()
    with pytest.raises(PlanRefused) as refused:
        member.begun(opening, roster(5), "site-1", signing_key("site-1"), 0, replace(SPEC, noise=40.0), RUN)
    assert refused.value.code == "secagg_context"


def test_shares_too_small_and_vectors_too_long_are_refused() -> None:
    with pytest.raises(ValueError, match="wanted 8 at least"):
        noise_shares.share(replace(SPEC, noise=7.0), 5, os.urandom)
    with pytest.raises(ValueError, match="262,144 at most"):
        noise_shares.share(replace(spec(2**18 + 1), noise=40.0), 5, os.urandom)


def test_known_bounds() -> None:
    """Total variation at n 20 as the definition has it, the multiplier against a third, growth of norms by rounding."""
    for deviation, wanted in ((0.5, 3.3), (1, 5e-4), (2, 7e-17), (4, 3e-68)):
        assert noise_shares.distance(20, deviation) == pytest.approx(wanted, rel=0.2)
    assert noise_shares.multiplier_against(1.0, 100, 33) == pytest.approx(0.71, abs=0.005)
    assert noise_shares.multiplier_against(2.0, 100, 0) == 2.0
    assert noise_shares.multiplier_against(2.0, 5, 5) == 0.0
    assert 1 - noise_shares.clip_before_rounding(1.0, spec(4096)) == pytest.approx(8e-6, rel=0.05)
    assert 1 - noise_shares.clip_before_rounding(1.0, spec(3_100_000)) == pytest.approx(2e-4, rel=0.06)
    with pytest.raises(ValueError, match=r"adds 3\.1% to their norm"):
        noise_shares.clip_before_rounding(1.0, spec(4096, bits=12))
