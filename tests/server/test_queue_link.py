"""One link for several runs: two toy deployments side by side on it end as each of them alone."""

import itertools
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from deployed import SERVER_KEY, SITES, Deployment, Direct, SiteOfRuns

from fedft.carriers.interface import Refused
from fedft.errors import RejectedUpdate, RunPaused
from fedft.security import sealed
from fedft.security.sealed import Kind
from fedft.server import sealed_post
from fedft.server.queue_link import SharedLink
from fedft.server.queue_runs import Turns

METHODS = {"a" * 16: "scaffold", "b" * 16: "flora"}


def side_by_side(folder: Path, link: Any, clock: Any, **more: Any) -> dict[str, Deployment]:
    """A deployment for each of METHODS, by its run, on parts of one link."""
    shared, found = SharedLink(link), {}
    for run, name in METHODS.items():
        d = Deployment(
            folder / run, name, sites=link.sites, link=shared.part(10**6),  # type: ignore[arg-type]
            federation={"clock": clock}, post={"clock": clock}, **more,
        )  # fmt: skip
        d.job = d.federation.job = replace(d.job, run=run, tables={**d.job.tables, "strategy": _said(d)})
        d.post.run = run
        found[run] = d
    return found


def _said(d: Deployment) -> Mapping[str, Any]:
    return d.config.to_dict()["strategy"]


def sites_in(folder: Path) -> dict[str, Any]:
    """The sites of both runs."""
    configured = Deployment(folder / "config").config
    return {s: SiteOfRuns(s, i, folder / "sites" / s, configured, METHODS) for i, s in enumerate(SITES)}


def carried_out(runs: Mapping[str, Deployment], turns: Turns) -> dict[str, str]:
    """Digests by run, each run in a thread of its own; a run that ended with an error has its text."""
    found: dict[str, str] = {}

    def carry(run: str) -> None:
        try:
            with turns.one():
                found[run] = runs[run].digest()
        except RunPaused as e:
            found[run] = str(e)

    threads = [threading.Thread(target=carry, args=[run], daemon=True) for run in runs]
    for t in threads:
        t.start()
    for t in threads:
        t.join(20)
    return found


class Slow(Direct):
    """An answer comes when it is asked for the second time. Notes which run's messages came in which order."""

    def __init__(self, sites: Mapping[str, Any]) -> None:
        super().__init__(sites)
        self.order: list[str] = []
        self.inside = 0
        self.asked: set[str] = set()

    def pull(self, ids: Collection[str], max_bytes: int) -> Iterator[tuple[str, bytes | Refused | RejectedUpdate]]:
        """As `Direct`, later."""
        ready = [mid for mid in ids if mid in self.asked]
        self.asked |= set(ids)
        yield from super().pull(ready, max_bytes)

    def push(self, node: int, kind: str, payload: Sequence[bytes], group: str) -> str:
        """As `Direct`; one at a time."""
        self.inside += 1
        assert self.inside == 1
        self.order.append(threading.current_thread().name)
        self.inside -= 1
        return super().push(node, kind, payload, group)


def test_two_runs_side_by_side_end_with_the_bytes_of_each_alone(tmp_path: Path) -> None:
    link = Slow(sites_in(tmp_path))
    turns = Turns()
    found = carried_out(side_by_side(tmp_path / "both", link, turns, rounds=2), turns)
    alone = {run: Deployment(tmp_path / f"alone {run}", name, rounds=2).simulated() for run, name in METHODS.items()}
    assert found == alone
    changes = sum(a != b for a, b in itertools.pairwise(link.order))
    assert changes > 4, "the runs did not take turns"


