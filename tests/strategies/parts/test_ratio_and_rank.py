"""Who prunes how much at what rank: the filter by predicted time, what an arm paid, and that history decides alone."""

import json
from dataclasses import replace

import pytest

from fedft.contract import Forecast, Member, Roster, Seen, Work
from fedft.server import planner_view
from fedft.strategies import make
from fedft.strategies.parts.bandit import Arm, Box
from fedft.strategies.parts.ratio_and_rank import (
    AFTER,
    BEFORE,
    INCREMENT,
    RATIO,
    REMEMBERED,
    Controller,
    fast_enough,
    model_of,
    pace_of,
    slowness,
    warming,
)
from fedft.update import CUT, PREDICTED, Shape

RANKS = (4, 8, 16, 32)
BOX = Box(0.1, RANKS)


def forecast(work: Work) -> Forecast:
    """Work grows with the rank and falls with the share that is cut away."""
    shape, cut = work.shape, float(work.extra.get(CUT, 0.0))
    assert shape is not None
    return Forecast(0.0, (1 - cut) * (10.0 + shape.rank), 0, 0)


def seen(round: int, rank: int, seconds: float | None = None, **how: float) -> Seen:
    extra = {INCREMENT: how.get("increment", 0.05), CUT: how.get("cut", 0.0)}
    metrics = {BEFORE: how.get("before", 2.0), AFTER: how.get("after", 1.0)}
    return Seen(
        round, rank, 20, extra=extra, seconds=seconds, norm=how.get("norm", 1.0), admitted=True, metrics=metrics
    )


def roster(members: dict[str, tuple[Seen, ...]], round: int = 3, rank: int = 32) -> Roster:
    return Roster({c: Member(rank, {}, s) for c, s in members.items()}, round, 7, tuple(sorted(members)), forecast)


HISTORY = {
    "a": (seen(1, 8, 18.0), seen(2, 32, 42.0, after=1.5)),
    "b": (seen(1, 8, 36.0), seen(2, 8, 36.0)),
    "c": (seen(1, 4, 14.0), seen(2, 16, None)),
}


def test_slowness_is_seconds_over_the_forecast_of_what_was_asked():
    people = roster({"a": (seen(1, 10, 40.0), seen(2, 10, 80.0, cut=0.5), seen(3, 10, 2000.0)), "b": ()})
    found = slowness(people, model_of(people))
    assert found == {"a": pytest.approx(8.0)}  # the median of 2, 8 and 100


def test_what_is_remembered_is_bounded_and_enough_for_the_pace():
    """Behind 300 rounds the last ones of each client give the same pace, and notes no longer than after 128."""
    old = {c: tuple(seen(n, 8, 1000.0 if n < 100 else 20.0 + n % 7) for n in range(300)) for c in ("a", "b")}
    most = make("fedspine", {}).remembers
    assert most == REMEMBERED
    late = {c: s[-most:] for c, s in old.items()}
    assert pace_of(roster(late, 300)) == pytest.approx(pace_of(roster(old, 300)), rel=1e-9)
    assert {len(of) for of in Controller(BOX, 0.5).pulls(roster(late, 300)).values()} == {REMEMBERED}
    sizes = [len(json.dumps(planner_view.to_json({"a": s}))) for s in (late["a"], old["a"])]
    assert sizes[0] < 0.45 * sizes[1] < 128 * 300


def test_the_pace_is_the_smoothed_median_of_the_rounds():
    assert pace_of(roster(HISTORY)) == pytest.approx(0.7 * 18.0 + 0.3 * 39.0)
    assert pace_of(roster({"a": (seen(1, 8),)})) is None


def test_a_slow_arm_gives_way_to_a_lower_rank_and_then_to_the_largest_increment():
    times, asked = {r: 10.0 + r for r in RANKS}, Arm(0.02, 16)
    assert fast_enough(asked, BOX, times, 100.0) == asked
    assert fast_enough(asked, BOX, times, 18.0) == Arm(0.02, 8)
    assert fast_enough(asked, BOX, times, 1.0) == Arm(0.1, 4)
    assert fast_enough(asked, BOX, {}, 1.0) == asked


def test_who_did_not_answer_is_asked_for_the_lowest_rank():
    """In its last round "c" did not; in a run without a clock nobody's seconds are known, and nobody is late."""
    silent = {**HISTORY, "c": (HISTORY["c"][0], replace(HISTORY["c"][1], admitted=False))}
    untimed = {c: tuple(replace(s, seconds=None) for s in of) for c, of in silent.items()}
    ranks = list[Shape | None]()
    for n in range(3, 30):
        assert Controller(BOX, 0.5).plan(roster(silent, n), {})["c"].shape == Shape(4)
        ranks.append(Controller(BOX, 0.5).plan(roster(untimed, n), {})["c"].shape)
    assert any(shape != ranks[0] for shape in ranks)


