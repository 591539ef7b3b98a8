"""The server's link to a SuperLink that somebody runs, and the site's node: on loopback, over TLS, for real."""

import datetime
import inspect
import ipaddress
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from subprocess import PIPE
from typing import Any

import carried
import flwr
import httpx
import pytest
from carried import DONE, echo
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from processes import free_port
from superlink import SuperLink

from fedft.carriers.flower import connection_faults, site_node
from fedft.carriers.flower import link as flower_link
from fedft.carriers.flower.link import FlowerLink
from fedft.carriers.flower.site_node import Node
from fedft.carriers.interface import LinkLost, Refused
from fedft.errors import ConfigError, RejectedUpdate

PEM, PKCS8, BARE = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
MAX_REPLY = 40 * 2**20
PATIENCE_S = 120.0  # with what takes a second, or twenty after a killed site, on a machine with nothing else to do

# Flower's internals


def test_flower_is_the_release_whose_internals_we_use():
    """A new release of Flower: read its notes, run this file, then move the bound in pyproject.toml."""
    from flwr.common import constant
    from flwr.supercore.protobuf.client import ProtobufClient
    from flwr.supernode.fleet_http_client import FleetHttpClient

    assert flwr.__version__.startswith("1.41."), f"flwr {flwr.__version__} is installed, 1.41 is what was tested"
    assert site_node.HEARTBEAT_S == constant.HEARTBEAT_MIN_INTERVAL
    assert "_client" in inspect.getsource(ProtobufClient.__init__), "objects.connect replaces ProtobufClient._client"
    assert {"ActivateNode", "PullMessages", "PushMessages", "PushObject", "PullObject"} <= set(dir(FleetHttpClient))


# All of it, on loopback


def certificate(folder: Path, days: int = 1) -> bytes:
    """Writes server.pem and server.key for this machine, returns the certificate of their CA."""
    now = datetime.datetime.now(datetime.UTC)
    ca_key, key = ec.generate_private_key(ec.SECP384R1()), ec.generate_private_key(ec.SECP384R1())

    def sign(name: str, public: Any, extension: Any) -> bytes:
        subject, issuer = (x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, n)]) for n in (name, "ca"))
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(public)
        builder = builder.serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(days=9))
        builder = builder.not_valid_after(now + datetime.timedelta(days=days)).add_extension(extension, critical=True)
        return builder.sign(ca_key, hashes.SHA384()).public_bytes(PEM)

    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    (folder / "server.pem").write_bytes(sign("server", key.public_key(), names))
    (folder / "server.key").write_bytes(key.private_bytes(PEM, PKCS8, BARE))
    return sign("ca", ca_key.public_key(), x509.BasicConstraints(ca=True, path_length=None))


KEYS = {site: ec.generate_private_key(ec.SECP384R1()) for site in ("ann", "ben")}
MEMBERS = {site: public_key_to_bytes(key.public_key()) for site, key in KEYS.items()}


class House:
    """A SuperLink, the server's link to it, and what the sites do with their messages."""

    def __init__(self, folder: Path) -> None:
        self.ca, self.members = certificate(folder), dict(MEMBERS)
        (folder / "ca.pem").write_bytes(self.ca)
        self.superlink = SuperLink(folder, free_port())
        self.address = f"127.0.0.1:{self.superlink.port}"
        self.link = FlowerLink(self.address, self.ca, lambda: {n: (k,) for n, k in self.members.items()})

    def answer(self, ids: set[str], max_bytes: int = MAX_REPLY) -> dict[str, Any]:
        """All replies to these messages."""
        got: dict[str, Any] = {}
        until = time.monotonic() + PATIENCE_S
        while ids - got.keys():
            assert time.monotonic() < until, f"no reply to {len(ids - got.keys())} messages"
            got |= dict(self.link.pull(ids - got.keys(), max_bytes))
            time.sleep(0.02)
        return got

    def online(self) -> dict[str, int]:
        """Both sites' node ids, once both are there."""
        wait(lambda: len(self.link.nodes()) == 2)
        return dict(self.link.nodes())


wait = partial(carried.wait, seconds=PATIENCE_S)
running = partial(carried.running, handle=echo, patience=PATIENCE_S)


