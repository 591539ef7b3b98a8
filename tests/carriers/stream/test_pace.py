"""A site's rate is bounded in every second, each way, and nothing else changes."""

import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from carried import House, running

from fedft.carriers.stream import desk, pace, site_node
from fedft.carriers.stream.pace import Bucket

WITHIN = 0.2


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    house = House(tmp_path_factory.mktemp("house"), "ann")
    yield house
    house.link.close()


def test_no_second_carries_more_than_the_rate_and_its_burst() -> None:
    """However the bytes come: in a stream, in chunks of all sizes, and after a rest."""
    now, gone = [0.0], list[tuple[float, int]]()

    def sleep(seconds: float) -> None:
        now[0] += seconds

    bucket = Bucket(1000.0, lambda: now[0], sleep)
    for n in range(600):
        count = (1, 7, 50)[n % 3]
        bucket.take(count)
        gone.append((now[0], count))
        now[0] += 2.5 if n % 200 == 199 else 0.0
    for begins, _ in gone:
        assert sum(c for at, c in gone if begins <= at < begins + 1) <= 1000 * (1 + 2 * pace.BURST_S)
    busy = now[0] - 3 * 2.5
    assert sum(c for _, c in gone) / busy > 1000 * (1 - WITHIN), "nor much less, while there is something to carry"


def seconds_of(house: House, size: int, bytes_s: float) -> tuple[float, float]:
    """Seconds down and up of a message of so many bytes and its answer of as many."""
    came, payload = list[float](), os.urandom(size)

    def handle(kind: str, data: bytes, reply: object) -> None:
        came.append(time.monotonic())
        assert data == payload
        reply(data)  # type: ignore[operator]

    with running(house.node("ann", bytes_s=bytes_s), handle=handle):
        node = house.online("ann")["ann"]
        began = time.monotonic()
        assert house.ask(node, payload) == payload
        return came[0] - began, time.monotonic() - came[0]


def test_the_rate_on_loopback_is_the_one_that_was_asked_for_each_way(house: House) -> None:
    """8 Mbit/s; the best of a few tries, since the machine may be busy with something else."""
    size, bytes_s = 900_000, 8 * pace.MBIT
    tries = []
    for _ in range(4):
        rates = [size / s / bytes_s for s in seconds_of(house, size, bytes_s)]
        tries.append(rates)
        assert max(rates) < 1 + WITHIN, "never faster"
        if min(rates) > 1 - WITHIN:
            return
    pytest.fail(f"slower than asked for: {tries} of the rate")


def test_keep_alive_goes_on_while_a_message_takes_its_time(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site_node, "PING_S", 0.1)
    monkeypatch.setattr(site_node, "TICK_S", 0.05)
    for end in (site_node, desk):
        monkeypatch.setattr(end, "SILENT_S", 1.0)
    lost: list[float] = []
    connect = site_node.dial.connect
    monkeypatch.setattr(site_node.dial, "connect", lambda *a, **k: (lost.append(0.0), connect(*a, **k))[1])
    down, up = seconds_of(house, 500_000, 250_000)
    assert min(down, up) > 1.5
    assert len(lost) == 1, "one connection, which nobody took for dead"


def test_an_end_that_closes_closes_the_other_after_all_that_was_said() -> None:
    server = socket.create_server(("127.0.0.1", 0))
    ours = socket.create_connection(server.getsockname())
    theirs, _ = server.accept()
    near = pace.paced(ours, 1e6)
    near.sendall(b"x" * 100_000)
    near.close()
    got = b""
    while data := theirs.recv(65536):
        got += data
    assert got == b"x" * 100_000
    theirs.close()
    server.close()
    end = time.monotonic() + 10
    while any(t.name == "pace" for t in threading.enumerate()):
        assert time.monotonic() < end, "threads are left"
        time.sleep(0.01)
    assert ours.fileno() == -1


def test_a_peer_that_goes_is_noticed() -> None:
    server = socket.create_server(("127.0.0.1", 0))
    near = pace.paced(socket.create_connection(server.getsockname()), 1e6)
    theirs, _ = server.accept()
    theirs.close()
    server.close()
    near.settimeout(10)
    assert near.recv(1) == b""
    near.close()


def test_without_a_rate_there_is_nothing_between(tmp_path: Path) -> None:
    own = House(tmp_path, "ben")
    with running(own.node("ben"), handle=lambda kind, data, reply: reply(data)):
        node = own.online("ben")["ben"]
        assert own.ask(node, b"x") == b"x"
        assert not [t for t in threading.enumerate() if t.name == "pace"]
    own.link.close()
