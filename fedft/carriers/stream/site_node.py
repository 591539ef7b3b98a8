"""The site's end: our process connects to the server, and messages are handed to `handle`.

What fails between the site and the server is tried again for ever, with one line in the log for each new reason.
"""

import asyncio
import logging
import queue
import random
import secrets
import ssl
import threading
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path

from fedft.carriers.interface import Handle
from fedft.carriers.stream import dial, frames, front, tls
from fedft.carriers.stream.connection import Connection
from fedft.carriers.stream.frames import Kind, Malformed
from fedft.carriers.stream.room import Room
from fedft.carriers.stream.session import Session
from fedft.errors import ConfigError
from fedft.wire import versions

log = logging.getLogger(__name__)

PING_S = 15.0
SILENT_S = 45.0  # after which a server that says nothing is taken for gone
RETRY_S = 0.5, 30.0
TICK_S = 0.5
ROOM = 16 * 2**20  # bytes of messages on their way in, beside the largest
UNSENT = 64 * 2**20  # bytes of answers that have not left, above which `reply` waits
KNOWN = 1024  # messages remembered without an answer so far
WAITING = 64  # messages that wait for `handle`
REASONS = {
    front.UNKNOWN: "server {} does not know this site's node key: not enrolled, or revoked",
    front.REPLACED: "server {} took another connection in place of this one: another process has this site's key",
    front.OFTEN: "server {} takes no more connections of this site for now: it came too often",
}


