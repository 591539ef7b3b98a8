"""Epsilon of releases: known figures, other accountants beside it, and the noise that an epsilon asks for."""

import logging
import math
from collections.abc import Sequence

import pytest

from fedft.errors import ConfigError
from fedft.privacy import accountant
from fedft.privacy.accountant import Release, epsilon, noise_for, renyi_bound

dp_accounting = pytest.importorskip("dp_accounting", reason="pip install 'fedft[dp]'")

KNOWN = [
    (0.1, 1.0, 100, 1e-3, 4.7844),
    (1.0, 4.0, 100, 1e-3, 10.2048),
    (0.01, 0.8, 1000, 1e-5, 3.1410),
    (0.04, 1.0, 2000, 1e-5, 12.5925),
]
"""(q, z, T, delta, epsilon): of privacy.md 1.4."""

BESIDE = [
    (q, z, count, delta)
    for q, z, count in (
        (1.0, 2.0, 1), (1.0, 2.0, 20), (1.0, 8.0, 100), (1.0, 1.0, 10), (0.5, 2.0, 40), (0.5, 8.0, 400),
        (0.2, 1.0, 40), (0.2, 4.0, 200), (0.1, 1.0, 100), (0.1, 0.7, 20), (0.04, 1.0, 500), (0.016, 0.6, 200),
        (0.01, 0.8, 1000), (0.005, 0.8, 3000), (0.002, 0.6, 400),
    )
    for delta in (1e-3, 1e-5)
]  # fmt: skip
"""30 settings (q, z, T, delta): all clients and small samples, one round and thousands of steps."""


