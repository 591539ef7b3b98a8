"""PRIVACY.md's figures of what a run costs are those of the accountant."""

import re
from pathlib import Path
from typing import Any

import pytest

from fedft.privacy.schedule import Schedule, most_turns
from fedft.privacy.tables import Privacy
from fedft.server.cohort import cohort

pytest.importorskip("dp_accounting", reason="pip install 'fedft[dp]'")

TEXT = " ".join((Path(__file__).parents[2] / "PRIVACY.md").read_text(encoding="utf-8").split())
NAMES = [f"site-{n}" for n in range(200)]


def numbers(pattern: str) -> list[float]:
    """The numbers in a sentence of the document, which is there once."""
    (found,) = re.findall(pattern, TEXT)
    return [float(x) for x in found]


def of_records(rows: int, **said: float) -> Schedule:
    """200 steps of 8 records, in one round, at one site."""
    privacy = Privacy("example-dp", clip=1.0, delta=1e-5, **said)
    return Schedule(privacy, 1, 1, 1, most_turns("asked", 1, 1, list), 200, 8, {"site": rows})


def test_what_records_of_small_sites_pay() -> None:
    pays = r"epsilon ([\d.]+) for the records of a site that has 40, ([\d.]+) at 500, ([\d.]+) at 4,000"
    again = r"among 40 has epsilon ([\d.]+), among 500 ([\d.]+), among 4,000 ([\d.]+)\. "
    exact = [of_records(rows, noise_multiplier=1.0).epsilon(1, 1.0, rows) for rows in (40, 500, 4000)]
    assert numbers(pays) == pytest.approx(exact, abs=0.05)
    assert numbers(again) == pytest.approx(exact, abs=0.05)
    (needed,) = re.findall(r"The small one needs z ([\d.]+) for epsilon 8", TEXT)
    assert float(needed) == pytest.approx(of_records(40, epsilon=8.0).noise(40), abs=0.05)


def test_what_a_site_pays_by_who_is_asked() -> None:
    def cost(kind: Any, asked: int) -> float:
        turns = most_turns(kind, 200, asked, lambda r: cohort(NAMES, asked, 7, r))
        said = Privacy("central-dp", clip=1.0, noise_multiplier=1.0, delta=1e-3, cohort=kind)
        return Schedule(said, 100, 200, asked, turns).epsilon(100, 1.0)

    sentence = (
        r"is ([\d.]+) if every site is in every round, about ([\d.]+) with the usual draw, which everybody can repeat "
        r'\(`"asked"`: the site that was asked most\), ([\d.]+) in turns \(`"cyclic"`\), and ([\d.]+) by secret coins'
    )
    everybody, drawn, turns, coins = numbers(sentence)
    assert everybody == pytest.approx(cost("asked", 200), abs=0.5)
    assert turns == pytest.approx(cost("cyclic", 20), abs=0.5)
    assert coins == pytest.approx(cost("poisson", 20), abs=0.05)
    assert drawn == pytest.approx(cost("asked", 20), rel=0.1)  # by which seed is not said