def test_a_run_that_pauses_stops_nobody(tmp_path: Path) -> None:
    class Deaf(Direct):
        """Sites do not train in the second run."""

        def pull(self, ids: Collection[str], max_bytes: int) -> Iterator[tuple[str, bytes | Refused | RejectedUpdate]]:
            server = SERVER_KEY.public_key()
            opened = {mid: sealed.open_sealed(self._sent[mid][1], lambda _: server) for mid in ids if mid in self._sent}
            deaf = {mid for mid, o in opened.items() if o.about.run == "b" * 16 and o.kind is Kind.TRAIN}
            yield from super().pull([mid for mid in ids if mid not in deaf], max_bytes)

    turns = Turns()
    runs = side_by_side(tmp_path / "both", Deaf(sites_in(tmp_path)), turns, deadline_s=0.3, attempts=1)
    found = carried_out(runs, turns)
    alone = Deployment(tmp_path / "alone", METHODS["a" * 16]).simulated()
    assert found["a" * 16] == alone
    assert found["b" * 16].startswith("round 0")


def test_a_run_hears_nothing_of_anothers_and_leaves_nothing_behind(tmp_path: Path) -> None:
    class Echo:
        """Answers each message with its bytes."""

        def __init__(self) -> None:
            self.sent: dict[str, bytes] = {}
            self.asked_for: list[int] = []
            self.forgotten: list[str] = []
            self.closed = 0

        def nodes(self) -> Mapping[str, int]:
            return {"anna": 1}

        def push(self, node: int, kind: str, payload: Sequence[bytes], group: str) -> str:
            self.sent[mid := str(len(self.sent))] = b"".join(payload)
            return mid

        def pull(self, ids: Collection[str], max_bytes: int) -> Iterator[tuple[str, bytes]]:
            self.asked_for.append(max_bytes)
            for mid in ids:
                yield mid, self.sent[mid]

        def forget(self, ids: Collection[str]) -> None:
            self.forgotten += ids

        def close(self) -> None:
            self.closed += 1

    link = Echo()
    shared = SharedLink(link)
    one, two = shared.part(10), shared.part(500)
    a, b, left = one.push(1, "train", [b"x" * 11], "0"), two.push(1, "train", [b"y"], "0"), one.push(1, "t", [], "0")
    assert one.nodes() == {"anna": 1}
    (mine,) = one.pull([a], 10)
    assert link.asked_for == [500], "another run's answer may be longer"
    assert mine[0] == a
    assert isinstance(mine[1], RejectedUpdate), "above what this run takes"
    assert mine[1].code == "too_large"
    assert list(two.pull([b], 20)) == [(b, b"y")]
    one.close()
    assert link.forgotten == [left]
    list(two.pull([b], 20))
    assert link.asked_for[-1] == 20
    assert not link.closed
    shared.close()
    assert link.closed == 1


def test_late_bytes_bound_a_run_with_nothing_open(tmp_path: Path) -> None:
    """`SealedPost` asks for so many where it waits for nothing: a part passes that on."""
    asked: list[int] = []

    class Noting(Direct):
        """Notes what is asked for."""

        def pull(self, ids: Collection[str], max_bytes: int) -> Iterator[Any]:
            asked.append(max_bytes)
            return super().pull(ids, max_bytes)

    d = Deployment(tmp_path, link=SharedLink(Noting(sites_in(tmp_path))).part(10))
    list(d.post.pull([]))
    assert asked == [sealed_post.LATE_BYTES + sealed.OVERHEAD]


def test_one_engine_computes_at_a_time_and_waits_for_none(tmp_path: Path) -> None:
    turns, inside, most, order = Turns(), [0], [0], list[str]()

    def engine(name: str) -> None:
        with turns.one():
            for _ in range(20):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                order.append(name)
                inside[0] -= 1
                turns.sleep(0.002)

    threads = [threading.Thread(target=engine, args=[n]) for n in ("one", "two")]
    for t in threads:
        t.start()
    for t in threads:
        t.join(10)
    assert most == [1]
    assert sum(a != b for a, b in itertools.pairwise(order)) > 10


def test_engines_that_are_stopped_end_at_their_next_look_at_the_clock() -> None:
    turns, ended = Turns(), list[str]()

    def engine() -> None:
        try:
            with turns.one():
                started.set()
                turns.sleep(60)
        except KeyboardInterrupt:
            ended.append("interrupted")

    started = threading.Event()
    t = threading.Thread(target=engine)
    t.start()
    started.wait(10)
    turns.stop()
    t.join(10)
    assert ended == ["interrupted"]
    with pytest.raises(KeyboardInterrupt), turns.one():
        pass
