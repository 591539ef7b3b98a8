"""What one peer may cost the other: how often, how much at once, how slowly; strangers, enrolled sites, servers."""

import asyncio
import logging
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from carried import MAX_REPLY, House, running, wait
from hostile_tls import HostileTls, client_hello, long_chain

from fedft.carriers.stream import channel, connection, desk, frames, front, parcels, site_node, strangers, tls
from fedft.carriers.stream.allowance import Allowance
from fedft.carriers.stream.frames import Kind, frame

HELLO = frame(Kind.HELLO, 0, frames.HELLO.pack(frames.VERSION, bytes(16), 0))


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sites look again sooner than they would in earnest."""
    monkeypatch.setattr(site_node, "RETRY_S", (0.02, 0.1))
    monkeypatch.setattr(site_node, "TICK_S", 0.02)


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path, "ann", "eve")
    yield house
    house.link.close()


def echo(kind: str, payload: bytes, reply: Callable[[bytes], None]) -> None:
    """Every message is its own answer."""
    reply(payload)


def connect(
    house: House, name: str, protocols: tuple[str, ...] = (tls.PROTOCOL,), chain: Path | None = None
) -> ssl.SSLSocket:
    """A connection behind its handshake, with a site's key."""
    context = tls.for_site(house.ca, house.keys[name], check_host=False)
    context.set_alpn_protocols(list(protocols))
    if chain:
        context.load_cert_chain(chain, house.keys[name])
    return context.wrap_socket(
        socket.create_connection(("127.0.0.1", house.link.port), 20), server_hostname="localhost"
    )


def greet(house: House, name: str) -> ssl.SSLSocket:
    """The same, welcomed as a site."""
    sock = connect(house, name)
    sock.sendall(HELLO)
    assert heard(sock) == [Kind.WELCOME]
    return sock


def heard(sock: ssl.SSLSocket) -> list[Kind]:
    """The kinds of the frames of one record; none if the connection has ended."""
    try:
        got = sock.recv(2**14)
    except ConnectionError:
        return []
    return [kind for kind, _, _ in frames.Reader().feed(memoryview(got))]


def ended(sock: ssl.SSLSocket) -> bool:
    """Whether the other side ends the connection soon."""
    try:
        while sock.recv(2**16):
            pass
    except TimeoutError:
        return False
    except OSError:
        pass
    return True


def test_what_is_spent_comes_back_and_no_more_than_there_was() -> None:
    a = Allowance(10, 5, at=100.0)
    assert a.spend(5, 100.0) == 0
    assert a.spend(1, 100.0) == pytest.approx(0.1)
    assert a.spend(0, 100.1) == pytest.approx(0)
    assert a.spend(5, 1000.0) == 0
    assert a.spend(1, 1000.0) > 0, "more came back than there was"


