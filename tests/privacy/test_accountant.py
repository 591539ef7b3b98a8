"""Epsilon of releases: known figures, bounds of composition, and the noise that an epsilon asks for."""

import math

import pytest

from fedft.privacy.accountant import Release, epsilon, noise_for

pytest.importorskip("dp_accounting", reason="pip install 'fedft[dp]'")

KNOWN = [
    (0.1, 1.0, 100, 1e-3, 4.7844),
    (1.0, 4.0, 100, 1e-3, 10.2048),
    (0.01, 0.8, 1000, 1e-5, 3.1410),
]
"""(q, z, T, delta, epsilon): of privacy.md 1.4."""


@pytest.mark.parametrize(("q", "z", "count", "delta", "wanted"), KNOWN)
def test_known_figures(q: float, z: float, count: int, delta: float, wanted: float) -> None:
    assert epsilon([Release(z, q, count)], delta) == pytest.approx(wanted, rel=1e-3)
    halves = [Release(z, q, count // 2), Release(z, q, count - count // 2)]
    assert epsilon(halves, delta) == pytest.approx(wanted, rel=1e-3)


def test_nothing_costs_nothing_and_no_noise_everything() -> None:
    assert epsilon([], 1e-5) == 0
    assert epsilon([Release(1.0, 0.5, 0)], 1e-5) == 0
    assert math.isinf(epsilon([Release(0.0)], 1e-5))


@pytest.mark.parametrize("target", [1.0, 8.0])
def test_the_noise_that_is_found_costs_what_it_may(target: float) -> None:
    z = noise_for(lambda z: [Release(z, 0.1, 50)], target, 1e-4)
    assert 0.97 * target < epsilon([Release(z, 0.1, 50)], 1e-4) <= target
