"""The gate before Flower's SuperLink: what the network may ask of it, and how much.

Flower serves three interfaces on one port and asks who is there on one of them only. The gate lets the sites' interface
through for registered node keys, everything else for our own server alone, which knows the secret of this start.
"""

import asyncio
import base64
import hmac
from collections import defaultdict
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

SECRET = "x-fedft-secret"
NODE_KEY = b"flwr-public-key"
FLEET = "/v1/fleet/"
SITES_MAY = {  # never the app's code
    *("activate-node", "deactivate-node", "send-node-heartbeat", "pull-messages", "push-messages"),
    *("pull-object", "push-object", "confirm-message-received"),
}
SITES_MAY_NOT = {"register-node", "unregister-node"}  # refused by name: a stock node should hear why it cannot join
MAX_OBJECT = 8 * 2**20  # bytes of one request, which is held in memory; Flower cuts arrays into pieces of 5 MiB
MAX_REQUEST = 2**20  # bytes of a site's other requests, which Flower parses: names and trees of names
PULLS, PULLS_OF_ONE = 16, 4  # objects on their way to sites at once: each is in memory twice until it has left
PIECE = 128 * 1024  # bytes of an answer between two looks whether the socket takes more
PULL_S = 120.0  # for one of 5 MiB; who reads more slowly must not keep the others waiting


class Gate:
    """An ASGI app before Flower's: forwards what is allowed, and answers the rest with a bare status.

    Args:
        app: Flower's.
        secret: of our own server, whose requests are all forwarded.
        known: whether a node's public key, in PEM, is registered.
        sound: whether a site's announcement of a reply, the body of a request, may be given to Flower.
        max_body_bytes: the most that a node may send in objects for one reply.
    """

    def __init__(
        self, app: App, secret: str, known: Callable[[bytes], bool], sound: Callable[[bytes], bool], max_body_bytes: int
    ) -> None:
        self._app, self._secret, self._known, self._sound = app, secret.encode("ascii"), known, sound
        self._max_body = max_body_bytes
        self._pulls = asyncio.Semaphore(PULLS)
        self._pulls_of: dict[bytes, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(PULLS_OF_ONE))
        self._ready = False  # our server registers the sites' keys first, then acquires its task
        self._sent: dict[bytes, int] = {}  # bytes of objects by node key, since its last reply was announced

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI event: the start and end of the server, or one request. Runs in the server's event loop."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            if status := self._refusal(scope):
                await _answer(send, status)
            else:
                body, receive = await _whole(receive)
                announced = scope["path"] == FLEET + "push-messages"
                if announced and not self._sound(body):
                    await _answer(send, 400)
                elif scope["path"] == FLEET + "pull-object":
                    await self._pull(scope, receive, send)
                else:
                    await self._app(scope, receive, self._counted(scope, send))
        else:
            await send({"type": "websocket.close"})

    def _counted(self, scope: Scope, send: Send) -> Send:
        """A `send` that counts what a node has sent once Flower has taken it, and so knows that the node sent it."""
        name = scope["path"].removeprefix(FLEET)

        async def counted(event: MutableMapping[str, Any]) -> None:
            if event["type"] == "http.response.start" and event["status"] == 200:
                if name == "push-messages":
                    self._sent.pop(_key(scope), None)
                elif name == "push-object":
                    self._sent[_key(scope)] = self._sent.get(_key(scope), 0) + _size(scope)
            await send(event)

        return counted

    async def _pull(self, scope: Scope, receive: Receive, send: Send) -> None:
        with suppress(TimeoutError):  # the server closes a connection whose answer was not finished
            async with self._pulls_of[_key(scope)], self._pulls:
                await asyncio.wait_for(self._app(scope, receive, _paced(send)), PULL_S)

    def _refusal(self, scope: Scope) -> int:
        """The status with which a request is refused before a byte of its body is read, or 0."""
        headers = dict(scope["headers"])
        name = scope["path"].removeprefix(FLEET)
        site = scope["path"].startswith(FLEET)
        ours = hmac.compare_digest(headers.get(SECRET.encode(), b""), self._secret)
        if scope["method"] != "POST" or not (ours or (site and name in SITES_MAY | SITES_MAY_NOT)):
            return 404
        try:
            key = base64.b64decode(headers.get(NODE_KEY, b""), validate=True)
            size = _size(scope)
        except (ValueError, KeyError):
            return 411
        if b"transfer-encoding" in headers:
            return 411
        if sum(name == NODE_KEY for name, _ in scope["headers"]) > 1:
            return 400  # Flower reads the first, we the last
        if ours:
            self._ready |= scope["path"].endswith("/acquire-task")
            return 413 if size > MAX_OBJECT else 0
        if not self._ready:
            return 503
        if name in SITES_MAY_NOT:
            return 403
        if not self._known(key):
            return 401
        if name == "push-object":
            return 413 if size > MAX_OBJECT or self._sent.get(key, 0) + size > self._max_body else 0
        return 413 if size > MAX_REQUEST else 0


def _key(scope: Scope) -> bytes:
    """The node key that a request names, of a form that was found to be right."""
    return base64.b64decode(dict(scope["headers"]).get(NODE_KEY, b""))


def _size(scope: Scope) -> int:
    return int(dict(scope["headers"])[b"content-length"])  # what it says is what is read: the HTTP parser sees to it


def _paced(send: Send) -> Send:
    """A `send` that hands over a large body in pieces: the server waits for the socket between two events only."""

    async def paced(event: MutableMapping[str, Any]) -> None:
        body = memoryview(event.get("body", b""))
        while len(body) > PIECE:
            await send({"type": event["type"], "body": bytes(body[:PIECE]), "more_body": True})
            body = body[PIECE:]
        await send({**event, "body": bytes(body)} if "body" in event else event)

    return paced


async def _whole(receive: Receive) -> tuple[bytes, Receive]:
    """The request's body, and a `receive` that gives it in one event: Flower passes each piece through five layers."""
    parts: list[bytes] = []
    more = True
    while more:
        event = await receive()
        if event["type"] != "http.request":
            return b"", receive  # gone: every later event says so, too
        parts.append(event.get("body", b""))
        more = event.get("more_body", False)
    body = b"".join(parts)
    first: list[MutableMapping[str, Any]] = [{"type": "http.request", "body": body, "more_body": False}]

    async def given() -> MutableMapping[str, Any]:
        return first.pop() if first else await receive()

    return body, given


async def _answer(send: Send, status: int) -> None:
    """A status and nothing else; the body that may follow is not waited for."""
    headers = [(b"content-length", b"0"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


def is_plain(body: bytes) -> bool:
    """Whether a site announces one message whose tree names each object once.

    Flower stores an object's children by its first mention and unfolds them at every other one: a tree of 60 names
    can become one of 2**30.
    """
    from flwr.proto.fleet_pb2 import PushMessagesRequest
    from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
    from google.protobuf.message import DecodeError

    try:
        request = PushMessagesRequest.FromString(body)
    except DecodeError:
        return False
    if len(request.messages_list) != 1 or len(request.message_object_trees) != 1:
        return False
    names = [o.object_id for o in iterate_object_tree(request.message_object_trees[0])]
    return len(names) == len(set(names))
