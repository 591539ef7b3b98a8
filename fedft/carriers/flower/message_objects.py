"""A Flower message over HTTP: the objects Flower cuts it into, sent and fetched within a bound.

A message is a tree of objects named by the SHA-256 of their bytes: message, record dict, array record, array, and the
array's chunks of 5 MiB. The tree is announced first; then its objects go up, the root last, so that a root that is
there means that all of it is. Flower's own functions fetch without a bound, wait a second for what is still on its
way, and repeat a chunk as often as an array says; hence our own.
"""

import hashlib
import json
import ssl
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

import httpx
from flwr.app import Array, Message
from flwr.app.message import remove_content_from_message
from flwr.app.message.arraychunk import ArrayChunk
from flwr.common.constant import FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE
from flwr.common.serde import message_to_proto
from flwr.proto import message_pb2, node_pb2
from flwr.supercore.inflatable.inflatable_object import (
    _get_computed_object_ids,
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufClient, ProtobufRequestContext
from flwr.supercore.runtime_version_compatibility import RuntimeVersionMetadata

from fedft.errors import RejectedUpdate

Client = TypeVar("Client", bound=ProtobufClient)
Register = Callable[[Any, Any], tuple[Collection[str], str]]
"""Announces (a message without content, its tree of objects) -> (names of the objects wanted, the upload's session)."""

FRAMING = 64 * 1024  # bytes that Flower's records may add to a payload, besides MAX_ID per object
MAX_ID = 1024  # bytes of an object's own header and of its name in its parent
PARALLEL = 4  # objects of one message on their way at once: a far server is waited for once, not for each
HEAD_BYTES = 64 * 1024  # of a message's first piece, which alone differs between the sites
TIMEOUT_S = 30.0  # of one request, each way, so that no peer holds a thread for ever; a chunk of 5 MiB is the largest


class Pending(Exception):
    """The sender has announced the message and is still sending it: ask again later."""


class Withdrawn(Exception):
    """The message is not there any more: withdrawn by its sender, or never finished."""


class Peer(Protocol):
    """What Flower's Runtime and Fleet clients have in common. Called from several threads at a time."""

    def PushObject(self, request: Any) -> Any:
        """Store one object of a message: PushObjectRequest -> PushObjectResponse. Raises httpx.HTTPError."""

    def PullObject(self, request: Any) -> Any:
        """One object of a message: PullObjectRequest -> PullObjectResponse. Raises httpx.HTTPError."""


class Headers:
    """An interceptor of Flower's HTTP clients that adds fixed headers."""

    def __init__(self, headers: Mapping[str, str]) -> None:
        self._headers = dict(headers)

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        """Add the headers to a request and pass it on; returns its response."""
        context.request.headers.update(self._headers)
        return call_next(context)


def connect(kind: type[Client], address: str, ca: bytes, *interceptors: Any, component: str) -> Client:
    """A client of one of Flower's HTTP APIs over TLS 1.3, which trusts the certificates in `ca` (PEM) and no others.

    Without Flower's own retries and version check: both may end the process.

    Args:
        kind: the class of the client.
        address: host:port.
        ca: certificates of authorities.
        interceptors: of Flower's, that see each request.
        component: as which Flower counts us, "SuperNode" or "flwr-serverapp".
    Raises:
        ssl.SSLError, UnicodeDecodeError, httpx.InvalidURL: the certificates or the address cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(cadata=ca.decode("ascii"))
    version = Headers(dict(RuntimeVersionMetadata.from_local_component(component).as_metadata()))
    httpx.URL(f"https://{address}/")  # raises InvalidURL here, not at the first request
    client = kind(f"https://{address}", interceptors=[version, *interceptors])
    client._client.close()  # Flower's follows redirects, secrets included, and takes proxies even to this machine
    client._client = httpx.Client(verify=context, timeout=TIMEOUT_S, trust_env=True, follow_redirects=False)
    return client


def send(message: Message, register: Register, peer: Peer, node: int) -> None:
    """Announce a message by `register`, then send the objects that are wanted, the root last.

    Returns once all are stored. Raises Withdrawn if the message is no longer taken, and httpx.HTTPError.
    """
    with no_object_id_recompute():
        for record in message.content.array_records.values():
            for array in record.values():
                _cut(array)
        message.metadata.__dict__["_message_id"] = root = message.object_id
        objects = get_all_nested_objects(message)  # children before parents: the message itself is the last
        announced = message_to_proto(remove_content_from_message(message))
        wanted, session = register(announced, get_object_tree(message))

    def push(name: str) -> None:
        found = objects[name]
        content = b"".join(_parts(found)) if isinstance(found, ArrayChunk) else found.deflate()
        request = message_pb2.PushObjectRequest(
            node=node_pb2.Node(node_id=node),
            run_id=message.metadata.run_id,
            session_id=session,
            object_id=name,
            object_content=content,
        )
        if not peer.PushObject(request).stored:
            raise Withdrawn(f"the SuperLink no longer takes object {name[:12]}")

    wanted = set(wanted)
    with ThreadPoolExecutor(PARALLEL) as pool:  # of this message only: a large one must not hold up a small one
        list(pool.map(push, [name for name in objects if name in wanted and name != root]))
    if root in wanted:
        push(root)


def fetch(tree: Any, run: int, peer: Peer, node: int, max_bytes: int) -> Message:
    """The message whose announced objects are `tree`; not more than about `max_bytes` are ever held.

    Raises:
        Pending: the message is still on its way.
        Withdrawn: it is not there any more.
        RejectedUpdate: it is longer than `max_bytes` (`too_large`) or not a message of Flower's (`malformed`).
        httpx.HTTPError: the peer cannot be reached.
    """
    names = list(dict.fromkeys(o.object_id for o in iterate_object_tree(tree)))
    most = 16 + max_bytes // 2**18
    if len(names) > most:
        raise RejectedUpdate("too_large", f"message of {len(names)} objects, at most {most} allowed")
    room = max_bytes + FRAMING + MAX_ID * len(names)
    held = 0

    def pull(name: str) -> bytes:
        nonlocal held
        if held > room:
            raise RejectedUpdate("too_large", f"message of more than {max_bytes} bytes")
        request = message_pb2.PullObjectRequest(node=node_pb2.Node(node_id=node), run_id=run, object_id=name)
        response = peer.PullObject(request)
        if not response.object_found:
            raise Withdrawn("the message was withdrawn, or its sender gave up")
        if not response.object_available:
            raise Pending
        content: bytes = response.object_content
        held += len(content)  # a race of a few threads miscounts by a few objects at most; checked again below
        return content

    root = pull(tree.object_id)
    try:
        others = [name for name in names if name != tree.object_id]
        with ThreadPoolExecutor(PARALLEL) as pool:
            contents = {tree.object_id: root, **dict(zip(others, pool.map(pull, others), strict=True))}
    except Pending:
        raise RejectedUpdate("malformed", "message without one of its objects") from None
    if sum(map(len, contents.values())) > room:
        raise RejectedUpdate("too_large", f"message of more than {max_bytes} bytes")
    try:
        message = inflate_object_from_contents(tree.object_id, contents, objects=_arrays(contents, max_bytes))
    except RejectedUpdate:
        raise
    except Exception as e:  # whatever a peer's bytes do to Flower's parsers
        raise RejectedUpdate("malformed", f"not a Flower message: {type(e).__name__}: {e}"[:300]) from e
    if not isinstance(message, Message):
        raise RejectedUpdate("malformed", f"expected a message, got a {type(message).__name__}")
    message.metadata.__dict__["_message_id"] = tree.object_id
    return message


def _arrays(contents: dict[str, bytes], max_bytes: int) -> dict[str, Any]:
    """The arrays among the objects, each joined once; their chunks are taken out of `contents`."""
    arrays: dict[str, Any] = {}
    chunks: set[str] = set()
    total = 0
    for name, content in contents.items():
        kind, children, body = _split(content)
        if kind != "Array":
            continue
        fields = json.loads(bytes(body))
        parts = []
        for i in fields["arraychunk_ids"]:  # which may name a chunk any number of times
            kind, _, data = _split(contents[children[i]])
            if kind != "ArrayChunk":
                raise RejectedUpdate("malformed", f"an array's chunk is of type {kind[:32]!r}")
            if (total := total + len(data)) > max_bytes:
                raise RejectedUpdate("too_large", f"message of more than {max_bytes} bytes")
            parts.append(data)
        arrays[name] = Array(str(fields["dtype"]), tuple(fields["shape"]), str(fields["stype"]), b"".join(parts))
        chunks.update(children)
    for name in chunks:
        contents.pop(name, None)
    return arrays


def _cut(array: Array) -> None:
    """Cut an array into named pieces, as Flower does but without its copies of each.

    The first one is small: it holds what differs between the messages to several sites, so that the rest is one.
    """
    view, pieces = memoryview(array.data), []
    for start in [0, *range(HEAD_BYTES, len(view), FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE)] if view else []:
        end = start + FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE if start else HEAD_BYTES
        piece, named = ArrayChunk(view[start:end]), hashlib.sha256()
        for part in _parts(piece):
            named.update(part)
        piece.__dict__["_object_id"] = name = named.hexdigest()
        _get_computed_object_ids().add(name)
        pieces.append((name, piece))
    array.__dict__["_chunks"] = pieces


def _parts(piece: ArrayChunk) -> tuple[bytes, memoryview]:
    """The bytes of a piece as Flower writes them: type, children (none) and length, then the data."""
    return f"ArrayChunk  {len(piece.data)}\0".encode(), piece.data


def _split(content: bytes) -> tuple[str, list[str], memoryview]:
    """An object's type, the names of its children, and its body."""
    end = content.index(b"\0")
    kind, children, _ = content[:end].decode("utf-8").split(" ")
    return kind, children.split(",") if children else [], memoryview(content)[end + 1 :]
