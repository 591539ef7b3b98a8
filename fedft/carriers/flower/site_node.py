"""The site's end of Flower: our process is the SuperNode, and no app code is ever loaded.

Messages are taken as bytes and handed to `handle`; what fails between the site and the server is tried again for ever,
with one line in the log for each new reason.
"""

import logging
import ssl
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from flwr.common.serde import message_from_proto
from flwr.proto import fleet_pb2, heartbeat_pb2, message_pb2, node_pb2
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from fedft.carriers.flower import connection_faults, grid, message_objects
from fedft.carriers.interface import Handle
from fedft.errors import ConfigError, RejectedUpdate

log = logging.getLogger(__name__)

HEARTBEAT_S = 10  # the shortest Flower allows: after a kill -9 the server takes us back within 20 s
BEAT_S = 4.0
POLL_S = 0.05, 1.0  # just after a message, and when idle for ten seconds and more
RETRY_S = 1.0, 30.0
PATIENCE_S = 600.0  # with one request of a message or reply; then it is given up, and the server asks again
WORKERS = 4  # messages fetched at a time


class Node:
    """A site's connection to its server.

    Args:
        address: host:port of the server.
        ca: PEM certificates to trust, and no others.
        key: the node's private key; the server's operator has its public half.
        max_bytes: of one message from the server.
    Raises:
        ConfigError: address or certificates cannot be used.
    """

    def __init__(self, address: str, ca: bytes, key: EllipticCurvePrivateKey, *, max_bytes: int = 2**31 - 1) -> None:
        self._address, self._max_bytes = address, max_bytes
        self._public = public_key_to_bytes(key.public_key())
        auth = NodeAuthHttpInterceptor(key, key.public_key())
        try:
            self._fleet = message_objects.connect(FleetHttpClient, address, ca, auth, component="SuperNode")
        except (ssl.SSLError, UnicodeDecodeError, httpx.InvalidURL) as e:
            raise ConfigError(f"server {address}: not an address and CA certificates that can be used: {e}") from None
        self._node = 0
        self._active_at = time.monotonic()
        self._said = ""
        self._turn = threading.Lock()

    def run(self, handle: Handle, stop: threading.Event) -> None:
        """Connect, and serve until `stop` is set: `handle` is called for each message, one at a time.

        `handle` is called in threads of the node's own. `reply` may be called at any later time and from any thread,
        once; it returns when the server has the answer. Called once, by one thread; `stop` may be set by any.
        """
        fetchers = ThreadPoolExecutor(WORKERS, "message")
        threading.Thread(target=self._beat, args=[stop], name="heartbeat", daemon=True).start()
        failing_since: float | None = None
        try:
            while not stop.is_set():
                try:
                    if not self._node:
                        self._activate()
                    taken = self._take()
                    self._say("")
                    failing_since = None
                except (httpx.HTTPError, ValueError) as e:
                    if self._node and connection_faults.status(e) in (
                        401,
                        412,
                    ):  # the server has started anew: our number there is void
                        self._node = 0
                        stop.wait(RETRY_S[0])
                        continue  # what it says to the next activation is what counts
                    failing_since = failing_since or time.monotonic()
                    self._say(connection_faults.reason(e, self._address))
                    stop.wait(min(max((time.monotonic() - failing_since) / 5, RETRY_S[0]), RETRY_S[1]))
                    continue
                if taken:
                    self._active_at = time.monotonic()
                    fetchers.submit(self._serve, *taken, handle, stop)
                    continue
                idle = time.monotonic() - self._active_at
                stop.wait(min(max(idle / 10, POLL_S[0]), POLL_S[1]))
        finally:
            fetchers.shutdown(wait=False, cancel_futures=True)
            self._leave()

    def connected(self) -> bool:
        """Whether the last request to the server was answered. Any thread may ask."""
        return bool(self._node) and not self._said

    def _activate(self) -> None:
        request = fleet_pb2.ActivateNodeRequest(public_key=self._public, heartbeat_interval=HEARTBEAT_S)
        self._node = self._fleet.ActivateNode(request).node_id
        log.info("connected to %s", self._address)

    def _take(self) -> tuple[Any, Any] | None:
        """The next message's head and tree of objects; the server gives each once only."""
        got = self._fleet.PullMessages(fleet_pb2.PullMessagesRequest(node=node_pb2.Node(node_id=self._node)))
        return (got.messages_list[0], got.message_object_trees[0]) if got.messages_list else None

    def _serve(self, head: Any, tree: Any, handle: Handle, stop: threading.Event) -> None:
        try:
            message = message_from_proto(head)
            payload = self._fetch(message, tree, stop)
            if payload is None:
                return

            def reply(answer: bytes) -> None:
                self._reply(message, answer, stop)

            with self._turn:
                handle(message.metadata.message_type, payload, reply)
        except RejectedUpdate as e:
            log.warning("a message of the server is refused: %s", e)
        except Exception:
            if not stop.is_set():
                log.exception("a message of the server could not be answered")

    def _fetch(self, message: Any, tree: Any, stop: threading.Event) -> bytes | None:
        """The payload of an announced message, or None if the message was withdrawn or lost."""
        meta, peer = message.metadata, _Patient(self._fleet, stop)
        wait = 0.02
        try:
            while True:
                try:
                    whole = message_objects.fetch(tree, meta.run_id, peer, meta.dst_node_id, self._max_bytes)
                    break
                except message_objects.Pending:
                    if stop.wait(wait := min(wait * 1.5, POLL_S[1])):
                        return None
            node = node_pb2.Node(node_id=meta.dst_node_id)
            peer.ask(
                self._fleet.ConfirmMessageReceived,
                message_pb2.ConfirmMessageReceivedRequest(
                    node=node, run_id=meta.run_id, message_object_id=tree.object_id
                ),
            )
        except (httpx.HTTPError, message_objects.Withdrawn) as e:
            log.debug("a message was lost before it was fetched: %s", e)
            return None
        payload = grid.unpack(whole, self._max_bytes)
        if isinstance(payload, bytes):
            return payload
        raise RejectedUpdate("malformed", "a message without a payload")

    def _reply(self, message: Any, payload: bytes, stop: threading.Event) -> None:
        node, peer = message.metadata.dst_node_id, _Patient(self._fleet, stop)

        def register(announced: Any, tree: Any) -> tuple[Any, str]:
            request = fleet_pb2.PushMessagesRequest(
                node=node_pb2.Node(node_id=node), messages_list=[announced], message_object_trees=[tree]
            )
            got = peer.ask(self._fleet.PushMessages, request)
            return got.objects_to_push, got.session_id

        try:
            message_objects.send(grid.pack_reply(message, payload), register, peer, node)
        except (httpx.HTTPError, message_objects.Withdrawn, ValueError, RuntimeError) as e:
            # RuntimeError: we have left meanwhile
            if connection_faults.status(e) == 413:
                log.warning("server %s takes no reply of %d bytes", self._address, len(payload))
            else:
                log.debug("a reply is dropped, nobody waits for it: %s", e)
        self._active_at = time.monotonic()

    def _beat(self, stop: threading.Event) -> None:
        while not stop.wait(BEAT_S):
            if node := self._node:
                request = heartbeat_pb2.SendNodeHeartbeatRequest(
                    node=node_pb2.Node(node_id=node), heartbeat_interval=HEARTBEAT_S
                )
                try:
                    self._fleet.SendNodeHeartbeat(request)
                except (httpx.HTTPError, ValueError, RuntimeError):
                    continue  # the main loop asks more often, and says it

    def _leave(self) -> None:
        if self._node:
            try:
                self._fleet.DeactivateNode(fleet_pb2.DeactivateNodeRequest(node_id=self._node))
            except (httpx.HTTPError, ValueError):
                log.debug("the server was not told that we leave")
        self._fleet.close()

    def _say(self, reason: str) -> None:
        """Log a change of reason, and only that."""
        if reason and reason.partition(": ")[0] != self._said.partition(": ")[0]:
            log.warning("%s; trying again", reason)
        elif not reason and self._said:
            log.warning("the connection to %s is back", self._address)
        self._said = reason


class _Patient:
    """Flower's client, each request made again while the network is away."""

    def __init__(self, fleet: FleetHttpClient, stop: threading.Event) -> None:
        self._fleet, self._stop = fleet, stop

    def PushObject(self, request: Any) -> Any:
        """Store one object, as Flower's client does; one refused at the second try may have arrived at the first."""
        tries = 0

        def push(request: Any) -> Any:
            nonlocal tries
            tries += 1
            return self._fleet.PushObject(request)

        response = self.ask(push, request)
        response.stored = response.stored or tries > 1
        return response

    def PullObject(self, request: Any) -> Any:
        """One object of a message, as Flower's client gives it."""
        return self.ask(self._fleet.PullObject, request)

    def ask(self, call: Callable[[Any], Any], request: Any) -> Any:
        """The answer to a request. Raises httpx.HTTPError, a passing trouble only after ten minutes of it."""
        until = time.monotonic() + PATIENCE_S
        while True:
            try:
                return call(request)
            except httpx.HTTPError as e:
                if not connection_faults.transient(e) or time.monotonic() > until or self._stop.wait(RETRY_S[0]):
                    raise
