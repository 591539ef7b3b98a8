"""Rounds that do not wait, on virtual devices: what a version is made of, when, and the same after any kill."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from sampled_kills import sample

from fedft import run_file
from fedft.errors import ConfigError
from fedft.simulations import run as runs

SMALL = (
    "local.steps=1", "local.batch_size=2", "data.max_length=32", "data.clients=4", "eval.max_rows=2", "server.rounds=6",
    "clients.rank=4", "server.loggers=[]", "eval.exactness=false",
)  # fmt: skip
UNLIKE = "clients.devices={classes=[{flops=1e9,up=1e6},{flops=1.5e8,up=1e6}],jitter=0.1}"
Run = Callable[..., runs.Run]


@pytest.fixture(scope="module")
def simulated(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs a small simulation on two fast and two slow devices, in a folder of its own unless `out` names one."""

    def run(*more: str, strategy: str = "fedit", **how: Any) -> runs.Run:
        sets = [f"model.id='{tiny_base}'", f"strategy.name={strategy}", *SMALL, UNLIKE, *more]
        how = {"out": tmp_path_factory.mktemp("runs") / "run", **how}
        return runs.simulate(run_file.load(runs.QUICKSTART, sets), **how)

    return run


@pytest.fixture(scope="module")
def buffered(simulated: Run) -> runs.Run:
    """A version is made of two answers of the four who are at work."""
    return simulated("server.buffer=2")


def told(run: runs.Run) -> list[list[Any]]:
    """What must not depend on this machine, nor on whether the run was killed."""
    keys = ("participants", "weights", "staleness", "too_old", "reply_s", "training_bytes", "refused")
    return [[line["state_digest"], line["seconds"].get("virtual"), *(line.get(k) for k in keys)] for line in run.lines]


def test_who_is_late_counts_in_a_later_version_for_less(buffered: runs.Run) -> None:
    lines = buffered.lines[1:]
    assert [len(line["participants"]) for line in lines] == [2] * 6
    late = {c: tau for line in lines for c, tau in line["staleness"].items() if tau}
    assert late
    assert not any(line["refused"] for line in lines)
    for line in lines:
        rows = {c: line["weights"][c] / 256 * (1 + tau) ** 0.5 for c, tau in line["staleness"].items()}
        assert all(abs(n - round(n)) < 0.01 for n in rows.values())
    said = json.loads((buffered.folder / "summary.json").read_text())["staleness"]
    everybody = [tau for line in lines for tau in line["staleness"].values()]
    assert said == {"mean": sum(everybody) / len(everybody), "most": max(everybody), "too_old": 0}


def test_a_buffer_of_all_who_are_at_work_is_a_round_that_waits(simulated: Run) -> None:
    """The same bits and seconds; weights are of 256 times the rows."""
    waits, does_not = simulated("server.rounds=3"), simulated("server.rounds=3", "server.buffer=4")
    for a, b in zip(waits.lines, does_not.lines, strict=True):
        for key in ("state_digest", "training_bytes", "reply_s", "participants", "train_loss", "evaluation"):
            assert a.get(key) == b.get(key)
        assert a["seconds"].get("virtual") == b["seconds"].get("virtual")
        assert {c: 256 * n for c, n in a.get("weights", {}).items()} == b.get("weights", {})
    assert "staleness" not in waits.summary


def test_versions_come_faster_than_rounds_that_wait(simulated: Run, buffered: runs.Run) -> None:
    waits = simulated()
    assert buffered.summary["seconds_virtual"] < 0.6 * waits.summary["seconds_virtual"]


LATE = "server.buffer=2", "clients.per_round=3", "eval.every=2"
DELTA = "codec.down='delta | int8'"
SLOW = [
    pytest.param(strategy, more, [5, 2, 6, 7, 3, 9], marks=pytest.mark.slow)
    for strategy, more in (("flora", ()), ("fedsa_lora", ()), ("ffa_lora", ("codec.up='int4'",)), ("fedit", (DELTA,)))
]


def killed(info: int) -> Callable[[str, Any], None]:
    """An observer that ends the process, as it were, after so many answers, measurements and lines."""
    left = info

    def stop(kind: str, info: Any) -> None:
        nonlocal left
        left -= kind in ("admitted", "measured", "line")
        if not left:
            raise KeyboardInterrupt

    return stop