@pytest.fixture(autouse=True, scope="module")
def impatient() -> Iterator[None]:
    """Both sides look again sooner than they would in earnest."""
    with pytest.MonkeyPatch.context() as m:
        m.setattr(site_node, "RETRY_S", (0.2, 1.0))
        m.setattr(flower_link, "NODES_S", 0.1)
        yield


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    house = House(tmp_path_factory.mktemp("house"))
    try:
        assert house.link.nodes() == {}, "a site is offered before it has come"
        with running(*(Node(house.address, house.ca, key) for key in KEYS.values())):
            yield house
    finally:
        house.link.close()
        house.superlink.kill()


def test_small_and_large_messages_come_back_unchanged(house):
    nodes = house.online()
    for payload in (b"", os.urandom(1000), os.urandom(12 * 2**20 + 7), bytes(11 * 2**20)):
        ids = {house.link.push(node, "query", [payload], "1") for node in nodes.values()}
        assert set(house.answer(ids).values()) == {payload}


def test_a_question_is_answered_while_another_message_is_at_work(house):
    node = house.online()["ann"]
    DONE.clear()
    slow = house.link.push(node, "train", [b"slow"], "1")
    assert house.answer({house.link.push(node, "query", [b"how far?"], "1")}).popitem()[1] == b"how far?"
    assert not dict(house.link.pull({slow}, MAX_REPLY))
    DONE.set()
    assert house.answer({slow}) == {slow: b"slow"}


def test_a_reply_that_is_too_large_costs_only_itself(house):
    node = house.online()["ann"]
    large, small = house.link.push(node, "evaluate", [b"?"], "1"), house.link.push(node, "query", [b"!"], "1")
    got = house.answer({large, small}, max_bytes=2**20)
    assert got[small] == b"!"
    assert isinstance(got[large], RejectedUpdate)
    assert got[large].code == "too_large"


def test_ids_of_no_message_and_nodes_of_no_site_are_refused(house):
    stray = house.link.push(12345, "query", [b"?"], "1")
    got = house.answer({"never sent", stray})
    assert {type(answer) for answer in got.values()} == {Refused}
    assert {answer.code for answer in got.values()} == {"client_error"}


def test_a_forgotten_message_leaves_nothing_behind(house):
    node = house.online()["ann"]
    mid = house.link.push(node, "query", [os.urandom(1000)], "1")
    house.link.forget({mid})
    assert house.answer({house.link.push(node, "query", [b"next"], "1")}).popitem()[1] == b"next"
    assert house.answer({mid})[mid].code == "client_error"


def test_a_site_says_in_one_line_why_it_cannot_connect(house, tmp_path, caplog):
    with socket.create_server(("127.0.0.1", 0)) as plain:
        threading.Thread(target=_speak_plainly, args=[plain], daemon=True).start()
        free = socket.create_server(("127.0.0.1", 0))
        free.close()
        key = KEYS["ann"]
        cases = {
            "does not take this site's node key: not enrolled": Node(
                house.address, house.ca, ec.generate_private_key(ec.SECP384R1())
            ),
            "certificate": Node(house.address, certificate(tmp_path), key),
            "does not speak TLS": Node(f"127.0.0.1:{plain.getsockname()[1]}", house.ca, key),
            "cannot be reached": Node(f"127.0.0.1:{free.getsockname()[1] if free.fileno() > 0 else 9}", house.ca, key),
        }
        with caplog.at_level(logging.WARNING, "fedft.carriers.flower.site_node"), running(*cases.values()):
            wait(lambda: len(caplog.records) >= len(cases))
            time.sleep(1)  # for further attempts, of which nothing is to be said
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == len(cases), said
    for words in cases:
        assert sum(words in line for line in said) == 1, (words, said)


