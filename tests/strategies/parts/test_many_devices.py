"""Eighty made-up devices of three hidden speeds: what each way of choosing ratio and rank does to a round's time."""

import random
from dataclasses import replace
from statistics import fmean
from typing import Any

import pytest

from fedft.contract import Forecast, Member, Roster, Seen, Work
from fedft.strategies.parts.bandit import Box
from fedft.strategies.parts.ratio_and_rank import AFTER, BEFORE, INCREMENT, RATIO, Controller
from fedft.update import CUT

SLOWNESS = [1.0] * 30 + [2.5] * 40 + [6.0] * 10
ROUNDS, TARGET, MOST, STEPS = 40, 0.5, 0.1, 20
RANKS = (4, 8, 16, 32)


def forecast(work: Work) -> Forecast:
    """1 for a whole model at rank 0; half as much again at rank 32."""
    assert work.shape is not None
    return Forecast(0.0, (1 - float(work.extra.get(CUT, 0.0))) * (1 + work.shape.rank / 64), 0, 0)


def gain(work: Work) -> float:
    """The made-up surface: 1 at full rank with nothing pruned in the round, half of it at the largest increment."""
    assert work.shape is not None
    return (1 - 2 ** (-work.shape.rank / 8)) / (1 - 2**-4) * (1 - (float(work.extra[INCREMENT]) / MOST) ** 2 / 2)


def played(controller: Controller, seed: int, rounds: int = ROUNDS) -> tuple[float, float, float, dict[str, Work]]:
    """(seconds of a round, gain, ratio reached, the last plans), means over rounds or devices.

    A round takes its slowest device's time.
    """
    rng = random.Random(seed)
    people: dict[str, tuple[Seen, ...]] = {f"d{k:02}": () for k in range(len(SLOWNESS))}
    pruned, times, gains = dict.fromkeys(people, 0.0), list[float](), list[float]()
    works: dict[str, Work] = {}
    for n in range(1, rounds + 1):
        roster = Roster({c: Member(32, {}, s) for c, s in people.items()}, n, seed, tuple(people), forecast)
        works, slowest = controller.plan(roster, pruned), 0.0
        for slow, (client, work) in zip(SLOWNESS, sorted(works.items()), strict=True):
            assert work.shape is not None
            seconds = slow * forecast(work).flops * (1 + 0.05 * rng.gauss(0, 1))
            after = 1 - gain(work) / 2 + 0.02 * rng.gauss(0, 1)
            seen = Seen(n, work.shape.rank, STEPS, extra=work.extra, seconds=seconds, norm=1.0, admitted=True)
            people[client] += (replace(seen, metrics={BEFORE: 1.0, AFTER: after}),)
            pruned[client] = float(work.extra[RATIO])
            gains.append(gain(work))
            slowest = max(slowest, seconds)
        times.append(slowest)
    return fmean(times), fmean(gains), fmean(pruned.values()), works


def mean(controller: Controller, seeds: int = 2) -> tuple[float, ...]:
    return tuple(fmean(x) for x in zip(*(played(controller, seed)[:3] for seed in range(seeds)), strict=True))


@pytest.mark.slow
def test_the_filter_shortens_rounds_and_the_bandit_alone_does_not(record_property: Any) -> None:
    """The order of the ways that the method rests on; the figures are made up, and beside the test's name."""
    box = Box(MOST, RANKS)
    ways = {
        "fixed: a quarter of the largest increment, rank 8": Controller(
            Box(MOST / 4, (8,)), TARGET, "fixed", slices=True
        ),
        "random": Controller(box, TARGET, "random", slices=True),
        "bandit, g .95 c .5 theta .05": Controller(Box(MOST, RANKS, 0.95, 0.5, 0.05), TARGET, "reference", slices=True),
        "bandit": Controller(box, TARGET, "reference", slices=True),
        "filter and bandit": Controller(box, TARGET, slices=True),
    }
    found = {way: mean(controller) for way, controller in ways.items()}
    table = "; ".join(f"{way}: {t:.2f} s, gain {g:.3f}, ratio {r:.2f}" for way, (t, g, r) in found.items())
    record_property("told", table)
    seconds, gains = ({way: x[n] for way, x in found.items()} for n in (0, 1))
    best = seconds["filter and bandit"]
    assert best < 0.9 * seconds["fixed: a quarter of the largest increment, rank 8"]
    assert best < 0.8 * seconds["random"]
    assert best < 0.8 * seconds["bandit"]
    assert gains["bandit"] > gains["bandit, g .95 c .5 theta .05"]
    assert gains["filter and bandit"] > gains["random"] - 0.05


def test_hidden_speeds_are_found_out_and_everything_is_the_same_again() -> None:
    """Five rounds: the slow devices are asked for low ranks, and a second run plans the same to the bit."""
    controller = Controller(Box(MOST, RANKS), TARGET, slices=True)
    once = played(controller, 3, 5)
    assert once == played(controller, 3, 5)
    ranks = [work.shape.rank for _, work in sorted(once[3].items()) if work.shape is not None]
    assert set(ranks[-10:]) == {4}
    assert fmean(ranks[:30]) > 8
