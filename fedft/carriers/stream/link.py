"""A `Link` over our own carrier: we listen, sites come, and an event loop in a thread of its own carries."""

import asyncio
import logging
import secrets
import socket
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedft.carriers.interface import LinkLost, Refused
from fedft.carriers.stream import tls
from fedft.carriers.stream.desk import Answer, Desk
from fedft.carriers.stream.front import Front
from fedft.errors import ConfigError, RejectedUpdate
from fedft.wire import versions

log = logging.getLogger(__name__)

TICK_S = 1.0
BACKLOG = 1024
STOP_S = 5.0  # for the thread to end


class StreamLink:
    """The link to the sites; see `fedft.carriers.interface.Link`. Used by one thread.

    Args:
        host, port: where it listens; port 0 takes a free one.
        cert, key: PEM files of the server's TLS certificate and private key.
        members: gives the public node keys with which each site may come now, one or two; called often, and from the
            network's thread.
        max_bytes: the longest answer there is, until `pull` says it.
        came: called when an answer has come, from the network's thread.
    """

    def __init__(
        self,
        host: str,
        port: int,
        cert: Path,
        key: Path,
        members: Callable[[], Mapping[str, tuple[bytes, ...]]],
        max_bytes: int,
        came: Callable[[], None] = lambda: None,
    ) -> None:
        self.host, self.port = host, port
        self._cert, self._key, self._members, self._limit = cert, key, members, max_bytes
        self._came = came
        self._sent: set[str] = set()
        self._done: deque[tuple[str, Answer]] = deque()
        self._ready: dict[str, Answer] = {}
        self._count = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Listen, and carry from now on. Raises ConfigError if port or certificate cannot be used."""
        context = tls.for_server(self._cert, self._key)
        try:
            family = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)[0][0]
            listener = socket.create_server((self.host, self.port), family=family, backlog=BACKLOG)
        except OSError as e:
            raise ConfigError(f"cannot listen on {self.host}:{self.port}: {e.strerror or e}") from None
        listener.setblocking(False)
        self.port = listener.getsockname()[1]
        _allow_files()
        loop = self._loop = asyncio.new_event_loop()
        self._desk = Desk(loop, self._members, self._take, self._most)
        front = Front(loop, listener, context, self._desk.known, self._desk.welcome, epoch=secrets.token_bytes(16))
        self._thread = threading.Thread(target=self._carry, args=(loop, front), name="carrier", daemon=True)
        self._thread.start()

    def nodes(self) -> Mapping[str, int]:
        """Node id by site, of those with a connection, or that had one a moment ago. Raises LinkLost."""
        self._running()
        return self._desk.online

    def speaks(self, node: int) -> int:
        """The version of the protocol that a node's HELLO agreed on; the newest for a node that is gone."""
        return self._desk.versions.get(node, versions.newest())

    def push(self, node: int, kind: str, payload: Sequence[bytes], group: str) -> str:
        """Send a payload to a node; returns the message's id. A node that is gone is told of by `pull`."""
        self._count += 1
        number = self._count
        self._tell(lambda: self._desk.send(node, number, kind, payload))
        self._sent.add(str(number))
        return str(number)

    def pull(self, ids: Collection[str], max_bytes: int) -> Iterator[tuple[str, bytes | Refused | RejectedUpdate]]:
        """(id of the message that is answered, answer) of new replies, one in memory at a time.

        A message that this link never sent, or whose site started anew, is answered by a refusal `client_error`.
        `max_bytes` counts for answers that are announced from now on.
        """
        self._limit = max_bytes
        self._running()
        while self._done:
            mid, answer = self._done.popleft()
            if mid in self._sent:
                self._ready[mid] = answer
            else:
                self._free(mid)
        for mid in ids:
            if mid not in self._sent:
                yield mid, Refused("client_error", "the message was lost: it was not sent by this start of the server")
        for mid in [mid for mid in self._ready if mid in ids]:
            self._sent.discard(mid)
            try:
                yield mid, self._ready.pop(mid)
            finally:
                self._free(mid)

    def forget(self, ids: Collection[str]) -> None:
        """Withdraw messages: a site that has not got one never will, and an answer is dropped."""
        numbers = [int(mid) for mid in ids if mid in self._sent]
        for mid in ids:
            self._sent.discard(mid)
            self._ready.pop(mid, None)
        self._tell(lambda: self._desk.forget(numbers))

    def close(self) -> None:
        """Listen no more, and leave the sites, which try again until somebody else listens."""
        if self._loop and self._thread and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(STOP_S)

    def _take(self, number: int, answer: Answer) -> None:
        self._done.append((str(number), answer))
        self._came()

    def _free(self, mid: str) -> None:
        self._tell(lambda: self._desk.free(int(mid)))

    def _most(self) -> int:
        return self._limit

    def _running(self) -> asyncio.AbstractEventLoop:
        """The loop of the network's thread. Raises LinkLost when it has ended."""
        if self._loop is None or self._thread is None or not self._thread.is_alive():
            raise LinkLost("the carrier has ended")
        return self._loop

    def _tell(self, act: Callable[[], Any]) -> None:
        """Have the network's thread do this. Raises LinkLost when there is none."""
        try:
            self._running().call_soon_threadsafe(act)
        except RuntimeError as e:
            raise LinkLost("the carrier has ended") from e

    def _carry(self, loop: asyncio.AbstractEventLoop, front: Front) -> None:
        def tick() -> None:
            loop.call_later(TICK_S, tick)  # whatever becomes of this one
            front.tick()
            self._desk.tick()

        asyncio.set_event_loop(loop)
        front.start()
        tick()
        try:
            loop.run_forever()
        finally:
            front.close()
            self._desk.close()
            loop.close()


def _allow_files() -> None:
    """As many open files as the system allows: each site takes one, and strangers some."""
    try:
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = 2**16 if hard == resource.RLIM_INFINITY else min(hard, 2**16)
        if soft < most:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    except (ImportError, OSError, ValueError) as e:
        log.debug("the limit of open files stays: %s", e)
