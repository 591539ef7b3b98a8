"""Runs by the clock of virtual devices: the same seconds on every machine; rounds end as a deployment's."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from fedft import run_file
from fedft.contract import Work
from fedft.errors import RunPaused
from fedft.forecast.anatomy import anatomy_of
from fedft.forecast.work import forecaster
from fedft.server.checkpoint import Store
from fedft.simulations import devices, workplace
from fedft.simulations import run as runs

SMALL = (
    "local.steps=1", "local.batch_size=2", "data.max_length=32", "data.clients=4", "eval.max_rows=2", "server.rounds=3",
    "clients.rank=4", "server.loggers=[]", "eval.exactness=false",
)  # fmt: skip
TWO = "{flops=1e9,up=1e5,down=1e6},{flops=5e8,up=1e5,down=1e6}"
JITTER = f"clients.devices={{classes=[{TWO}],jitter=0.1}}"
STEADY = f"clients.devices={{classes=[{TWO}]}}"
PLANNED = ["strategy.padding=zero", "clients.plan='by_slowness:by_slowness'"]
Run = Callable[..., runs.Run]


@pytest.fixture(scope="module")
def simulated(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs a small simulation with these overrides, in a folder of its own unless `out` names one."""

    def run(*more: str, strategy: str = "fedit", **how: Any) -> runs.Run:
        sets = [f"model.id='{tiny_base}'", f"strategy.name={strategy}", *SMALL, *more]
        how = {"out": tmp_path_factory.mktemp("runs") / "run", **how}
        return runs.simulate(run_file.load(runs.QUICKSTART, sets), **how)

    return run


@pytest.fixture(scope="module")
def whole(simulated: Run) -> runs.Run:
    """A round ends with its last answer."""
    return simulated(JITTER)


@pytest.fixture(scope="module")
def fast(simulated: Run) -> runs.Run:
    """A round ends with its second answer of four."""
    return simulated(JITTER, "server.quorum=0.5", "server.grace_s=0")


def seconds(run: runs.Run) -> list[float]:
    return [line["seconds"]["virtual"] for line in run.lines[1:]]


def told(run: runs.Run) -> tuple[list[float], list[str], list[Any]]:
    """What must not depend on this machine: seconds, digests, who took part, what each took and was asked."""
    digests = [line["state_digest"] for line in run.lines]
    return seconds(run), digests, [[line.get(k) for k in ("participants", "reply_s", "plans")] for line in run.lines]


def test_devices_change_when_answers_come_and_not_what_they_are(simulated: Run, whole: runs.Run) -> None:
    plain = simulated()
    assert whole.summary["state_digest"] == plain.summary["state_digest"]
    assert "seconds_virtual" not in plain.summary
    assert not any("virtual" in line["seconds"] for line in plain.lines)
    saved = json.loads((whole.folder / "summary.json").read_text())
    assert saved["seconds_virtual"] == pytest.approx(sum(seconds(whole)))


def test_a_round_takes_as_long_as_its_slowest_device(simulated: Run) -> None:
    run = simulated(STEADY, "eval.every=3")
    config = run_file.load(run.folder / "config.toml")
    dealt = devices.dealt(config, run.lines[1]["participants"])
    spent = run.lines[1]["training_bytes"]
    slowest = min(d.flops for d in dealt.values())
    links = spent["up"] / 4 / 1e5 + spent["down"] / 4 / 1e6
    work = run.lines[1]["seconds"]["virtual"] - links
    place = workplace.workplace(config, data=False)
    forecast = forecaster(anatomy_of(place.base), place.layout, config, place.recipe)
    assert work * slowest == pytest.approx(forecast(Work(steps=1)).flops, rel=0.01)


SLOW = [
    pytest.param(s, [5, 2, 6, 7, 3, 9], marks=pytest.mark.slow) for s in ("fedit", "flora", "hetlora", "fedsa_lora")
]


@pytest.mark.parametrize(("strategy", "kills"), [("fedit", [7, 8, 4]), *SLOW])
def test_two_runs_and_one_that_is_killed_again_and_again_have_the_same_seconds(
    simulated: Run, tmp_path: Path, allow: Any, strategy: str, kills: Sequence[int]
) -> None:
    """Killed after so many answers, measurements and lines each time: the round at work is carried out anew."""
    own = {"hetlora": ["clients.rank=[2, 4]"], "fedit": PLANNED}.get(strategy, [])
    allow("by_slowness:by_slowness")
    sets = JITTER, "server.quorum=0.5", "server.grace_s=0.04", *own
    first = simulated(*sets, strategy=strategy)
    assert any(line["refused"] for line in first.lines[1:])  # somebody was too late
    assert told(simulated(*sets, strategy=strategy)) == told(first)
    left = 0

    def stop(kind: str, info: Any) -> None:
        nonlocal left
        left -= kind in ("admitted", "measured", "line")
        if not left:
            raise KeyboardInterrupt

    for n, left in enumerate(kills):  # noqa: B007
        with pytest.raises(KeyboardInterrupt):
            simulated(*sets, strategy=strategy, out=tmp_path / "killed", resume=n > 0, observe=stop)
    resumed = simulated(*sets, strategy=strategy, out=tmp_path / "killed", resume=True)
    assert told(resumed) == told(first)


def test_clients_may_share_passes(simulated: Run, whole: runs.Run) -> None:
    """The same seconds but for the digits of a loss that has other last bits."""
    assert seconds(simulated(JITTER, "server.together=2")) == pytest.approx(seconds(whole), rel=1e-3)