@pytest.mark.parametrize("speeds", [{"a": 1.0, "b": 6.0, "c": 2.0}, {"a": 1.0, "b": 1.0, "c": 9.0}], ids=str)
def test_every_plan_keeps_the_pace_where_that_is_possible(speeds):
    """The predicted seconds are those that the client then takes; at most 1.1 of the pace, or the fastest arm."""
    people: dict[str, tuple[Seen, ...]] = dict.fromkeys(speeds, ())
    for n in range(1, 12):
        now = roster(people, n)
        pace, works = pace_of(now), Controller(BOX, 0.5).plan(now, {})
        for c, work in works.items():
            assert work.shape is not None
            takes = speeds[c] * forecast(work).flops
            if pace is not None:
                assert work.extra[PREDICTED] == pytest.approx(takes)
                fastest = speeds[c] * forecast(Work(shape=Shape(4))).flops
                assert takes <= max(1.1 * pace, fastest) + 1e-9
            people[c] += (replace(seen(n, work.shape.rank, takes), extra=work.extra),)


def test_by_hand_what_an_arm_paid():
    """Gains 1/2 and 1/4 of the loss, norms 2 and 1, times 18 and 54 of which the median is 36."""
    cohort = {
        "a": (seen(1, 8, 18.0, before=2.0, after=1.0, norm=2.0, increment=0.1),),
        "b": (seen(1, 8, 54.0, before=4.0, after=3.0, norm=1.0, increment=0.0),),
    }
    filtered = Controller(BOX, 0.5).pulls(roster(cohort))
    assert filtered["a"][0].reward == pytest.approx(min(1.0, 0.5 + 0.2 + 0.1 + 0.2))
    assert filtered["b"][0].reward == pytest.approx(0.25 + 0.0 + 0.05 + 0.2)
    timed = Controller(BOX, 0.5, "reference").pulls(roster(cohort))
    assert timed["b"][0].reward == pytest.approx(0.5 - 0.2 * 0.5)


@pytest.mark.parametrize(
    "lie", [{"before": 1e300, "after": -1e300}, {"before": -1.0}, {"norm": 1e30}, {"after": 1e308}]
)
def test_rewards_stay_between_0_and_1_whatever_is_said(lie):
    people = {**HISTORY, "liar": (seen(1, 8, 1e-9, **lie), seen(2, 8, 1e9, **lie))}
    for rule in ("filtered", "reference"):
        pulls = Controller(BOX, 0.5, rule).pulls(roster(people))
        assert pulls.keys() == people.keys()
        assert all(0 <= p.reward <= 1 for of in pulls.values() for p in of)


def test_rounds_in_which_nothing_could_be_pruned_are_no_pulls():
    assert [warming(n, 8) for n in range(4)] == [20, 12, 4, 0]
    short = tuple(replace(seen(n, 8, 10.0), steps=8) for n in range(4))
    assert len(Controller(BOX, 0.5).pulls(roster({"a": short}))["a"]) == 2
    refused = replace(seen(1, 8, 10.0), admitted=False)
    assert Controller(BOX, 0.5).pulls(roster({"a": (refused,)})) == {}
    stranger = (seen(1, 7, 10.0), seen(2, 8, 10.0, increment=0.3))
    assert Controller(BOX, 0.5).pulls(roster({"a": stranger})) == {}


@pytest.mark.parametrize("rule", ["filtered", "reference", "random", "fixed"])
def test_the_plan_is_a_function_of_the_roster(rule):
    controller = Controller(BOX, 0.5, rule)
    one, two = roster(HISTORY), roster(dict(reversed(HISTORY.items())))
    assert controller.plan(one, {"a": 0.2}) == controller.plan(two, {"a": 0.2}) == controller.plan(one, {"a": 0.2})
    for c, work in controller.plan(one, {"a": 0.2}).items():
        assert work.shape is not None
        assert work.shape.rank in RANKS
        assert 0 <= work.extra[INCREMENT] <= BOX.most
        assert work.extra[RATIO] >= (0.2 if c == "a" else 0)
    other = Roster(one.members, 4, 7, one.asked, forecast)
    assert (controller.plan(other, {}) == controller.plan(one, {})) == (rule == "fixed")


def test_ratios_stop_at_the_target_and_never_fall():
    controller = Controller(BOX, 0.5, "fixed")
    works = controller.plan(roster(HISTORY), {"a": 0.45, "b": 0.6, "c": 0.1})
    assert {c: w.extra[RATIO] for c, w in works.items()} == pytest.approx({"a": 0.5, "b": 0.6, "c": 0.2})


def test_ranks_are_those_that_the_run_file_allows():
    for most, wanted in ((32, {4, 8, 16, 32}), (10, {4, 8}), (2, {2})):
        ranks = set()
        for n in range(40):
            works = Controller(BOX, 0.5, "random").plan(roster({"a": ()}, n, most), {})
            assert works["a"].shape is not None
            ranks.add(works["a"].shape.rank)
        assert ranks == wanted
