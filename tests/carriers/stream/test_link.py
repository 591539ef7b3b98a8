"""The server's link and the site's node over our own carrier: on loopback, over TLS, for real."""

import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from carried import DONE, MAX_REPLY, House, echo, node_key, running, wait

from fedft.carriers.interface import LinkLost, Refused
from fedft.carriers.stream import site_node
from fedft.carriers.stream.site_node import Node
from fedft.errors import ConfigError, RejectedUpdate
from fedft.security import new_keys


@pytest.fixture(autouse=True, scope="module")
def impatient() -> Iterator[None]:
    """Sites look again sooner than they would in earnest."""
    with pytest.MonkeyPatch.context() as m:
        m.setattr(site_node, "RETRY_S", (0.05, 0.2))
        m.setattr(site_node, "TICK_S", 0.05)
        yield


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    house = House(tmp_path_factory.mktemp("house"), "ann", "ben")
    assert house.link.nodes() == {}, "a site is offered before it has come"
    with running(house.node("ann"), house.node("ben"), handle=echo):
        yield house
    house.link.close()


def test_small_and_large_messages_come_back_unchanged(house: House) -> None:
    nodes = house.online("ann", "ben")
    for payload in (b"", os.urandom(1000), os.urandom(32 * 1024), os.urandom(12 * 2**20 + 7), bytes(11 * 2**20)):
        parts = [payload[:184], payload[184:]]
        ids = {house.link.push(node, "query", parts, "1") for node in nodes.values()}
        assert set(house.answer(ids).values()) == {payload}


def test_a_question_is_answered_while_another_message_is_at_work(house: House) -> None:
    node = house.online("ann")["ann"]
    DONE.clear()
    slow = house.link.push(node, "train", [b"slow"], "1")
    assert house.ask(node, b"how far?") == b"how far?"
    assert not dict(house.link.pull({slow}, MAX_REPLY))
    DONE.set()
    assert house.answer({slow}) == {slow: b"slow"}


def test_a_reply_that_is_too_large_costs_only_itself(house: House) -> None:
    node = house.online("ann")["ann"]
    dict(house.link.pull((), 2**20))
    large, small = house.link.push(node, "evaluate", [b"?"], "1"), house.link.push(node, "query", [b"!"], "1")
    got = house.answer({large, small}, max_bytes=2**20)
    assert got[small] == b"!"
    assert isinstance(got[large], RejectedUpdate)
    assert got[large].code == "too_large"


def test_ids_of_no_message_and_nodes_of_no_site_are_refused(house: House) -> None:
    stray = house.link.push(12345, "query", [b"?"], "1")
    got = house.answer({"never sent", stray})
    assert {type(answer) for answer in got.values()} == {Refused}
    assert {answer.code for answer in got.values()} == {"client_error"}


def test_a_forgotten_message_leaves_nothing_behind(house: House) -> None:
    node = house.online("ann")["ann"]
    mid = house.link.push(node, "query", [os.urandom(1000)], "1")
    house.link.forget({mid})
    assert house.ask(node, b"next") == b"next"
    assert house.answer({mid})[mid].code == "client_error"


def test_an_answer_to_what_was_withdrawn_is_not_sent(house: House) -> None:
    node = house.online("ann")["ann"]
    DONE.clear()
    mid = house.link.push(node, "train", [bytes(2**20)], "1")
    assert house.ask(node, b"on") == b"on"
    house.link.forget({mid})
    assert house.ask(node, b"further") == b"further"
    DONE.set()
    time.sleep(0.2)
    assert house.ask(node, b"still") == b"still"
    assert house.answer({mid})[mid].code == "client_error"


def test_a_message_above_what_a_site_takes_is_refused_before_it_is_sent(house: House, tmp_path: Path) -> None:
    house.keys["cyd"], house.members["cyd"] = node_key(tmp_path, "cyd")
    with running(house.node("cyd", max_bytes=100_000), handle=echo):
        node = house.online("cyd")["cyd"]
        answer = house.ask(node, bytes(100_001))
        assert isinstance(answer, Refused)
        assert "at most 100000 bytes" in answer.reason
        assert house.ask(node, bytes(100_000)) == bytes(100_000)
    wait(lambda: "cyd" not in house.link.nodes(), 5)  # it said that it leaves: no need to wait for it
    del house.members["cyd"]


