"""What charges cost together: the site that pays for most, and coins that are tossed once."""

from dataclasses import replace

import pytest

from fedft.privacy import spent_budget
from fedft.privacy.accountant import Release
from fedft.privacy.spent_budget import Charge, Header, Ledger

pytest.importorskip("dp_accounting", reason="pip install 'fedft[dp]'")

HEADER = Header("central-dp", 0.3, 1.0, 1e-3, 4, 2.0, "cyclic", "os")


def rounds(count: int, *asked: str) -> list[Charge]:
    return [Charge(r, "gaussian", 1.0, asked=asked) for r in range(count)]


def test_only_the_rounds_in_which_a_site_was_asked_are_its_own() -> None:
    """privacy.md 1.3: N 200, m 20, T 100, z 1, delta 1e-3: 80.03 for all rounds, 14.08 for ten."""
    assert spent_budget.epsilon(rounds(100, "anna"), 1e-3) == pytest.approx(80.03, rel=2e-3)
    groups = [Charge(r, "gaussian", 1.0, asked=(f"group-{r % 10}",)) for r in range(100)]
    assert spent_budget.epsilon(groups, 1e-3) == pytest.approx(14.08, rel=2e-3)
    assert spent_budget.releases([*rounds(3, "anna"), *rounds(2, "bert")]) == [Release(pytest.approx(3**-0.5))]


def test_secret_coins_are_worth_their_probability() -> None:
    coins = [Charge(r, "poisson", 1.0, q=0.1, draw=str(r)) for r in range(100)]
    assert spent_budget.epsilon(coins, 1e-3) == pytest.approx(4.7844, rel=2e-3)


def test_two_releases_of_one_toss_are_one_with_less_noise() -> None:
    """Who was drawn is in both: two tosses would be cheaper than this."""
    once = [Charge(0, "poisson", 1.0, q=0.1, draw="a"), Charge(0, "poisson", 1.0, q=0.1, draw="a", attempt=1)]
    assert spent_budget.releases(once) == [Release(pytest.approx(2**-0.5), 0.1)]
    twice = [replace(c, draw=name) for c, name in zip(once, "ab", strict=True)]
    assert spent_budget.epsilon(once, 1e-3) > spent_budget.epsilon(twice, 1e-3)


def test_a_ledger_reads_as_it_was_written() -> None:
    ledger = Ledger(HEADER)
    for charge in [*rounds(2, "anna", "bert"), Charge(1, "gaussian", 1.0, asked=("anna",)),
                   Charge(2, "poisson", 0.5, q=0.5, draw="x", deviation=0.1, set="ab", key="cd")]:  # fmt: skip
        ledger = ledger.with_charge(charge)
    assert [c.attempt for c in ledger.charges] == [0, 0, 1, 0]
    assert spent_budget.read(ledger.to_bytes()) == ledger
    assert ledger.to_bytes().count(b"\n") == 5
    assert ledger.rounds() == {0, 1, 2}


def test_noise_for_an_epsilon_spends_it_and_no_more() -> None:
    """Measures of evaluations, with four times the noise, among them."""
    planned = [c for r in range(10) for c in (*rounds(1, "anna"), Charge(r, "gaussian", 4.0, "loss", asked=("anna",)))]
    z = spent_budget.noise_for(planned, 8.0, 1e-3)
    spent = spent_budget.epsilon([replace(c, z=z * c.z) for c in planned], 1e-3)
    assert 7.8 < spent <= 8.0


def test_as_many_rounds_fit_as_the_epsilon_holds() -> None:
    empty, more = Ledger(HEADER), rounds(30, "anna")
    for most in (0.5, 4.0, 9.0):
        fit = spent_budget.fitting(empty, more, most)
        assert empty.epsilon(more[:fit]) <= most < empty.epsilon(more[: fit + 1])
    assert spent_budget.fitting(empty, more, 1e3) == 30


def test_seeded_noise_has_no_epsilon_and_says_why() -> None:
    ledger = Ledger(HEADER).with_charge(rounds(1, "anna")[0])
    assert spent_budget.plain(ledger)["epsilon"] == ledger.epsilon() > 0
    said = spent_budget.plain(replace(ledger, header=replace(HEADER, noise="seeded")))
    assert said == {"epsilon": None, "epsilon_why": "seeded noise", "delta": 1e-3}
