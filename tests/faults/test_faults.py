"""Everything fails, and the run is right: the engine and its sites on a simulated network and disk, from one seed.

FEDFT_FAULT_SEED=123 pytest tests/faults -k replay                one run again; FEDFT_FAULT_STREAM=1 over our carrier,
                                                                  FEDFT_FAULT_BUFFERED=1 with rounds that do not wait
FEDFT_FAULT_ROUNDS=100000 pytest tests/faults -k many -n 2        more of them, in two processes

Before a release, and after a change of the engine, of what a site keeps or of what is written: 20,000 rounds at least.
"""

import os
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from faults import Odds
from faulty import FastKey
from scenario import NAMES, Scenario, Tally, many, simulate
from wires import StreamOdds

from fedft.arithmetic.tensors import Tensors
from fedft.carriers.stream import frames
from fedft.carriers.stream.frames import Kind
from fedft.carriers.stream.session import Session
from fedft.client.disk import Asked
from fedft.client.received_state import Memory
from fedft.client.requests import Responder
from fedft.client.train import Client
from fedft.reports.metric_log import MetricsFile
from fedft.security.sealed import Opened
from fedft.server import admission
from fedft.server.asking import Asking
from fedft.server.open_letter import OpenLetter
from fedft.update import Plan

Tell = Callable[[str, object], None]


def test_whatever_fails_200_rounds_come_out_right(tmp_path: Path, record_property: Tell) -> None:
    """The slow test below takes 400 of other seeds, or as many as FEDFT_FAULT_ROUNDS says."""
    started = time.perf_counter()
    record_property("told", many(200, tmp_path, 10**6).told(time.perf_counter() - started))


def test_whatever_fails_60_rounds_that_do_not_wait_come_out_right(tmp_path: Path, record_property: Tell) -> None:
    """Every state is what updates make of it that began from the versions that its line says."""
    started, tally = time.perf_counter(), many(60, tmp_path, 7 * 10**6, buffered=True)
    assert tally.counts["updates that were late"] > 5
    record_property("told", tally.told(time.perf_counter() - started))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_whatever_fails_many_rounds_that_do_not_wait_come_out_right(tmp_path: Path, record_property: Tell) -> None:
    started = time.perf_counter()
    tally = many(int(os.environ.get("FEDFT_FAULT_ROUNDS", "400")), tmp_path, 8 * 10**6, buffered=True)
    record_property("told", tally.told(time.perf_counter() - started))


