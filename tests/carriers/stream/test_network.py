"""A network that breaks, a proxy on the way, and many sites: what is on its way arrives, once and whole."""

import os
import socket
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest
from carried import MAX_REPLY, House, node_key, running, wait
from next_version import spoken

from fedft.carriers.interface import Refused
from fedft.carriers.stream import desk, dial, frames, front, site_node, tls
from fedft.carriers.stream.link import StreamLink
from fedft.errors import ConfigError


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sites look again sooner than they would in earnest."""
    monkeypatch.setattr(site_node, "RETRY_S", (0.02, 0.1))
    monkeypatch.setattr(site_node, "TICK_S", 0.02)


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path, "ann")
    yield house
    house.link.close()


class Wire:
    """A way to a port that can be cut; counts the bytes each way. With `proxy` it speaks CONNECT first."""

    def __init__(self, port: int, proxy: bool = False) -> None:
        self.to, self.proxy = port, proxy
        self.bytes = {"up": 0, "down": 0}
        self.asked: list[bytes] = []
        self.limit: dict[str, int] = {}
        """Bytes after which the wire breaks, once, by direction."""
        self.breaks = 0
        self.ends: list[socket.socket] = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                near, _ = self.listener.accept()
            except OSError:
                return
            if self.proxy:
                head = b""
                while not head.endswith(b"\r\n\r\n"):
                    head += near.recv(1)
                self.asked.append(head)
                near.sendall(b"HTTP/1.1 200 Connection established\r\nX: y\r\n\r\n")
            far = socket.create_connection(("127.0.0.1", self.to))
            self.ends += [near, far]
            for a, b, way in ((near, far, "up"), (far, near, "down")):
                threading.Thread(target=self._relay, args=(a, b, way), daemon=True).start()

    def _relay(self, a: socket.socket, b: socket.socket, way: str) -> None:
        try:
            while data := a.recv(65536):
                self.bytes[way] += len(data)
                if self.bytes[way] > self.limit.get(way, 2**62):
                    self.limit.pop(way, None)
                    self.breaks += 1
                    break
                b.sendall(data)
        except OSError:
            pass
        for s in (a, b):
            with suppress(OSError):
                s.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Nobody may come any more, and who is there goes."""
        with suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)  # whoever waits in accept holds it open
        self.listener.close()
        for s in self.ends:
            with suppress(OSError):
                s.shutdown(socket.SHUT_RDWR)
            s.close()


def echo(kind: str, payload: bytes, reply: Callable[[bytes], None]) -> None:
    """Every message is its own answer."""
    reply(payload)


@pytest.mark.parametrize("way", ["up", "down"])
def test_a_long_message_goes_on_where_it_broke_off(house: House, way: str) -> None:
    size = 24 * 2**20
    payload = os.urandom(size)
    with closing(Wire(house.link.port)) as wire, running(house.node("ann", wire.address), handle=echo):
        wire.limit[way] = 2 * size // 3
        node = house.online("ann")["ann"]
        assert house.ask(node, payload) == payload
        assert house.link.nodes() == {"ann": node}, "it is taken for another start of the site"
    assert wire.breaks == 1
    assert wire.bytes[way] < 1.1 * size, "it was sent from the beginning again"


def test_a_wire_that_breaks_all_the_time_brings_everything_once(house: House) -> None:
    heard = list[bytes]()

    def handle(kind: str, payload: bytes, reply: Callable[[bytes], None]) -> None:
        heard.append(payload)
        reply(payload[::-1])

    with closing(Wire(house.link.port)) as wire, running(house.node("ann", wire.address), handle=handle):
        node = house.online("ann")["ann"]
        wire.limit["up"] = wire.bytes["up"] + 150_000
        sent = {house.link.push(node, "query", [m := os.urandom(40_000 * i)], "1"): m for i in range(12)}
        ends = time.monotonic() + 30
        for n in range(1, 5):  # 2.6 MB go up in all
            while wire.breaks < n and time.monotonic() < ends:
                time.sleep(0.005)
            wire.limit["up"] = wire.bytes["up"] + 150_000
        wire.limit.clear()
        assert house.answer(set(sent)) == {mid: m[::-1] for mid, m in sent.items()}
    assert wire.breaks >= 4
    assert sorted(heard) == sorted(sent.values())


