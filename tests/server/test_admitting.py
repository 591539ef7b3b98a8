"""Updates that are admitted beside training: in the order in which they came, to the same bytes, nothing left over."""

import struct
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from deployed import SITES, Deployment

from fedft.carriers.interface import Kind
from fedft.carriers.local import LocalPost, Serve
from fedft.errors import ClientFailed, RejectedUpdate, RunPaused
from fedft.server import admitted, admitting
from fedft.server.admitting import LARGE, MOST, Admitting, Rest
from fedft.server.checkpoint import Store
from fedft.update import Plan
from fedft.wire import messages


def threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("admitting")]


def told(said: list[Any]) -> Callable[[Callable[[], None]], None]:
    def settle(end: Callable[[], None]) -> None:
        try:
            end()
        except RejectedUpdate as e:
            said.append(e.code)

    return settle


def refusing() -> None:
    raise RejectedUpdate("norm", "too large")


@pytest.mark.parametrize("sizes", [[LARGE] * 6, [1] * 6, [LARGE, 1, LARGE, 1, 1, LARGE]])
def test_whatever_their_size_answers_are_told_in_their_order_and_refusals_among_them(sizes: list[int]) -> None:
    said: list[Any] = []
    with Admitting() as a:
        for k, size in enumerate(sizes):
            a.begin(Rest(size, refusing if k == 3 else lambda k=k: k, said.append), told(said))  # type: ignore[misc]
    assert said == [0, 1, 2, "norm", 4, 5]
    assert not threads()


def test_what_is_small_is_done_at_once_by_the_caller_and_what_is_large_by_another_thread() -> None:
    ran: list[str] = []
    with Admitting() as a:
        for size in (LARGE - 1, LARGE):
            a.begin(Rest(size, lambda: ran.append(threading.current_thread().name), lambda found: None), told([]))
    assert ran[0] == threading.current_thread().name
    assert ran[1].startswith("admitting")


def test_so_many_answers_are_at_work_and_no_more() -> None:
    may, begun, said = threading.Event(), [], []

    def work() -> None:
        begun.append(len(said))
        may.wait(5)

    with Admitting() as a:
        for _ in range(MOST):
            a.begin(Rest(LARGE, work, said.append), told(said))
        assert said == []
        assert a.look()
        threading.Timer(0.02, may.set).start()
        a.begin(Rest(LARGE, work, said.append), told(said))  # waits until the first is settled
        assert len(said) >= 1
    assert len(said) == MOST + 1


def test_an_interruption_waits_for_what_is_at_work_and_drops_what_has_not_begun() -> None:
    may, begun, done = threading.Event(), threading.Event(), []

    def work(k: int) -> None:
        begun.set()
        may.wait(5)
        done.append(k)

    said: list[Any] = []
    with pytest.raises(KeyboardInterrupt), Admitting() as a:  # noqa: PT012 -- what is raised inside is the point
        for k in range(2):
            a.begin(Rest(LARGE, lambda k=k: work(k), said.append), told(said))  # type: ignore[misc]
        assert begun.wait(5)
        threading.Timer(0.02, may.set).start()
        raise KeyboardInterrupt
    assert (done, said, threads()) == ([0], [], [])


# In the engine

Twist = Callable[[str, Plan, Serve, bytes], Any]
"""(client, plan of a training, the client, the plan's bytes) -> what it answers instead."""


def simulated(run: Deployment, twist: Twist) -> str:
    """Digest of the final state of the run's clients in one process, whose training answers `twist` gives."""

    def answer(name: str, client: Serve, kind: Kind, payload: bytes) -> Any:
        if kind != "train":
            return client(kind, payload)
        return twist(name, messages.decode_plan(payload, max_bytes=len(payload)), client, payload)

    post = LocalPost({n: partial(answer, n, site._join(run.job).answer) for n, site in run.sites.items()})
    run.federation.post, run.federation.deployed = post, False
    return run.digest()


def lines(run: Deployment) -> list[dict[str, Any]]:
    """Of its metrics, without times."""
    return [{k: v for k, v in line.items() if k not in ("seconds", "reply_s")} for line in run.metrics.lines]


@pytest.mark.parametrize(("large", "held"), [(0, admitted.HELD_BYTES), (2**62, 0), (0, 700)])
@pytest.mark.parametrize("name", ["fedit", "flora", "fedkseed"])
def test_where_updates_are_admitted_and_whether_they_are_held_changes_no_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, large: int, held: int
) -> None:
    plain = Deployment(tmp_path / "a", name)
    wanted = plain.digest()
    monkeypatch.setattr(admitting, "LARGE", large)
    monkeypatch.setattr(admitted, "HELD_BYTES", held)
    run = Deployment(tmp_path / "b", name)
    assert run.digest() == wanted
    assert lines(run) == lines(plain)
    assert Deployment(tmp_path / "c", name).simulated() == wanted
    assert not threads()


def test_one_client_s_update_is_written_while_the_next_one_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writing the first update of a round waits here until the second client has been asked."""
    monkeypatch.setattr(admitting, "LARGE", 0)
    asked, waited, journal = threading.Event(), [], Store.journal

    def twist(name: str, plan: Plan, client: Serve, payload: bytes) -> Any:
        if name == SITES[1]:
            asked.set()
        return client("train", payload)

    def journalled(store: Store, *args: Any) -> None:
        waited.append(asked.wait(5))
        journal(store, *args)

    monkeypatch.setattr(Store, "journal", journalled)
    simulated(Deployment(tmp_path, rounds=1), twist)
    assert waited == [True] * 3


@pytest.mark.parametrize("bad", ["nan", "crash", "interrupt"])
def test_a_run_that_ends_early_leaves_no_thread_and_goes_on_from_what_was_admitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: str
) -> None:
    wanted = Deployment(tmp_path / "a").simulated()
    monkeypatch.setattr(admitting, "LARGE", 0)
    asked: list[tuple[str, int]] = []

    def twist(name: str, plan: Plan, client: Serve, payload: bytes) -> Any:
        asked.append((name, plan.round))
        said = client("train", payload)
        if (name, plan.round) != ("bert", 1) or asked.count(("bert", 1)) > 1:
            return said
        if bad == "interrupt":
            raise KeyboardInterrupt
        if bad == "crash":
            raise RuntimeError("no memory")
        assert isinstance(said, bytes)
        return said[:-4] + struct.pack("<f", float("nan"))

    with pytest.raises((ClientFailed, KeyboardInterrupt)) as e:
        simulated(Deployment(tmp_path / "b"), twist)
    assert e.type is (KeyboardInterrupt if bad == "interrupt" else ClientFailed)
    assert not threads()
    assert simulated(Deployment(tmp_path / "b"), twist) == wanted
    assert asked.count(("anna", 1)) == 1, "what was admitted is not asked for again"


def test_an_update_that_is_read_again_and_was_altered_meanwhile_pauses_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admitted, "HELD_BYTES", 0)
    journal = Store.journal

    def altered(store: Store, round: int, client: str, *args: Any) -> None:
        journal(store, round, client, *args)
        for path in tmp_path.rglob("u-*"):
            path.write_bytes(path.read_bytes()[:-1] + b"!")

    monkeypatch.setattr(Store, "journal", altered)
    with pytest.raises(RunPaused, match="no longer verifies"):
        Deployment(tmp_path).run()