def test_a_site_says_in_one_line_why_it_cannot_connect(
    house: House, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    new_keys.make_server(tmp_path / "other", ["127.0.0.1"])
    stranger, _ = node_key(tmp_path, "stranger")
    with socket.create_server(("127.0.0.1", 0)) as plain, socket.create_server(("127.0.0.1", 0)) as free:
        threading.Thread(target=_speak_plainly, args=[plain], daemon=True).start()
        nobody = free.getsockname()[1]
        free.close()
        cases = {
            "does not know this site's node key": Node(house.address, house.ca, stranger),
            "certificate": Node(house.address, (tmp_path / "other" / "ca.pem").read_bytes(), house.keys["ann"]),
            "does not speak TLS": Node(f"127.0.0.1:{plain.getsockname()[1]}", house.ca, house.keys["ann"]),
            "cannot be reached": Node(f"127.0.0.1:{nobody}", house.ca, house.keys["ann"]),
        }
        with caplog.at_level(logging.WARNING, site_node.log.name), running(*cases.values(), handle=echo):
            wait(lambda: len(caplog.records) >= len(cases))
            time.sleep(0.5)  # for further attempts, of which nothing is to be said
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == len(cases), said
    for words in cases:
        assert sum(words in line for line in said) == 1, (words, said)


def test_a_used_port_and_a_wrong_certificate_are_one_line(house: House, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot listen on"):
        house.listen(house.link.port)
    with pytest.raises(ConfigError, match="not an address"):
        Node("127.0.0.1:1", b"no certificate", house.keys["ann"])


def test_a_site_that_starts_anew_loses_what_it_was_asked_and_serves_again(house: House, tmp_path: Path) -> None:
    house.keys["dan"], house.members["dan"] = node_key(tmp_path, "dan")
    DONE.clear()
    with running(house.node("dan"), handle=echo):
        first = house.online("dan")["dan"]
        mid = house.link.push(first, "train", [b"never answered"], "1")
        assert house.ask(first, b"there") == b"there"
        with running(house.node("dan"), handle=echo):  # another process with the same key
            wait(lambda: house.link.nodes().get("dan", first) != first)
            answer = house.answer({mid})[mid]
            assert isinstance(answer, Refused)
            assert answer.code == "client_error"
    del house.members["dan"]


def test_a_site_taken_off_the_roster_is_cut_within_seconds(house: House, caplog: pytest.LogCaptureFixture) -> None:
    house.online("ann", "ben")
    key = house.members["ben"]
    with caplog.at_level(logging.WARNING):
        began = time.monotonic()
        del house.members["ben"]
        wait(lambda: "does not know this site's node key" in caplog.text, 5)
        assert time.monotonic() - began < 3
        wait(lambda: "ben" not in house.link.nodes(), 5)
    assert house.ask(house.link.nodes()["ann"], b"on") == b"on"
    house.members["ben"] = key
    assert house.ask(house.online("ben")["ben"], b"back") == b"back"


def test_after_a_new_start_of_the_server_everybody_finds_together_again(house: House) -> None:
    """Last on this house: it gets a new link."""
    node = house.online("ann", "ben")["ann"]
    DONE.clear()
    house.link.push(node, "train", [b"slow"], "1")
    house.link.close()
    with pytest.raises(LinkLost):
        house.link.push(node, "query", [b"?"], "1")
    house.link = house.listen(house.link.port)
    nodes = house.online("ann", "ben")
    ids = {house.link.push(n, "query", [b"again"], "2") for n in nodes.values()}
    assert set(house.answer(ids).values()) == {b"again"}
    DONE.set()  # its answer is to a message of a server that is no more
    assert house.ask(nodes["ann"], b"once more") == b"once more"


def _speak_plainly(server: socket.socket) -> None:
    while True:
        try:
            caller, _ = server.accept()
        except OSError:
            return
        with caller:
            caller.recv(1024)
            caller.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