def test_a_proxy_of_the_environment_is_used_and_no_proxy_goes_past_it(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with closing(Wire(house.link.port, proxy=True)) as wire:
        monkeypatch.setenv("HTTPS_PROXY", f"http://me:s%40crt@{wire.address}")
        with running(house.node("ann"), handle=echo):
            assert house.ask(house.online("ann")["ann"], b"by proxy") == b"by proxy"
        (head,) = wire.asked
        assert head.startswith(f"CONNECT {house.address} HTTP/1.1\r\n".encode())
        assert b"Proxy-Authorization: Basic " + b64encode(b"me:s@crt") in head
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        with running(house.node("ann"), handle=echo):
            assert house.ask(house.online("ann")["ann"], b"past it") == b"past it"
        assert len(wire.asked) == 1


def test_a_proxy_that_refuses_is_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def refuse() -> None:
            caller, _ = listener.accept()
            with caller:
                caller.recv(1000)
                caller.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")

        threading.Thread(target=refuse, daemon=True).start()
        with pytest.MonkeyPatch.context() as m:
            m.setenv("HTTPS_PROXY", f"http://127.0.0.1:{listener.getsockname()[1]}")
            m.setenv("NO_PROXY", "")
            m.setenv("no_proxy", "")
            with pytest.raises(dial.ProxyRefused) as e:
                dial.connect("fl.example.org:9443", None)  # type: ignore[arg-type]  # it does not come to that
    assert dial.reason(e.value, "x:1") == "the proxy does not connect to x:1: 407 Proxy Authentication Required"


def test_silent_strangers_do_not_shut_the_port_nor_stay(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than there are places for, some with half a ClientHello."""
    monkeypatch.setattr(front, "FIRST_S", 1.5)
    link = house.link
    monkeypatch.setattr(front, "SILENT", (40, 30))
    house.link = house.listen()
    held: list[socket.socket] = []
    try:
        held += [socket.create_connection(("127.0.0.1", house.link.port)) for _ in range(100)]
        for s in held[::2]:
            s.sendall(b"\x16\x03\x01\x02\x00\x01\x00")
        with running(house.node("ann"), handle=echo):
            assert house.ask(house.online("ann")["ann"], b"through") == b"through"
            wait(lambda: all(_closed(s) for s in held), 6)
            assert house.ask(house.online("ann")["ann"], b"still") == b"still"
    finally:
        for s in held:
            s.close()
        house.link.close()
        house.link = link


def _closed(s: socket.socket) -> bool:
    s.setblocking(False)
    try:
        return s.recv(1) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def test_answers_wait_at_their_sites_until_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten answers of 2 MiB, room for one beside the largest, and a server that pulls late."""
    monkeypatch.setattr(desk, "ROOM", 2 * 2**20)
    names = [f"s{i}" for i in range(10)]
    house, size = House(tmp_path, *names), 2 * 2**20
    house.link._desk._room._most = 2 * 2**20
    nodes = [house.node(name) for name in names]
    with running(*nodes, handle=lambda kind, payload, reply: reply(payload * size)):
        ids = {house.link.push(node, "train", [b"x"], "1") for node in house.online(*names).values()}
        time.sleep(1)
        held = house.link._desk._room._held
        assert len(held) == 2, "the server takes more than it has room for"
        got = house.answer(ids)
        assert set(map(len, got.values())) == {size}
        wait(lambda: not held)
    house.link.close()


def test_a_granted_answer_that_does_not_come_makes_room_for_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A site that is granted and then sends nothing is cut; the one behind it is taken."""
    monkeypatch.setattr(desk, "STALL_S", 0.5)
    house, size = House(tmp_path, "ann", "ben"), 2 * 2**20
    house.link._desk._room._most = 0
    slow, fast = house.node("ann"), house.node("ben")
    slow._session._grant = lambda number, body: None  # type: ignore[method-assign]
    with running(slow, fast, handle=lambda kind, payload, reply: reply(payload * size)):
        online = house.online("ann", "ben")
        first = house.link.push(online["ann"], "train", [b"x"], "1")
        wait(lambda: house.link._desk._room._held)
        second = house.link.push(online["ben"], "train", [b"y"], "1")
        assert house.answer({second}) == {second: b"y" * size}
        assert not dict(house.link.pull({first}, MAX_REPLY))
    house.link.close()


def test_a_site_that_leaves_is_away_at_once_and_its_messages_are_lost(house: House) -> None:
    with running(house.node("ann"), handle=lambda *_: None):
        node = house.online("ann")["ann"]
        mid = house.link.push(node, "train", [b"never answered"], "1")
        time.sleep(0.1)
    wait(lambda: not house.link.nodes(), 3)
    answer = house.answer({mid})[mid]
    assert isinstance(answer, Refused)


def test_a_site_whose_connection_broke_is_away_after_a_while(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desk, "LINGER_S", 1.0)
    with closing(Wire(house.link.port)) as wire, running(house.node("ann", wire.address), handle=echo):
        node = house.online("ann")["ann"]
        wire.close()
        assert house.link.nodes() == {"ann": node}
        wait(lambda: not house.link.nodes(), 5)


def test_a_stranger_s_key_is_no_site_s_even_if_it_says_so(house: House, tmp_path: Path) -> None:
    """The certificate is signed by everybody's key, and only the key inside it counts."""
    other, _ = node_key(tmp_path, "other")
    house.keys["eve"] = other
    with running(house.node("eve"), handle=echo):
        time.sleep(0.5)
        assert house.link.nodes() == {}


def test_a_server_is_reached_by_ipv6(tmp_path: Path) -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    house = House(tmp_path, "ann")
    house.link.close()
    own = tmp_path / "server"
    house.link = StreamLink("::1", 0, own / "server.pem", own / "server.key", house.nodes, MAX_REPLY)
    try:
        house.link.start()
    except ConfigError:
        pytest.skip("no loopback by IPv6 here")
    with running(house.node("ann", f"[::1]:{house.link.port}"), handle=echo):
        assert house.ask(house.online("ann")["ann"], b"six") == b"six"
    house.link.close()


def first_word(house: House, newest: int, oldest: int) -> tuple[frames.Kind, bytes]:
    """The server's answer to a HELLO of a site that speaks these versions."""
    with closing(dial.connect(house.address, tls.for_site(house.ca, house.keys["ann"]))) as channel:
        channel.settimeout(30)
        body = frames.HELLO.pack(newest, bytes(16), 1, oldest)
        channel.send(memoryview(frames.frame(frames.Kind.HELLO, 0, body)))
        reader = frames.Reader()
        while True:
            with suppress(BlockingIOError):  # a record that is not whole
                for kind, _, said in reader.feed(memoryview(channel.recv())):
                    return kind, bytes(said)


def test_a_hello_agrees_on_a_version_or_names_both_and_which_side_to_update(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    with spoken(2, 3):
        for site, agreed in (((2, 2), 2), ((3, 2), 3), ((4, 3), 3)):
            kind, said = first_word(house, *site)
            assert (kind, said[:2]) == (frames.Kind.WELCOME, agreed.to_bytes(2, "little"))
        for site, which in (((1, 1), "the site"), ((5, 4), "this server"), ((5, 4), "")):
            caplog.clear()
            assert first_word(house, *site) == (frames.Kind.REFUSE, b"version 2 3")
            told = f"speaks protocol {site[1]}{f' to {site[0]}' * (site[0] > site[1])}, this server protocol 2 to 3"
            assert [which in r.message for r in caplog.records if told in r.message] == [True] * bool(which)
    assert frames.versions_in("version 2 3") == "it speaks protocol 2 to 3, this side protocol 2: update this side"
    with spoken(3, 4):
        wanted = "it speaks protocol 2, this side protocol 3 to 4: update the server"
        assert frames.versions_in("version 2 2") == wanted
    assert frames.versions_in("unknown") is frames.versions_in("version 2") is frames.versions_in("version x y") is None


def test_a_site_that_is_too_new_says_what_to_update_and_goes_on_trying(
    house: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(frames, "hello", lambda start, knocks=False: frames.HELLO.pack(9, start, knocks, 8))
    monkeypatch.setattr(frames, "versions_in", lambda why: f"it speaks {why.split(' ', 1)[1]}, this side 8 9")
    with running(house.node("ann"), handle=echo):
        wait(lambda: any("cannot be spoken to: it speaks 2 2, this side 8 9" in r.message for r in caplog.records))
        monkeypatch.undo()
        house.online("ann")
