"""A server's link over our own carrier and nodes that answer, on loopback; keys and certificates for them."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from fedft.carriers.interface import Handle
from fedft.carriers.stream.link import StreamLink
from fedft.carriers.stream.site_node import Node
from fedft.security import new_keys
from fedft.security.private_keys import node_bytes, private_bytes

PATIENCE_S = 60.0  # with what takes a moment
MAX_REPLY = 40 * 2**20


def wait(until: Callable[[], Any], seconds: float = PATIENCE_S) -> None:
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def node_key(folder: Path, name: str) -> tuple[Path, bytes]:
    """A new node key: its file, and its public half as a roster has it."""
    key = ec.generate_private_key(ec.SECP384R1())
    file = folder / f"{name}.key"
    file.touch(0o600)
    file.write_bytes(private_bytes(key))
    return file, node_bytes(key.public_key())


DONE = threading.Event()
"""What the sites work at in another thread is finished."""


def echo(kind: str, payload: bytes, reply: Callable[[bytes], None]) -> None:
    """What sites do: `train` is answered once DONE is set, `evaluate` with 3 MiB, others with what they say."""
    if kind == "train":
        threading.Thread(target=lambda: DONE.wait(30) and reply(payload)).start()
    else:
        reply(b"x" * 3 * 2**20 if kind == "evaluate" else payload)


@contextmanager
def running(*nodes: Any, handle: Handle, patience: float = PATIENCE_S) -> Iterator[None]:
    """These nodes, of any carrier, serve while the block lasts, and end within `patience` seconds."""
    stop = threading.Event()
    threads = [threading.Thread(target=node.run, args=(handle, stop)) for node in nodes]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(patience)
            assert not thread.is_alive()


class House:
    """A link with its keys and sites, by name."""

    def __init__(self, folder: Path, *sites: str) -> None:
        self.folder = folder
        new_keys.make_server(folder / "server", ["127.0.0.1", "localhost"], 30)
        self.ca = (folder / "server" / "ca.pem").read_bytes()
        self.keys: dict[str, Path] = {}
        self.members: dict[str, bytes] = {}
        for name in sites:
            self.keys[name], self.members[name] = node_key(folder, name)
        self.link = self.listen()

    def listen(self, port: int = 0) -> StreamLink:
        """A link on this port."""
        own = self.folder / "server"
        link = StreamLink("127.0.0.1", port, own / "server.pem", own / "server.key", self.nodes, MAX_REPLY)
        link.start()
        return link

    def nodes(self) -> dict[str, tuple[bytes, ...]]:
        """The members, each with its one key."""
        return {name: (key,) for name, key in self.members.items()}

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"127.0.0.1:{self.link.port}"

    def node(self, name: str, address: str = "", **options: Any) -> Node:
        """A start of a site."""
        return Node(address or self.address, self.ca, self.keys[name], **options)

    def online(self, *names: str) -> dict[str, int]:
        """Node ids, once these are there."""
        wait(lambda: self.link.nodes().keys() >= set(names))
        return dict(self.link.nodes())

    def answer(self, ids: set[str], max_bytes: int = MAX_REPLY) -> dict[str, Any]:
        """All replies to these messages."""
        got: dict[str, Any] = {}
        until = time.monotonic() + PATIENCE_S
        while ids - got.keys():
            assert time.monotonic() < until, f"no reply to {len(ids - got.keys())} messages"
            got |= dict(self.link.pull(ids - got.keys(), max_bytes))
            time.sleep(0.005)
        return got

    def ask(self, node: int, payload: bytes, kind: str = "query") -> Any:
        """The answer to one message."""
        mid = self.link.push(node, kind, [payload], "1")
        return self.answer({mid})[mid]