def test_whatever_fails_of_our_carrier_100_rounds_come_out_right(tmp_path: Path, record_property: Tell) -> None:
    """Wires are cut in the middle of a plan or an answer, seen by one end, slow; sites come twice, the server anew."""
    started, tally = time.perf_counter(), many(100, tmp_path, 5 * 10**6, stream=True)
    assert all(tally.counts[f"stream: {f.name}"] for f in fields(StreamOdds)), tally.counts
    assert tally.counts["stream: cut"] > 50
    assert tally.counts["stream: resumed"] > 20
    record_property("told", tally.told(time.perf_counter() - started))


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("first", [3 * 10**6, 4 * 10**6])
def test_whatever_fails_of_our_carrier_many_rounds_come_out_right(
    tmp_path: Path, record_property: Tell, first: int
) -> None:
    rounds, started = int(os.environ.get("FEDFT_FAULT_ROUNDS", "400")), time.perf_counter()
    record_property("told", many(rounds // 2, tmp_path, first, stream=True).told(time.perf_counter() - started))


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("first", [0, 500_000])
def test_whatever_fails_many_rounds_come_out_right(tmp_path: Path, record_property: Tell, first: int) -> None:
    """Half of the rounds each, from two ranges of seeds."""
    rounds, started = int(os.environ.get("FEDFT_FAULT_ROUNDS", "400")), time.perf_counter()
    record_property("told", many(rounds // 2, tmp_path, first).told(time.perf_counter() - started))


def test_replay_of_one_seed(tmp_path: Path, record_property: Tell) -> None:
    if "FEDFT_FAULT_SEED" not in os.environ:
        pytest.skip("FEDFT_FAULT_SEED names no run")
    ways = {"stream": "FEDFT_FAULT_STREAM" in os.environ, "buffered": "FEDFT_FAULT_BUFFERED" in os.environ}
    started = time.perf_counter()
    done = simulate(int(os.environ["FEDFT_FAULT_SEED"]), tmp_path, **ways)
    tally = Tally(1, done.witness.commits, done.world.counts)
    record_property("told", tally.told(time.perf_counter() - started))


def test_one_seed_is_one_run(tmp_path: Path) -> None:
    first, again = (simulate(5, tmp_path / x) for x in "ab")
    assert first.world.counts == again.world.counts
    assert first.world.now == again.world.now
    lines = [(tmp_path / x / "metrics.jsonl").read_text() for x in "ab"]
    assert lines[0] == lines[1]


def stuck(memory: Memory, version: int, label: str, held: Tensors) -> None:
    """What a client holds that takes no new state."""
    HOLD(memory, version, label, memory.held.tensors if memory.held else held)


def forgetful(responder: Responder, client: Client, plan: Plan, opened: Opened) -> bytes:
    """A site that never looks at what it answered before."""
    turn = client.install(plan)
    payload = client.encode(client.train(turn), turn)
    responder.disk.keep_answer(Asked(plan.run, plan.round, plan.attempt, opened.about.plan.hex()), payload)
    return payload


HOLD = Memory.hold
BROKEN: dict[str, tuple[Any, str, Any]] = {
    "admitted a second time": (Asking, "recover", lambda *args: None),
    "wanted ": (admission, "capped", lambda examples, share: dict.fromkeys(examples, 1)),
    "is not what the updates": (Memory, "hold", stuck),
    "signed two answers": (Responder, "_train", forgetful),
    "was never signed by it": (FastKey, "verify", lambda key, signature, data: None),
    r"^\[0, ": (MetricsFile, "has", lambda file, version: False),
    "nothing fails any more": (OpenLetter, "lose", lambda letter, now, why: None),
}


RARE = {"was never signed by it": 16, "nothing fails any more": 32}
"""What few seeds find out, with the first one from 0 on that does; from another one it takes longer."""


@pytest.mark.parametrize("said", BROKEN)
def test_an_engine_that_is_broken_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    monkeypatch.setattr(*BROKEN[said])
    with pytest.raises(AssertionError, match=said):
        many(1000, tmp_path, RARE.get(said, 0))


def from_the_beginning(session: Session, number: int) -> None:
    """A receiver that says GRANT as if nothing had come."""
    PLACE(session, number)
    if session.connection:
        session.connection.say(Kind.GRANT, number, frames.OFFSET.pack(0))


PLACE = Session._place


def test_a_carrier_that_is_broken_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Session, "_place", from_the_beginning)
    with pytest.raises(AssertionError, match="an honest peer is taken for another"):
        many(20, tmp_path, 0, stream=True)


def test_whatever_fails_of_a_state_that_only_grows_80_rounds_come_out_right(
    tmp_path: Path, record_property: Tell
) -> None:
    """Its rounds are in one file that is added to, and torn at its end after many of the crashes."""
    started, odds = time.perf_counter(), Odds(kill_server=0.02, kill_server_disk=0.03, torn=0.8, drop=0.05)
    tally = many(80, tmp_path, 10**6, strategy="mezo", odds=odds)
    assert tally.counts["torn history"] > 5, tally.counts
    record_property("told", tally.told(time.perf_counter() - started))


def killed_at(call: int, folder: Path, strategy: str) -> Scenario:
    return simulate(call, folder, odds=Odds(), strategy=strategy, names=NAMES[:2], rounds=2, kill_at=call)


@pytest.mark.parametrize("strategy", ["flora", "mezo"])
@pytest.mark.parametrize("part", range(8))
def test_a_crash_at_any_call_of_the_disk_costs_nothing(tmp_path: Path, part: int, strategy: str) -> None:
    """Server and sites alike; before and after each write, and in its middle."""
    call = part + 1
    while (done := killed_at(call, tmp_path / str(call), strategy)).world.disk_calls >= call:
        assert done.world.counts["crashes of the server"] + done.world.counts["crashes of sites"] == 1
        call += 8
    assert call > 40, "the disk was called too rarely for this to be a test"
