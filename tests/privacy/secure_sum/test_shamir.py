"""Shares: any t give the secret, fewer fit every secret."""

import itertools
import os
import random

from fedft.privacy.secure_sum import shamir
from fedft.privacy.secure_sum.shamir import P


def test_any_t_of_n_give_the_secret() -> None:
    secret, coefficients = 2**248 - 5, shamir.random_elements(3, os.urandom)
    held = shamir.shares(secret, coefficients, 6)
    assert all(0 <= s < P for s in held)
    for holders in itertools.combinations(range(1, 7), 4):
        assert shamir.rebuilt([held[i - 1] for i in holders], shamir.at_zero(holders)) == secret
    for holders in itertools.combinations(range(1, 7), 3):
        assert shamir.rebuilt([held[i - 1] for i in holders], shamir.at_zero(holders)) != secret


def test_any_secret_at_all_fits_t_minus_1_shares() -> None:
    """Of three shares and any other secret there are coefficients: the fourth share, which nobody has, decides."""
    held = shamir.shares(12345, shamir.random_elements(3, os.urandom), 3)
    low = shamir.at_zero([1, 2, 3, 4])
    for other in (0, 1, 2**200, P - 1):
        known = sum(c * s for c, s in zip(low, held, strict=False))
        fourth = (other - known) * pow(low[3], -1, P) % P
        assert shamir.rebuilt([*held, fourth], low) == other


def test_a_hundred_shares_of_random_secrets() -> None:
    rng = random.Random(1)
    coefficients = shamir.random_elements(66, rng.randbytes)
    secret = rng.randrange(P)
    held = shamir.shares(secret, coefficients, 100)
    holders = sorted(rng.sample(range(1, 101), 67))
    assert shamir.rebuilt([held[i - 1] for i in holders], shamir.at_zero(holders)) == secret
    plain = [(secret + sum(c * x**e for e, c in enumerate(coefficients, 1))) % P for x in range(1, 101)]
    assert held == plain


def test_what_is_not_below_p_is_drawn_again() -> None:
    draws = iter([b"\xff" * 32 + (7).to_bytes(32, "little"), (P - 1).to_bytes(32, "little")])
    assert shamir.random_elements(2, lambda size: next(draws)[:size]) == [7, P - 1]
    assert len({*shamir.random_elements(50, os.urandom)}) == 50