class Node:
    """A site's connection to its server.

    Args:
        address: host:port of the server.
        ca: PEM certificates to trust, and no others.
        key: file of the node's private key; the server's operator has its public half.
        max_bytes: of one message from the server.
        bytes_s: most bytes a second each way; None: as many as the network carries.
    Raises:
        ConfigError: address or certificates cannot be used.
        KeyFault: the key cannot be used.
    """

    def __init__(
        self, address: str, ca: bytes, key: Path, *, max_bytes: int = 2**31 - 1, bytes_s: float | None = None
    ) -> None:
        self._address, self._max_bytes, self._bytes_s = address, max_bytes, bytes_s
        try:
            self._context = tls.for_site(ca, key)
        except (ssl.SSLError, UnicodeDecodeError) as e:
            raise ConfigError(f"server {address}: not an address and CA certificates that can be used: {e}") from None
        self._start = secrets.token_bytes(16)
        self._epoch = b""
        self._session = Session(
            lambda: self._loop.time(),
            Room(ROOM),
            self._wanted,
            self._take,
            self._dropped,
            lambda number: self._sent(number),
        )
        self._open: OrderedDict[int, None] = OrderedDict()
        """Messages that are here and have no answer at the server yet."""
        self._messages: queue.Queue[tuple[int, str, bytes, bool] | None] = queue.Queue()
        self._leaving = threading.Condition()
        self._unsent = 0
        self._said = self._refused = ""

    def trust(self, authority: bytes) -> None:
        """Trust one more certificate authority, in PEM, from the next connection on."""
        self._context.load_verify_locations(cadata=authority.decode("ascii"))

    def run(self, handle: Handle, stop: threading.Event) -> None:
        """Connect, and serve until `stop` is set: `handle` is called for each message, one at a time.

        `handle` is called in a thread of the node's own. `reply` may be called at any later time and from any thread,
        once; it waits while many answers have not left. Called once, by one thread; `stop` may be set by any.
        """
        with asyncio.Runner() as runner:
            self._loop = runner.get_loop()
            handler = threading.Thread(target=self._handle, args=[handle, stop], name="message", daemon=True)
            handler.start()
            try:
                runner.run(self._serve(stop))
            finally:
                stop.set()
                self._messages.put(None)
                with self._leaving:
                    self._leaving.notify_all()

    def receiving(self) -> bool:
        """Whether messages of the server are on their way in, or wait for room; any thread may ask."""
        return self._session.coming() > 0

    def connected(self) -> bool:
        """Whether the server has been heard within SILENT_S. Any thread may ask."""
        connection = self._session.connection
        return connection is not None and self._loop.time() - connection.heard < SILENT_S

    # The connection

    async def _serve(self, stop: threading.Event) -> None:
        wait = RETRY_S[0]
        while not stop.is_set():
            why = await self._once(stop)
            if why is None:
                wait = RETRY_S[0]
            if why:
                self._say(why)
            until = self._loop.time() + wait * random.uniform(0.5, 1.5)
            wait = min(wait * 2, RETRY_S[1])
            while not stop.is_set() and self._loop.time() < until:
                await asyncio.sleep(min(TICK_S, max(0.01, until - self._loop.time())))

    async def _once(self, stop: threading.Event) -> str | None:
        """Connect and serve until that ends: the reason, or None if it was in use before."""
        try:
            connect = partial(dial.connect, self._address, self._context, bytes_s=self._bytes_s)
            sock = await self._loop.run_in_executor(None, connect)
        except (OSError, ValueError) as e:
            return dial.reason(e, self._address)
        ended: asyncio.Future[str] = self._loop.create_future()

        def lost(connection: Connection, why: str) -> None:
            if not ended.done():
                ended.set_result(why)

        connection = Connection(self._loop, sock, self._hear, lost)
        self._refused = ""
        connection.say(Kind.HELLO, 0, frames.hello(self._start))
        pinged = self._loop.time()
        while not ended.done():
            await asyncio.wait([ended], timeout=TICK_S)
            now = self._loop.time()
            if stop.is_set():
                self._leave(connection)
            elif now - connection.heard > SILENT_S:
                connection.lose("it does not answer in time")
            elif now - pinged > PING_S and self._session.connection:
                pinged = now
                connection.say(Kind.PING)
            if connection.closed:
                break
        served = self._session.connection is not None
        self._session.detach()
        connection.close()
        if self._refused:
            return self._refused
        why = ended.result() if ended.done() else ""
        if served:
            log.debug("the connection to %s broke: %s", self._address, why)
            return None
        return f"server {self._address} cannot be reached: {why}" if why else ""

    def _leave(self, connection: Connection) -> None:
        if self._session.connection:
            connection.say(Kind.BYE)
        connection.close()

    # Frames

    def _hear(self, connection: Connection, kind: Kind, number: int, body: bytes | memoryview) -> None:
        if kind is Kind.REFUSE:
            why = bytes(body).decode("ascii", "replace")
            self._refused = REASONS.get(why, "server {} refuses us").format(self._address)
            if found := frames.versions_in(why):
                self._refused = f"server {self._address} cannot be spoken to: {found}"
            connection.lose(why)
        elif kind is Kind.PONG:
            return
        elif kind is Kind.WELCOME:
            if len(body) != frames.WELCOME.size or self._session.connection:
                raise Malformed("a welcome of another form")
            version, epoch = frames.WELCOME.unpack(body)
            if versions.common(version, version) is None:
                raise Malformed(f"a welcome in protocol {version}, this site speaks {versions.here()}")
            if epoch != self._epoch:  # another start of the server, which knows of nothing before it
                self._session.end()
                self._open.clear()
                self._epoch = epoch
            self._say("")
            self._session.attach(connection)
            self._count()
        elif self._session.connection is None:
            raise Malformed("it does not say WELCOME first")
        else:
            self._session.hear(kind, number, body)

    def _wanted(self, number: int, size: int) -> str:
        if number in self._open:
            return "taken"
        if size > self._max_bytes:
            log.warning("a message of the server is refused: %d bytes, at most %d allowed", size, self._max_bytes)
            return f"at most {self._max_bytes} bytes are taken here"
        return "too many messages wait" if self._messages.qsize() + self._session.coming() >= WAITING else ""

    def _take(self, number: int, kind: str, data: bytes, held: bool) -> None:
        self._open[number] = None
        while len(self._open) > KNOWN:
            self._open.popitem(last=False)
        self._messages.put((number, kind, data, held))

    def _dropped(self, number: int, why: str) -> None:
        self._open.pop(number, None)
        self._count()

    def _sent(self, number: int) -> None:
        self._open.pop(number, None)
        self._count()

    def _count(self) -> None:
        with self._leaving:
            self._unsent = self._session.sending()
            self._leaving.notify_all()

    # The handler's thread, and the worker's

    def _handle(self, handle: Handle, stop: threading.Event) -> None:
        while (message := self._messages.get()) is not None and not stop.is_set():
            number, kind, payload, held = message
            try:
                handle(kind, payload, lambda answer, number=number: self._reply(number, answer, stop))  # type: ignore[misc]
            except Exception:
                if not stop.is_set():
                    log.exception("a message of the server could not be answered")
            del message, payload
            if held:
                self._tell(lambda number=number: self._session.free(number))  # type: ignore[misc]

    def _reply(self, number: int, answer: bytes, stop: threading.Event) -> None:
        with self._leaving:
            while self._unsent > UNSENT and not stop.is_set():
                self._leaving.wait(1.0)
            self._unsent += len(answer)
        self._tell(lambda: self._send(number, answer))

    def _send(self, number: int, answer: bytes) -> None:
        if number in self._open:  # else it was withdrawn, or asked by a start of the server that is no more
            self._session.send(number, "answer", [answer])
        self._count()

    def _tell(self, act: Callable[[], None]) -> None:
        try:
            self._loop.call_soon_threadsafe(act)
        except RuntimeError:
            log.debug("an answer is dropped, we have left")

    def _say(self, reason: str) -> None:
        """Log a change of reason, and only that."""
        if reason and reason.partition(": ")[0] != self._said.partition(": ")[0]:
            log.warning("%s; trying again", reason)
        elif not reason and self._said:
            log.warning("the connection to %s is back", self._address)
        elif not reason:
            log.info("connected to %s", self._address)
        self._said = reason
