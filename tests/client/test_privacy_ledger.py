"""A client's ledger: what was charged stays charged, once, and one that was lost is not begun anew."""

from dataclasses import replace
from pathlib import Path

import pytest

from fedft.client.privacy_ledger import BEGUN, FILE, Charge, Ledger, Terms
from fedft.errors import EXIT_DAMAGED, StateDamaged
from fedft.privacy.accountant import Release

RUN = "a" * 16
TERMS = Terms(RUN, "example-dp", 320, 1.5)
CHARGE = Charge(RUN, 0, "f" * 64, "0123456789abcdef", "example-dp", 1.5, 0.025, 40)


def test_what_is_charged_is_there_at_the_next_start(tmp_path: Path) -> None:
    for ledger in (Ledger(tmp_path), Ledger()):
        assert ledger.read().charges == ()
        ledger.begin(TERMS)
        ledger.charge(CHARGE)
    book = Ledger(tmp_path).read()
    assert (book.runs, book.charges) == ({RUN: TERMS}, (CHARGE,))
    assert book.releases == [Release(1.5, 0.025, 40)]
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o600


def test_the_same_work_is_charged_once_and_other_work_or_another_key_again(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    others = [
        replace(CHARGE, work="e" * 64),
        replace(CHARGE, key="0" * 16),
        replace(CHARGE, run="b" * 16),
    ]
    for charge in (CHARGE, CHARGE, *others, *others):
        ledger.charge(charge)
    assert ledger.read().charges == (CHARGE, *others)


def test_the_terms_of_a_run_stand_to_its_end(tmp_path: Path) -> None:
    assert Ledger(tmp_path).begin(TERMS) == TERMS
    assert Ledger(tmp_path).begin(replace(TERMS, rows=10, z=0.1)) == TERMS
    other = replace(TERMS, run="b" * 16)
    assert Ledger(tmp_path).begin(other) == other


@pytest.mark.parametrize("how", ["gone", "torn", "altered", "empty"])
def test_a_ledger_that_was_lost_is_not_begun_at_zero(tmp_path: Path, how: str) -> None:
    Ledger(tmp_path).begin(TERMS)
    Ledger(tmp_path).charge(CHARGE)
    file = tmp_path / FILE
    data = file.read_bytes()
    if how == "gone":
        file.unlink()
    else:
        file.write_bytes(
            {"torn": data[:-5], "altered": data.replace(b'"steps": 40', b'"steps": 10'), "empty": b""}[how]
        )
    for attempt in (
        Ledger(tmp_path).read,
        lambda: Ledger(tmp_path).begin(TERMS),
        lambda: Ledger(tmp_path).charge(CHARGE),
    ):
        with pytest.raises(
            StateDamaged, match=r"nobody knows what these rows have cost.*restore it from a backup"
        ) as e:
            attempt()
        assert e.value.exit_code == EXIT_DAMAGED
        assert "\n" not in str(e.value)


def test_one_that_was_never_begun_is_no_loss(tmp_path: Path) -> None:
    assert Ledger(tmp_path / "new").read().charges == ()
    assert not (tmp_path / "new").exists()
    Ledger(tmp_path).begin(TERMS)
    (tmp_path / BEGUN).unlink()  # a crash between the two files
    assert Ledger(tmp_path).read().runs == {RUN: TERMS}


def test_noise_on_a_whole_update_counts_for_half() -> None:
    """Any data set may stand in place of any other: 2 C, not C."""
    assert replace(CHARGE, mode="local-dp", q=1.0, steps=1).release == Release(0.75, 1.0, 1)
    assert replace(CHARGE, mode="central-dp", q=1.0, steps=1).release == Release(1.5, 1.0, 1)