def test_addresses_take_turns_and_everything_else_has_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest first, of a herd the newest; what is due always goes on between two steps."""
    monkeypatch.setattr(strangers, "HERD", 2)

    async def steps() -> list[str]:
        done: list[str] = []
        turns = strangers.Turns(asyncio.get_running_loop())
        with socket.socket() as sock:
            for name in ("a1", "a2", "gone", "a3", "b1"):
                stranger = strangers.Stranger(sock, 0, name[0], 0.0)
                turns.add(stranger, lambda name=name: done.append(name))  # type: ignore[misc]
                if name == "gone":
                    turns.leave(stranger)
        while len(done) - done.count("site") < 4:
            await asyncio.sleep(0)
            done.append("site")
        return done

    done = asyncio.run(steps())
    assert [x for x in done if x != "site"] == ["a3", "b1", "a1", "a2"]
    between = "".join("." if x == "site" else "s" for x in done).strip(".").split("s")[1:-1]
    assert all(between), "a step came right behind another"


def test_an_old_connection_is_renewed_and_nothing_on_its_way_is_lost(
    house: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(desk, "AGE_S", (0.0, 0.1))
    caplog.set_level(logging.DEBUG, desk.log.name)
    sent = [os.urandom(3 * 2**20 + i) for i in range(4)]
    with running(house.node("ann"), handle=lambda kind, payload, reply: (time.sleep(0.6), reply(payload))[1]):
        node = house.online("ann")["ann"]
        ids = {house.link.push(node, "query", [m], "1"): m for m in sent}
        assert house.answer(set(ids)) == ids
        assert house.link.nodes() == {"ann": node}, "it is taken for another start of the site"
    assert caplog.text.count("it is old") >= 2


def trickle(house: House, comes_again: bool, stop: threading.Event) -> None:
    """Eve answers a byte at a time, or comes anew all the time and says nothing."""
    sock = greet(house, "eve")
    number = heard_number(sock)
    while not stop.is_set():
        try:
            sock.sendall(frames.announcement(number, "answer", 2**20))
            while heard(sock) not in ([Kind.GRANT], []):
                pass
            while not stop.wait(0.1) and not comes_again:
                sock.sendall(frame(Kind.PIECE, number, b"x"))
        except OSError:
            pass
        sock.close()
        sock = greet(house, "eve")
    sock.close()


def heard_number(sock: ssl.SSLSocket) -> int:
    """The number of the first frame of a record."""
    return next(number for _, number, _ in frames.Reader().feed(memoryview(sock.recv(2**14))))


@pytest.mark.parametrize("comes_again", [False, True])
def test_a_granted_answer_that_trickles_gives_its_place_to_the_next(
    house: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, comes_again: bool
) -> None:
    """Something comes all the time, or Eve does: but far too slowly."""
    monkeypatch.setattr(parcels, "GRACE_S", 1.0)
    monkeypatch.setattr(front, "COMES", (100.0, 1000.0))
    house.link._desk._room._most = 0
    stop = threading.Event()
    eve = threading.Thread(target=trickle, args=(house, comes_again, stop), daemon=True)
    eve.start()
    with running(house.node("ann"), handle=lambda kind, payload, reply: reply(bytes(2**20))):
        online = house.online("ann", "eve")
        slow = house.link.push(online["eve"], "train", [b"x"], "1")
        wait(lambda: house.link._desk._room._held)
        fast = house.link.push(online["ann"], "train", [b"y"], "1")
        assert house.answer({fast}) == {fast: bytes(2**20)}
        assert not dict(house.link.pull({slow}, MAX_REPLY))
    stop.set()
    eve.join(30)
    assert "eve: its answer comes too slowly" in caplog.text


def test_a_grant_counts_once_for_each_connection(house: House) -> None:
    """Or a site could have the plan sent to it again and again, 24 bytes each time."""
    with greet(house, "eve") as sock:
        house.link.push(house.online("eve")["eve"], "train", [bytes(2**20)], "1")
        number = heard_number(sock)
        sock.sendall(frame(Kind.GRANT, number, frames.OFFSET.pack(2**20 - 100)))
        assert heard(sock) == [Kind.PIECE]
        sock.sendall(frame(Kind.GRANT, number, frames.OFFSET.pack(0)))
        assert ended(sock)


def test_a_site_remembers_few_messages_that_its_server_only_announces(house: House) -> None:
    node = house.node("ann")
    node._session.room._most = 0
    for number in range(10_000):
        if not node._wanted(number, 2**20):
            node._session._in[number] = parcels.Incoming("train", 2**20)
    assert node._session.coming() == site_node.WAITING


@pytest.mark.parametrize("what", ["short frames", "small records", "new keys", "new keys both ways"])
def test_who_says_much_in_little_is_read_slowly_and_the_others_notice_nothing(
    house: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    monkeypatch.setattr(connection, "SMALL", (1000.0, 1000.0))
    counted = [0]
    paid = connection.Connection._paid

    def counting(self: connection.Connection, found: int, size: int) -> float:
        counted[0] += found + (self._channel.overhead - self._overhead) / connection.RECORD_BYTES
        return paid(self, found, size)

    monkeypatch.setattr(connection.Connection, "_paid", counting)
    sent = 0
    with running(house.node("ann"), handle=echo), HostileTls(house.link.port, house.keys["eve"]) as eve:
        node = house.online("ann")["ann"]
        assert eve.say(HELLO)
        house.online("eve")
        ping = frame(Kind.PING)
        began = time.monotonic()
        acts = {
            "short frames": lambda: eve.say(ping * 100),
            "small records": lambda: all(eve.say(ping[i : i + 1]) for i in range(len(ping))),
            "new keys": lambda: eve.change_keys(both=False),
            "new keys both ways": lambda: eve.change_keys(both=True),
        }
        while sent < 30_000 and time.monotonic() < began + 1.5 and acts[what]():
            sent += {"short frames": 100, "small records": len(ping)}.get(what, 1)
        assert house.ask(node, b"on") == b"on"
        wait(lambda: "eve: it says too much in too little" in caplog.text)
        spent = time.monotonic() - began
    assert sent > 3000, "too little for this to be a test"
    assert counted[0] < 1000 + 1000 * spent + 3000, f"{counted[0]} in {spent} s"


def test_a_key_that_comes_again_and_again_is_told_to_come_later(
    house: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(front, "COMES", (0.1, 5.0))
    for _ in range(5):
        greet(house, "eve").close()
    with connect(house, "eve") as sock:
        assert heard(sock) == [Kind.REFUSE]
    with running(house.node("ann"), house.node("eve"), handle=echo):
        assert house.ask(house.online("ann")["ann"], b"on") == b"on"
        wait(lambda: "it came too often" in caplog.text)
    assert caplog.text.count("it came too often") == 1


def test_a_long_chain_of_certificates_is_not_taken_in(house: House, tmp_path: Path) -> None:
    chain = long_chain(tmp_path, house.keys["eve"], channel.MAX_SHAKE)
    with connect(house, "eve", chain=chain) as sock:
        assert ended(sock)
    short = long_chain(tmp_path, house.keys["eve"], 1000)
    with connect(house, "eve", chain=short) as sock:
        sock.sendall(HELLO)
        assert heard(sock) == [Kind.WELCOME]


@pytest.mark.parametrize("protocols", [(), ("h2", "http/1.1")])
def test_who_speaks_another_protocol_gets_no_further_than_that(house: House, protocols: tuple[str, ...]) -> None:
    got = b""
    with suppress(OSError), connect(house, "eve", protocols) as sock:
        sock.sendall(HELLO)
        got = sock.recv(100)
    assert not got


def test_nothing_is_resumed_and_nothing_is_sent_early(house: House) -> None:
    """No ticket, so no session that goes on and no data before a handshake: a key is proved each time."""
    with greet(house, "eve") as sock:
        assert sock.session is not None
        assert not sock.session.has_ticket
        assert not sock.session_reused


def test_handshakes_that_stop_half_way_do_not_shut_the_port(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front, "SHAKING", (30, 20))
    link = house.link
    house.link = house.listen()
    hello = client_hello(house.link.port, house.ca, [tls.PROTOCOL])
    with ExitStack() as held:
        for _ in range(60):
            sock = held.enter_context(socket.create_connection(("127.0.0.1", house.link.port)))
            sock.sendall(hello)
            sock.settimeout(10)
        with running(house.node("ann"), handle=echo):
            assert house.ask(house.online("ann")["ann"], b"through") == b"through"
    house.link.close()
    house.link = link


def test_a_stranger_who_is_refused_is_not_read_for_long(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """HTTP/2 inside TLS, with a certificate made up: the preface, and SETTINGS, PING and CONTINUATION without end."""
    del house.members["eve"]
    flood = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + (b"\0\0\0\4\0\0\0\0\0" + b"\0\0\x08\6\0\0\0\0\0" + bytes(8)) * 1000
    monkeypatch.setattr(connection, "FINAL_S", 0.5)
    sent = 0
    with suppress(ConnectionError, ssl.SSLError), connect(house, "eve") as sock:
        sock.settimeout(10)
        while sent < 2**26:
            sock.sendall(flood)
            sent += len(flood)
    assert sent < 2**24  # what the system's buffers take