@pytest.mark.parametrize(("strategy", "more", "kills"), [("fedit", (), [3, 4, 9, 2]), *SLOW])
def test_a_run_that_is_killed_again_and_again_has_the_same_versions_and_seconds(
    simulated: Run, tmp_path: Path, strategy: str, more: Sequence[str], kills: Sequence[int]
) -> None:
    sets = *LATE, *more
    first = simulated(*sets, strategy=strategy)
    assert any(tau for line in first.lines[1:] for tau in line["staleness"].values())
    for n, after in enumerate(kills):
        with pytest.raises(KeyboardInterrupt):
            simulated(*sets, strategy=strategy, out=tmp_path / "killed", resume=n > 0, observe=killed(after))
    resumed = simulated(*sets, strategy=strategy, out=tmp_path / "killed", resume=True)
    assert told(resumed) == told(first)


@pytest.mark.slow
def test_wherever_a_run_is_killed_it_has_the_same_versions_and_seconds(simulated: Run, tmp_path: Path) -> None:
    """After each answer, measurement and line."""
    first, (events, step) = simulated(*LATE, "server.rounds=4"), sample(1, 3)
    while True:
        out = tmp_path / str(events)
        try:
            simulated(*LATE, "server.rounds=4", out=out, observe=killed(events))
            break
        except KeyboardInterrupt:
            assert told(simulated(*LATE, "server.rounds=4", out=out, resume=True)) == told(first)
        events += step
    assert events > 20


def test_a_longer_run_goes_on_with_those_who_were_at_work(simulated: Run, buffered: runs.Run, tmp_path: Path) -> None:
    simulated("server.buffer=2", "server.rounds=3", out=tmp_path / "run")
    longer = simulated("server.buffer=2", out=tmp_path / "run", resume=True)
    assert told(longer) == told(buffered)


def test_what_is_too_late_is_dropped_counted_and_asked_anew(simulated: Run, caplog: Any) -> None:
    run = simulated("server.buffer=1", "server.max_staleness=2", "server.rounds=8")
    dropped = [(line["round"], c) for line in run.lines[1:] for c in line["too_old"]]
    assert dropped
    assert run.summary["staleness"]["too_old"] == len(dropped)
    assert max(tau for line in run.lines[1:] for tau in line["staleness"].values()) <= 2
    refused = [
        (line["round"], r["client"]) for line in run.lines[1:] for r in line["refused"] if r["code"] == "too_old"
    ]
    assert refused == dropped
    assert "too_old: 3 versions late, [server] max_staleness is 2" in caplog.text
    number, client = dropped[0]
    assert run.lines[1 + number]["bytes"][client]["down"] > 0


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        (["strategy.name=flexlora"], "clients of flexlora send values, which replace what later versions have brought"),
        (["strategy.name=scaffold"], "an update of scaffold belongs to the round that it was asked in"),
        (["strategy.name=rolora"], "an update of rolora belongs to the round that it was asked in"),
        (["strategy.name=fedkseed"], "what clients of fedkseed send has a meaning at one state only"),
        (["strategy.name=fedopt"], "the server of fedopt does more than add a mean of changes"),
        (["clients.per_round=1"], r"buffer = 2 is above \[clients\] per_round = 1"),
        (["server.buffer=0"], "buffer = 0: wanted 1 or more"),
        (["server.max_staleness=-1"], "max_staleness is -1, wanted 0 or more"),
    ],
)
def test_who_cannot_be_late_is_refused_in_one_line(simulated: Run, tmp_path: Path, sets: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as e:
        simulated("server.buffer=2", *sets, out=tmp_path / "run")
    assert "\n" not in str(e.value)
    assert not (tmp_path / "run").exists()


def test_a_simulation_without_devices_has_nobody_who_is_first(tiny_base: Path, tmp_path: Path) -> None:
    config = run_file.load(
        runs.QUICKSTART, [f"model.id='{tiny_base}'", *SMALL, "server.buffer=2", "strategy.name=fedit"]
    )
    with pytest.raises(ConfigError, match=r"without \[clients.devices\] no client of a simulation is the first"):
        runs.simulate(config, out=tmp_path / "run")


def test_over_selection_takes_the_first_answers_and_says_who_was_dropped(simulated: Run) -> None:
    """Four are asked where two are wanted: with no grace a round ends with the second answer."""
    run = simulated("server.quorum=0.5", "server.grace_s=0", "server.rounds=3")
    for line in run.lines[1:]:
        assert len(line["participants"]) == 2
        assert {r["code"] for r in line["refused"]} == {"deadline"}
        assert {r["client"] for r in line["refused"]} == line["bytes"].keys() - {*line["participants"]}
    assert run.summary["refused"] == 6