@pytest.mark.slow
def test_workers_have_the_same_seconds(simulated: Run, whole: runs.Run) -> None:
    assert told(simulated(JITTER, "server.workers=2")) == told(whole)


def test_quorum_and_grace_end_a_round_in_virtual_seconds(simulated: Run, fast: runs.Run) -> None:
    assert [len(line["participants"]) for line in fast.lines[1:]] == [2, 2, 2]
    assert {r["code"] for line in fast.lines[1:] for r in line["refused"]} == {"deadline"}
    patient = simulated(JITTER, "server.quorum=0.5", "server.grace_s=1e6")
    assert [len(line["participants"]) for line in patient.lines[1:]] == [4, 4, 4]
    assert all(a < b for a, b in zip(seconds(fast), seconds(patient), strict=True))


def test_a_deadline_ends_a_round_at_its_very_second(simulated: Run, whole: runs.Run, fast: runs.Run) -> None:
    """Between the fast devices' answers and the slow ones'. Those that were too slow measure all the same."""
    deadline = (max(seconds(fast)) + min(seconds(whole))) / 2
    run = simulated(JITTER, "server.quorum=0.5", "server.grace_s=1e6", f"server.deadline_s={deadline}")
    assert seconds(run) == [pytest.approx(deadline, abs=1e-9)] * 3
    assert [len(line["participants"]) for line in run.lines[1:]] == [2, 2, 2]
    assert all(len(line["evaluation"]) == 4 for line in run.lines)


def test_a_client_that_vanishes_never_answers_and_the_others_are_not_kept(simulated: Run) -> None:
    drop = f"clients.devices={{classes=[{TWO}],dropout=0.3}}"
    run = simulated(drop, "server.quorum=0.25", "server.rounds=4", "server.seed=2")
    config = run_file.load(run.folder / "config.toml")
    table = config.clients.devices
    assert table is not None
    for line in run.lines[1:]:
        gone = {c for c in line["evaluation"] if devices.vanishes(table, 2, c, line["round"])}
        assert {r["client"] for r in line["refused"]} == gone == line["evaluation"].keys() - {*line["participants"]}
    assert any(line["refused"] for line in run.lines)
    assert max(seconds(run)) < 1  # nobody waited for an hour


def test_a_round_that_nobody_can_save_pauses_and_says_what_to_change(simulated: Run, tmp_path: Path) -> None:
    drop = f"clients.devices={{classes=[{TWO}],dropout=1.0}}"
    with pytest.raises(RunPaused, match=r"0 of 4 updates admitted in 3 attempts.*the same again would come of it"):
        simulated(drop, out=tmp_path / "run")


def test_a_device_that_is_off_is_waited_for_where_it_is_needed(simulated: Run) -> None:
    on = simulated(STEADY, "server.rounds=1")
    asleep = simulated(f"clients.devices={{classes=[{TWO}],availability=[[[50.0,60.0]]]}}", "server.rounds=1")
    assert seconds(asleep)[0] == pytest.approx(50 + seconds(on)[0])
    assert asleep.summary["state_digest"] == on.summary["state_digest"]


def test_what_is_late_in_one_attempt_is_there_in_the_next(simulated: Run, whole: runs.Run) -> None:
    """A device goes on with its work, as a site does: it is not begun anew."""
    run = simulated(JITTER, "server.quorum=1.0", f"server.deadline_s={0.6 * max(seconds(whole))}")
    assert [len(line["participants"]) for line in run.lines[1:]] == [4, 4, 4]
    assert seconds(run) == pytest.approx(seconds(whole), rel=1e-3)  # an attempt has a number


def test_a_budget_of_seconds_is_of_virtual_ones(simulated: Run) -> None:
    of_round = seconds(simulated(STEADY, "server.rounds=1"))[0]
    run = simulated(STEADY, "server.rounds=50", f"server.budget='seconds={2.5 * of_round}'")
    assert run.summary["rounds"] == 2
    assert run.summary["ended"] == "budget"


def test_an_evaluation_takes_no_time_and_what_it_brought_is_paid_for(simulated: Run, whole: runs.Run) -> None:
    """Measured after every round or at the end only: within the length of a few headers the same seconds."""
    assert seconds(whole) == pytest.approx(seconds(simulated(JITTER, "eval.every=3")), rel=1e-3)


@pytest.mark.parametrize("hidden", [False, True])
def test_clients_say_what_they_train_on_unless_it_is_hidden(simulated: Run, hidden: bool) -> None:
    table = f"clients.devices={{classes=[{{flops=1e9,memory='2GiB'}}],hidden={str(hidden).lower()}}}"
    run = simulated(table, "server.rounds=1")
    found = Store(run.folder / "state").latest(recover=False)
    assert found is not None
    shown = {"flops": 1e9, "memory": 2.0**31}
    for profile in found[1]["profiles"].values():
        assert profile.keys() - shown.keys() == {"held_out", "rows"}
        assert {k: profile[k] for k in shown if k in profile} == ({} if hidden else shown)


def test_a_longer_run_goes_on_at_its_second(simulated: Run, tmp_path: Path) -> None:
    simulated(JITTER, "server.rounds=2", out=tmp_path / "run")
    longer = simulated(JITTER, "server.rounds=4", out=tmp_path / "run", resume=True)
    assert told(longer) == told(simulated(JITTER, "server.rounds=4"))
