"""A `Link` over a Flower SuperLink.

Our process takes the part that Flower gives to a ServerApp: it starts a run with an app of no code, acquires that run's
task, and sends and collects messages in its name.
"""

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, cast

import httpx
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.proto import control_pb2, message_pb2, node_pb2, runtime_pb2
from flwr.supercore.task_identity import TaskIdentity

from fedft.carriers import interface
from fedft.carriers.flower import grid, message_objects
from fedft.carriers.flower.superlink_session import NoTask, Session
from fedft.carriers.interface import LinkLost, Refused
from fedft.errors import RejectedUpdate
from fedft.wire import versions

NODES_S = 1.0  # how old the list of nodes may be: it is asked for in every look for answers


class FlowerLink:
    """The link to the sites through a SuperLink; see `fedft.carriers.interface.Link`.

    Args:
        address: host:port of the SuperLink.
        ca: PEM certificates to trust, and no others.
        members: gives the public node keys with which each site may come now; other nodes are left alone.

    Used by one thread. Connects when first used, and again after each LinkLost.
    """

    def __init__(self, address: str, ca: bytes, members: Callable[[], Mapping[str, tuple[bytes, ...]]]) -> None:
        self._address, self._ca, self._members = address, ca, members
        self._session: Session | None = None

    def nodes(self) -> Mapping[str, int]:
        """Node id by site, of those online; up to NODES_S old. New members are let in."""
        session = self._connected()
        if time.monotonic() - session.nodes_at > NODES_S:
            with self._guarded():
                site_of = self._site_of()
                if session.keys != site_of.keys():
                    session.register(site_of)
                listed = session.control.ListNodes(control_pb2.ListNodesRequest()).nodes_info
            session.nodes = {
                site_of[n.public_key]: n.node_id for n in listed if n.status == "online" and n.public_key in site_of
            }
            session.nodes_at = time.monotonic()
        return session.nodes

    def speaks(self, node: int) -> int:
        """The oldest version of the protocol: nobody says HELLO here, and a site may be as old as that."""
        return versions.oldest()

    def _site_of(self) -> dict[bytes, str]:
        return {key: site for site, keys in self._members().items() for key in keys}

    def push(self, node: int, kind: str, payload: Sequence[bytes], group: str) -> str:
        """Send a payload to a node; returns the message's id. A node that is gone is told of by `pull`."""
        session = self._connected()
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = session.identity  # of this whole process
        message = grid.pack(cast(interface.Kind, kind), b"".join(payload), node, group)
        known = True

        def register(announced: Any, tree: Any) -> tuple[Collection[str], str]:
            nonlocal known
            request = runtime_pb2.PushAppMessagesRequest(messages_list=[announced], message_object_trees=[tree])
            response = session.runtime.PushMessages(request)
            known = bool(response.message_ids[0])
            return response.objects_to_push, response.session_id

        with self._guarded():
            try:
                message_objects.send(message, register, session.runtime, SUPERLINK_NODE_ID)
            except message_objects.Withdrawn:
                known = False
        mid = message.metadata.message_id
        session.sent.add(mid)
        if not known:
            session.unsendable.add(mid)
        return mid

    def pull(self, ids: Collection[str], max_bytes: int) -> Iterator[tuple[str, bytes | Refused | RejectedUpdate]]:
        """(id of the message that is answered, answer), one in memory at a time.

        An id that this connection never gave is answered by a refusal `client_error`: that message is lost. A reply
        still on its way up is left for the next call. One that is taken, or refused, is freed in the SuperLink.
        """
        session = self._connected()
        for mid in ids:
            if mid not in session.sent or mid in session.unsendable:
                session.sent.discard(mid)
                yield (
                    mid,
                    Refused(
                        "client_error", "the message was lost on its way: its connection ended, or its node is gone"
                    ),
                )
        with self._guarded():
            self._collect(session, set(ids) & session.sent)
        for mid in [mid for mid in session.trees if mid in ids]:
            if session is not self._session:
                raise LinkLost("the connection was lost meanwhile")
            tree = session.trees[mid]
            try:
                with self._guarded():
                    answer = self._answer(session, tree, max_bytes)
            except message_objects.Pending:
                continue
            del session.trees[mid]
            self._free(session, mid, tree.object_id)
            yield mid, answer

    def forget(self, ids: Collection[str]) -> None:
        """Give messages up: a node that has not taken one yet never will, and a late reply is thrown away."""
        session = self._connected()
        for mid in set(ids) & session.sent:
            tree = session.trees.pop(mid, None)
            if tree is None:
                session.forgotten.add(mid)
            self._free(session, mid, *([tree.object_id] if tree else []))

    def close(self) -> None:
        """End our run in the SuperLink, if it can still be reached, and free the connections."""
        if self._session:
            with suppress(httpx.HTTPError, ValueError):
                self._session.runtime.PushTaskOutput(
                    runtime_pb2.PushTaskOutputRequest(sub_status="completed", details="")
                )
        self._reset()

    def _answer(self, session: Session, tree: Any, max_bytes: int) -> bytes | Refused | RejectedUpdate:
        try:
            message = message_objects.fetch(tree, session.run, session.runtime, SUPERLINK_NODE_ID, max_bytes)
            return grid.unpack(message, max_bytes)
        except RejectedUpdate as e:
            return e.with_traceback(None)
        except message_objects.Withdrawn as e:
            return Refused("client_error", str(e))

    def _collect(self, session: Session, ids: set[str]) -> None:
        """Ask for new replies to `ids`; Flower names each reply once only, so their trees are kept."""
        asked = (ids - session.trees.keys()) | session.forgotten
        if not asked:
            return
        response = session.runtime.PullMessages(runtime_pb2.PullAppMessagesRequest(message_ids=asked))
        for head, tree in zip(response.messages_list, response.message_object_trees, strict=True):
            mid = head.metadata.reply_to_message_id
            if mid in session.forgotten:
                session.forgotten.discard(mid)
                self._free(session, mid, tree.object_id)
            else:
                session.trees[mid] = tree

    def _free(self, session: Session, mid: str, *roots: str) -> None:
        """Let the SuperLink drop a message's objects and its reply's."""
        session.sent.discard(mid)
        session.unsendable.discard(mid)
        with self._guarded():
            for root in (mid, *roots):
                session.runtime.ConfirmMessageReceived(
                    message_pb2.ConfirmMessageReceivedRequest(
                        node=node_pb2.Node(node_id=SUPERLINK_NODE_ID), run_id=session.run, message_object_id=root
                    )
                )

    def _connected(self) -> Session:
        if self._session is None:
            with self._guarded():
                self._session = Session(self._client, self._site_of())
        elif self._session.over.is_set():
            self._reset()
            raise LinkLost("the SuperLink has ended our run")
        return self._session

    def _client(self, kind: Any, *interceptors: Any) -> Any:
        return message_objects.connect(kind, self._address, self._ca, *interceptors, component="flwr-serverapp")

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """What the SuperLink or the network does to a call becomes LinkLost, and the session is over."""
        try:
            yield
        except (httpx.HTTPError, ValueError, NoTask) as e:
            self._reset()
            raise LinkLost(f"SuperLink {self._address}: {_line(e)}") from e

    def _reset(self) -> None:
        session, self._session = self._session, None
        if session:
            session.close()


def _line(e: Exception) -> str:
    if isinstance(e, httpx.HTTPStatusError):
        return f"{e.request.url.path} answered {e.response.status_code}: {e.response.text[:200]!r}"
    return f"{type(e).__name__}: {e}".splitlines()[0][:300]
