"""What a run's privacy will cost: the sheet's figures, what each mode releases, and when there is no epsilon."""

from collections.abc import Sequence
from typing import Any

import pytest

from fedft.errors import ConfigError
from fedft.privacy import schedule
from fedft.privacy.accountant import Release, renyi_bound
from fedft.privacy.schedule import Schedule, most_turns
from fedft.privacy.tables import Privacy
from fedft.server.cohort import cohort

pytest.importorskip("dp_accounting", reason="pip install 'fedft[dp]'")


def central(clients: int, asked: int, rounds: int, kind: Any, z: float = 1.0, **more: Any) -> Schedule:
    said = Privacy("central-dp", clip=1.0, noise_multiplier=z, delta=1e-3, cohort=kind, **more)
    names = [f"site-{n}" for n in range(clients)]

    def drawn(round: int) -> list[str]:
        return cohort(names, asked, 7, round)

    return Schedule(said, rounds, clients, asked, most_turns(kind, clients, asked, drawn))


@pytest.mark.parametrize(
    ("kind", "first", "second"),
    [("cyclic", 14.08, 5.59), ("poisson", 4.78, 2.69)],
)
def test_cohorts_are_worth_what_the_sheet_says(kind: str, first: float, second: float) -> None:
    """1.3: 20 of 200 in 100 rounds at z 1, and 5 of 20 in 40 rounds at z 2."""
    assert central(200, 20, 100, kind).epsilon(100, 1.0) == pytest.approx(first, abs=0.01)
    assert central(20, 5, 40, kind).epsilon(40, 2.0) == pytest.approx(second, abs=0.01)
    assert central(200, 200, 100, "asked").epsilon(100, 1.0) == pytest.approx(80.03, abs=0.01)
    assert central(20, 20, 40, "cyclic").epsilon(40, 2.0) == pytest.approx(14.08, abs=0.01)


def test_who_is_drawn_from_the_seed_pays_for_the_rounds_in_which_it_was_asked() -> None:
    of = central(20, 5, 40, "asked")
    times = [
        sum(f"site-{k}" in cohort([f"site-{n}" for n in range(20)], 5, 7, r) for r in range(40)) for k in range(20)
    ]
    assert of.turns(40) == max(times) > 10
    assert of.releases(1.0, 40)[0] == Release(1.0, 1.0, max(times))
    assert of.turns(3) <= 3
    assert central(20, 5, 40, "cyclic").turns(40) == 10
    assert central(20, 6, 5, "cyclic").turns(5) == 2
    assert of.epsilon(40, 1.0) > central(20, 5, 40, "cyclic").epsilon(40, 1.0)


def test_noise_at_the_client_counts_half_since_one_data_set_may_be_any_other() -> None:
    said = Privacy("local-dp", clip=1.0, noise_multiplier=8.0, delta=1e-3)
    of = Schedule(said, 10, 4, 4, most_turns("asked", 4, 4, list))
    assert of.releases(8.0, 10) == [Release(4.0, 1.0, 10)]


def records(rows: Sequence[int], **said: Any) -> Schedule:
    privacy = Privacy("example-dp", clip=1.0, delta=1e-5, **said)
    named = {f"c{n}": k for n, k in enumerate(rows)}
    return Schedule(privacy, 5, len(rows), len(rows), most_turns("asked", 2, 2, list), 40, 8, named)


def test_small_clients_pay_more_and_need_more_noise() -> None:
    """3.4: batches of 8, 200 steps, z 1; its figures are by Renyi divergences, far above the truth for small q."""
    of = records([40, 500, 4000], noise_multiplier=1.0)
    for rows, sheet in ((40, 23.4), (500, 1.88), (4000, 0.75)):
        assert renyi_bound(of.releases(1.0, 5, rows), 1e-5) == pytest.approx(sheet, rel=0.02)
        assert of.epsilon(5, 1.0, rows) < 0.95 * sheet
    assert of.epsilon(5, 1.0, 40) == pytest.approx(21.5, abs=0.2)
    calibrated = records([40, 500], epsilon=8.0)
    for rows, sheet in ((40, 2.01), (500, 0.59)):
        assert 0.9 * sheet < calibrated.noise(rows) <= sheet, rows


def test_one_record_more_changes_no_probability() -> None:
    of = records([40], noise_multiplier=1.0)
    assert of.probability(4107) == of.probability(4106) == 8 / 4100
    assert of.probability(5) == 1.0
    assert [schedule.two_digits(n) for n in (0, 7, 47, 326, 4197, 99999)] == [1, 7, 47, 320, 4100, 99000]


def test_only_who_pays_most_and_who_pays_least_are_said() -> None:
    assert records([90, 10, 10, 20, 30, 80], noise_multiplier=1.0).smallest == [10, 20, 30, 90]
    assert records([20, 10], noise_multiplier=1.0).smallest == [10, 20]


def test_seeded_noise_has_no_epsilon() -> None:
    assert central(4, 2, 5, "asked", noise="seeded").none == "seeded noise"
    assert not central(4, 2, 5, "asked").none


def test_noisy_measures_are_charged_too() -> None:
    plain, measured = central(20, 20, 10, "asked"), central(20, 20, 10, "asked")
    object.__setattr__(measured, "measures", 22)
    assert sum(r.count for r in measured.releases(1.0, 10)) == 32
    assert plain.epsilon(10, 1.0) < measured.epsilon(10, 1.0) < 1.2 * plain.epsilon(10, 1.0)


@pytest.mark.parametrize(
    ("mode", "rows", "most"),
    [("central-dp", {}, 1 / 20), ("local-dp", {}, 1 / 20), ("zo-dp", {"a": 40, "b": 400}, 1 / 400)],
)
def test_a_delta_that_gives_one_unit_away_is_refused(mode: Any, rows: dict[str, int], most: float) -> None:
    schedule.check_delta(Privacy(mode, delta=most), 20, rows)
    with pytest.raises(ConfigError, match=r"\[privacy\] delta = .* is above 1 / .*; wanted about 1 / \(10 N\)"):
        schedule.check_delta(Privacy(mode, delta=1.01 * most), 20, rows)
    schedule.check_delta(Privacy(), 20, rows)


def test_noise_is_compared_with_the_largest_signal() -> None:
    """z sqrt(d) / m: section 10; in a step, records of the batch stand for clients."""
    of = central(20, 5, 40, "asked", z=2.0)
    assert schedule.noise_to_signal(of, 2.0, 10_000) == pytest.approx(2 * 100 / 5)
    assert schedule.noise_to_signal(records([40], noise_multiplier=2.0), 2.0, 10_000) == pytest.approx(2 * 100 / 8)
    assert [schedule.verdict(x) for x in (0.9, 1.0, 10.0, 11.0)] == [
        "good", "learns slowly", "learns slowly", "too much to learn",
    ]  # fmt: skip