@pytest.mark.parametrize(("q", "z", "count", "delta", "wanted"), KNOWN)
def test_known_figures(q: float, z: float, count: int, delta: float, wanted: float) -> None:
    assert epsilon([Release(z, q, count)], delta) == pytest.approx(wanted, rel=1e-3)
    halves = [Release(z, q, count // 2), Release(z, q, count - count // 2)]
    assert epsilon(halves, delta) == pytest.approx(wanted, rel=1e-3)


@pytest.mark.parametrize(("q", "z", "count", "delta"), BESIDE)
def test_ours_is_the_librarys_own_accountant_and_never_below_it(q: float, z: float, count: int, delta: float) -> None:
    theirs = by_hand([Release(z, q, count)], delta)
    ours = epsilon([Release(z, q, count)], delta)
    assert theirs - 1e-3 < ours < 1.001 * theirs + 1e-3
    assert ours <= renyi_bound([Release(z, q, count)], delta) + 1e-3


@pytest.mark.filterwarnings("ignore:divide by zero encountered in log:RuntimeWarning", "ignore:Optimal order is")
@pytest.mark.parametrize(("q", "z", "count", "delta"), BESIDE)
def test_opacus_accountants_say_the_same_within_a_hundredth(q: float, z: float, count: int, delta: float) -> None:
    accountants = pytest.importorskip("opacus.accountants", reason="Opacus is the oracle of this test only")
    ours = {"prv": epsilon([Release(z, q, count)], delta), "rdp": renyi_bound([Release(z, q, count)], delta)}
    for name, theirs in (("prv", accountants.PRVAccountant()), ("rdp", accountants.RDPAccountant())):
        theirs.history = [(z, q, count)]
        said = theirs.get_epsilon(delta)
        own_error = 0.01 if name == "prv" else 0.0  # what it adds to be an upper bound
        assert said - own_error == pytest.approx(ours[name], rel=0.01, abs=2e-3), name


def test_kinds_of_releases_are_composed_whatever_their_order() -> None:
    """Certain and sampled ones together cost more than either, less than the sum, and what the library says."""
    kinds = [Release(3.0, 1.0, 5), Release(1.0, 0.1, 40), Release(8.0, 1.0, 20)]
    whole, theirs = epsilon(kinds, 1e-4), by_hand(kinds, 1e-4)
    assert epsilon(kinds[::-1], 1e-4) == pytest.approx(whole, rel=1e-9)
    assert theirs - 1e-3 < whole < 1.002 * theirs
    assert max(epsilon([k], 1e-4) for k in kinds) < whole < sum(epsilon([k], 1e-4) for k in kinds)


def test_nothing_costs_nothing_and_no_noise_everything() -> None:
    assert epsilon([], 1e-5) == renyi_bound([], 1e-5) == 0
    assert epsilon([Release(1.0, 0.5, 0), Release(1.0, 0.0, 9)], 1e-5) == 0
    assert math.isinf(epsilon([Release(0.0)], 1e-5))
    assert math.isinf(renyi_bound([Release(0.0)], 1e-5))


def test_what_protects_nothing_is_bounded_without_composing_it() -> None:
    """A distribution of a thousand releases of almost no noise would not fit into memory."""
    assert epsilon([Release(0.01, 0.2, 1000)], 1e-5) > accountant.BEYOND


def test_a_line_per_round_makes_few_distributions(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    accountant._loss.cache_clear()
    library = dp_accounting.pld.privacy_loss_distribution
    build = library.from_gaussian_mechanism
    monkeypatch.setattr(library, "from_gaussian_mechanism", lambda *a, **k: made.append(a) or build(*a, **k))
    spent = [epsilon([Release(2.0, 0.2, done)], 1e-5) for done in range(1, 41)]
    assert spent == sorted(set(spent))
    assert 1 <= len(made) <= 6


def test_the_library_is_quiet_at_the_call_and_nowhere_else(caplog: pytest.LogCaptureFixture) -> None:
    said = logging.getLogger("absl")
    before = said.level
    accountant._divergences.cache_clear()
    renyi_bound([Release(1.0, 0.1)], 1e-3)
    assert not caplog.records
    assert said.level == before
    with caplog.at_level(logging.WARNING, logger="absl"):
        dp_accounting.rdp.RdpAccountant([1.1]).compose(event(Release(1.0, 0.1)))
    assert any("failed to converge" in r.message for r in caplog.records), "nothing was there to be silenced"


@pytest.mark.parametrize(
    ("q", "count", "delta", "target"),
    [(0.1, 50, 1e-4, 1.0), (0.1, 50, 1e-4, 8.0), (1.0, 20, 1e-3, 3.0), (0.2, 200, 1e-5, 8.0), (0.016, 200, 1e-5, 0.5)],
)
def test_the_noise_that_is_found_is_the_least_that_does_in_few_evaluations(
    q: float, count: int, delta: float, target: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluated: list[float] = []

    def counted(releases: Sequence[Release], delta: float) -> float:
        evaluated.append(releases[0].noise_multiplier)
        return epsilon(releases, delta)

    monkeypatch.setattr(accountant, "epsilon", counted)
    z = noise_for(lambda z: [Release(z, q, count)], target, delta)
    assert len(evaluated) <= 6
    assert epsilon([Release(z, q, count)], delta) <= target < epsilon([Release(z / 1.0101, q, count)], delta)


def test_figures_of_the_sheet_for_units_that_are_sites() -> None:
    """20 sites, all in 20 rounds: z 2.34 and 5.13 by Renyi divergences (privacy.md 3.4), a tenth less in truth."""
    for target, wanted in ((8.0, 2.34), (3.0, 5.13)):
        assert renyi_bound([Release(wanted, 1.0, 20)], 1e-3) == pytest.approx(target, rel=0.02)
        assert 0.85 * wanted < noise_for(lambda z: [Release(z, 1.0, 20)], target, 1e-3) < wanted


def test_an_epsilon_that_no_noise_reaches_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"epsilon = 0\.1: no noise is enough"):
        noise_for(lambda z: [Release(z, 1.0, 20), Release(1.0)], 0.1, 1e-3)


def event(release: Release) -> object:
    gaussian = dp_accounting.GaussianDpEvent(release.noise_multiplier)
    if release.probability >= 1:
        return gaussian
    return dp_accounting.PoissonSampledDpEvent(release.probability, gaussian)


def by_hand(releases: Sequence[Release], delta: float) -> float:
    """What dp-accounting's own accountant says, with its own steps."""
    from dp_accounting import pld

    account = pld.PLDAccountant(dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE)
    for r in releases:
        account.compose(event(r), r.count)
    return float(account.get_epsilon(delta))