def test_a_reply_survives_a_network_that_comes_and_goes(house, monkeypatch):
    """Every request of the reply fails twice, once before it is heard and once after."""
    monkeypatch.setattr(site_node, "RETRY_S", (0.01, 1.0))
    failed: dict[Any, int] = {}
    node = house.online()["ann"]

    def shaky(name: str) -> Any:
        real = getattr(site_node.FleetHttpClient, name)

        def call(self: Any, request: Any) -> Any:
            key = (name, request.SerializeToString())
            failed[key] = failed.get(key, 0) + 1
            answer = real(self, request) if failed[key] != 1 else None
            if failed[key] <= 2:
                raise httpx.ReadError("gone")
            return answer

        return call

    for name in ("PushMessages", "PushObject", "PullObject"):
        monkeypatch.setattr(site_node.FleetHttpClient, name, shaky(name))
    payload = os.urandom(6 * 2**20)
    mid = house.link.push(node, "query", [payload], "1")
    time.sleep(1.5)  # heads are given once: the reply is announced, and announced again, before it is asked for
    assert house.answer({mid}) == {mid: payload}
    assert len(failed) > 10


def test_a_clock_that_is_wrong_is_named():
    long_ago = {"date": "Mon, 01 Jan 2024 00:00:00 GMT"}
    assert "clock is" in connection_faults.refusal(httpx.Response(401, headers=long_ago), "host:1")


def test_what_is_no_address_is_one_line():
    with pytest.raises(ConfigError, match="not an address"):
        Node("127.0.0.1:1", b"no certificate", KEYS["ann"])


def test_a_site_taken_off_the_roster_is_no_longer_offered(house):
    house.online()
    ben = house.members.pop("ben")
    wait(lambda: set(house.link.nodes()) == {"ann"})
    assert house.answer({house.link.push(house.link.nodes()["ann"], "query", [b"on"], "3")}).popitem()[1] == b"on"
    house.members["ben"] = ben
    house.online()


def test_after_a_killed_superlink_everybody_finds_together_again(house):
    """Last of the fast ones on this house."""
    node = house.online()["ann"]
    DONE.clear()
    house.link.push(node, "train", [b"slow"], "1")
    house.superlink.kill()
    with pytest.raises(LinkLost):
        house.link.push(node, "query", [b"?"], "1")
    house.superlink.start()
    nodes = house.online()
    assert nodes["ann"] != node
    ids = {house.link.push(n, "query", [b"again"], "2") for n in nodes.values()}
    assert set(house.answer(ids).values()) == {b"again"}
    DONE.set()  # its answer is to a message of a SuperLink that is no more


def _speak_plainly(server: socket.socket) -> None:
    while True:
        try:
            caller, _ = server.accept()
        except OSError:
            return
        with caller:
            caller.recv(1024)
            caller.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


@contextmanager
def process(code: str, *args: str) -> Iterator[subprocess.Popen[str]]:
    """A Python process that runs `code`; killed at the end of the block at the latest."""
    with subprocess.Popen([sys.executable, "-c", code, *args], stdin=PIPE, stdout=PIPE, text=True) as started:
        try:
            yield started
        finally:
            started.kill()


SITE = """
import sys, threading
from pathlib import Path
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from fedft.carriers.flower.site_node import Node
address, folder = sys.argv[1], Path(sys.argv[2])
key = load_pem_private_key((folder / "node.key").read_bytes(), None)
Node(address, (folder / "ca.pem").read_bytes(), key).run(lambda kind, payload, reply: None, threading.Event())
"""


@pytest.mark.slow
def test_a_killed_site_is_told_to_the_server_and_comes_back(tmp_path):
    """Flower takes a silent node for gone after two heartbeats of 10 s, and for as long lets nobody in with its key."""
    house = House(tmp_path)
    (tmp_path / "ca.pem").write_bytes(house.ca)
    (tmp_path / "node.key").write_bytes(KEYS["ann"].private_bytes(PEM, PKCS8, BARE))
    try:
        house.link.nodes()
        with process(SITE, house.address, str(tmp_path)) as site:
            wait(lambda: "ann" in house.link.nodes() or site.poll() is not None)
            assert site.poll() is None, "the site ended before it was online"
            mid = house.link.push(house.link.nodes()["ann"], "query", [b"never answered"], "1")
            time.sleep(2)  # for the site to have taken the message
        with running(Node(house.address, house.ca, KEYS["ann"])):
            answer = house.answer({mid})[mid]
            assert isinstance(answer, Refused)
            assert answer.code == "client_error"
            wait(lambda: "ann" in house.link.nodes())
            again = house.link.push(house.link.nodes()["ann"], "query", [b"again"], "2")
            assert house.answer({again}) == {again: b"again"}
    finally:
        house.link.close()
        house.superlink.kill()
